"""What a low-rank adapter adds, where it is written, and how many operations it takes."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bora_sweep.model.lora import add_low_rank


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def parts() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A frozen Linear without a bias, its input, and an A and a B for each of three rows."""
    module = nn.Linear(6, 5, bias=False, dtype=torch.float64).requires_grad_(False)
    return module, draw(3, 4, 6), draw(3, 2, 6), draw(3, 5, 2)


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("flat", [False, True])
def test_the_output_and_its_gradients_are_those_of_the_products(flat, scale):
    module, x_BTI, A_BRI, B_BOR = parts()

    def adapted(x_BTI: Tensor, A_BRI: Tensor, B_BOR: Tensor) -> Tensor:
        x = x_BTI.flatten(0, 1) if flat else x_BTI
        return add_low_rank(module(x), x, A_BRI, B_BOR, scale).view(3, 4, 5)

    expected = torch.stack(
        [x @ module.weight.T + scale * x @ A.T @ B.T for x, A, B in zip(x_BTI, A_BRI, B_BOR, strict=True)]
    )
    torch.testing.assert_close(adapted(x_BTI, A_BRI, B_BOR), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(adapted, (x_BTI, A_BRI, B_BOR))


@pytest.mark.parametrize(("with_bias", "rows", "in_place"), [(False, 3, True), (True, 3, False), (False, 1, False)])
def test_a_result_takes_the_place_of_an_output_that_is_no_view_and_has_its_rows(with_bias, rows, in_place):
    """A Linear with a bias returns a view, and an adapter of all rows has fewer than the output."""
    _, x_BTI, A_BRI, B_BOR = parts()
    module = nn.Linear(6, 5, bias=with_bias, dtype=torch.float64).requires_grad_(False)
    output = module(x_BTI)
    before = output.detach().clone()
    result = add_low_rank(output, x_BTI, A_BRI[:rows], B_BOR[:rows], 1.0)
    assert (result.data_ptr() == output.data_ptr()) == in_place
    assert torch.equal(output.detach(), before) != in_place


def test_an_output_that_is_needed_as_it_was_is_an_error_and_no_other_gradient():
    module, x_BTI, A_BRI, B_BOR = parts()
    output = module(x_BTI)
    squared = output.square()
    result = add_low_rank(output, x_BTI, A_BRI, B_BOR, 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (squared.sum() + result.sum()).backward()


VIEWS = {"aten::_unsafe_view", "aten::detach"}


class Operations(TorchDispatchMode):
    """Counts the operations within that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view and function.name() not in VIEWS:
            self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("scale", "scalings"), [(1.0, 0), (2.0, 2)])
def test_a_step_of_an_adapter_is_six_products(scale, scalings):
    module, x_BTI, A_BRI, B_BOR = parts()
    output, grad_BTO = module(x_BTI), torch.ones(3, 4, 5, dtype=torch.float64)
    with Operations() as forward:
        result = add_low_rank(output, x_BTI, A_BRI, B_BOR, scale)
    with Operations() as backward:
        torch.autograd.grad(result, (x_BTI, A_BRI, B_BOR), grad_BTO)
    assert forward.counts == {"aten::bmm": 1, "aten::baddbmm_": 1}
    base = {"aten::mm": 1, "aten::add.Tensor": 1}  # the gradient of x through the base's weight, and the sum of the two
    assert backward.counts == Counter({**base, "aten::bmm": 4, "aten::mul_.Tensor": scalings})
