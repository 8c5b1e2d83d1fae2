"""The loss's kernel against float64 where float32 has trouble, and the loss of a head that it is part of."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bora_sweep.model import linear_cross_entropy
from bora_sweep.model.linear_cross_entropy import linear_nll


def run_kernel(logits_CV: Tensor, target_C: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
    """Nats, the error, and the logits as the kernel leaves them; the error is the logits if that is its precision."""
    from bora_sweep.kernels.cross_entropy import cross_entropy_

    logits_CV, nats_C = logits_CV.clone(), logits_CV.new_full((len(logits_CV),), torch.nan)
    error_CV = logits_CV if dtype == torch.float32 else torch.empty_like(logits_CV, dtype=dtype or torch.float32)
    cross_entropy_(logits_CV, target_C, nats_C, None if dtype is None else error_CV)
    return nats_C, error_CV, logits_CV


def exact(logits_CV: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[target] and softmax(logits) - e_target in float64."""
    wide_CV = logits_CV.double()
    nats_C = F.cross_entropy(wide_CV, target_C, reduction="none")
    return nats_C, wide_CV.softmax(1) - F.one_hot(target_C, wide_CV.shape[1])


PRECISION = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 5e-4}
"""Of rounding, relative; Triton's interpreter cuts off what bfloat16 has no bits for, where a GPU rounds."""


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("columns", [1, 2, 17, 1000, 4096, 4097, 9001])
def test_nats_and_error_are_those_of_the_softmax(columns, scale, dtype, run):
    generator = torch.Generator().manual_seed(columns)
    logits_CV = scale * torch.randn(5, columns, generator=generator)
    target_C = torch.randint(columns, (5,), generator=generator)
    target_C[0], target_C[1], target_C[2] = logits_CV[0].argmax(), logits_CV[1].argmin(), columns - 1
    nats_C, error_CV = exact(logits_CV, target_C)
    found_C, found_CV, _ = run(run_kernel, logits_CV, target_C, dtype)
    torch.testing.assert_close(found_C.double(), nats_C, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found_CV.double(), error_CV, rtol=PRECISION[dtype] + 1e-5, atol=1e-7)
    assert found_CV.dtype == dtype


@pytest.mark.parametrize("nats", [80.0, 88.0, 95.0, 104.0, 500.0, 1e6, 1e30])
def test_nats_are_exact_below_the_smallest_probability_of_float32(nats, run):
    logits_CV = torch.tensor([[nats, 0.0, 0.5 * nats], [0.0, -nats, -3.0]])
    target_C = torch.tensor([1, 1])
    found_C, found_CV, _ = run(run_kernel, logits_CV, target_C, torch.float32)
    expected_C, expected_CV = exact(logits_CV, target_C)
    torch.testing.assert_close(found_C.double(), expected_C, rtol=1e-6, atol=0)
    torch.testing.assert_close(found_CV.double(), expected_CV, rtol=1e-6, atol=1e-6)


def test_without_an_error_the_logits_stay(run):
    logits_CV, target_C = torch.randn(3, 5000), torch.tensor([0, 4999, 7])
    found_C, _, left_CV = run(run_kernel, logits_CV, target_C, None)
    torch.testing.assert_close(found_C.double(), exact(logits_CV, target_C)[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(left_CV, logits_CV)


def test_a_logit_that_is_no_number_shows_and_one_of_minus_infinity_has_no_probability(run):
    logits_CV = torch.randn(3, 5000)
    logits_CV[0, 4500] = torch.nan
    logits_CV[1, :4500] = -torch.inf  # more than the kernel takes at a time
    logits_CV[2, 3] = torch.inf
    target_C = torch.tensor([1, 4700, 4])
    found_C, found_CV, _ = run(run_kernel, logits_CV, target_C, torch.float32)
    expected_C, expected_CV = exact(logits_CV, target_C)
    assert not found_C[0].isfinite()
    assert not found_C[2].isfinite()
    torch.testing.assert_close(found_C[1].double(), expected_C[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found_CV[1].double(), expected_CV[1], rtol=1e-5, atol=1e-7)


def loss_of_a_head(hidden_MH, weight_VH, bias_V, target_M, upstream_M, chunk) -> tuple[Tensor, Tensor, Tensor]:
    """nll_M with a gradient, its gradient, and nll_M without one."""
    head = nn.Linear(*weight_VH.shape[::-1], bias=bias_V is not None, device=hidden_MH.device, dtype=weight_VH.dtype)
    head.requires_grad_(False).weight.copy_(weight_VH)
    if bias_V is not None:
        head.bias.copy_(bias_V)
    hidden_MH = hidden_MH.detach().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_cross_entropy, "CHUNK", {})
        patch.setattr(linear_cross_entropy, "CHUNK_ELSEWHERE", chunk)
        patch.setattr(linear_cross_entropy, "READABLE", set())
        nll_M = linear_nll(hidden_MH, head, target_M)
        with torch.no_grad():
            scored_M = linear_nll(hidden_MH, head, target_M)
    (gradient_MH,) = torch.autograd.grad((upstream_M * nll_M).sum(), hidden_MH)
    return nll_M.detach(), gradient_MH, scored_M


@given(st.integers(0, 40), st.booleans(), st.integers(1, 16), st.booleans(), st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_the_loss_of_a_head_equals_the_plain_one(run, positions, with_bias, chunk, is_half, seed):
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if is_half else torch.float32
    hidden_MH, weight_VH = (torch.randn(n, 16, generator=generator).to(dtype) for n in (positions, 50))
    bias_V = torch.randn(50, generator=generator).to(dtype) if with_bias else None
    target_M, upstream_M = torch.randint(50, (positions,), generator=generator), torch.rand(positions)
    exact_MH = hidden_MH.double().requires_grad_()
    logits_MV = F.linear(exact_MH, weight_VH.double(), None if bias_V is None else bias_V.double())
    expected_M = F.cross_entropy(logits_MV, target_M, reduction="none")
    (expected_MH,) = torch.autograd.grad((upstream_M * expected_M).sum(), exact_MH)
    nll_M, gradient_MH, scored_M = run(loss_of_a_head, hidden_MH, weight_VH, bias_V, target_M, upstream_M, chunk)
    atol = 0.1 if is_half else 2e-5  # bfloat16 has 8 bits: a logit of 16 is known to 0.06
    torch.testing.assert_close(nll_M.double(), expected_M.detach(), rtol=0, atol=atol)
    torch.testing.assert_close(gradient_MH.double(), expected_MH, rtol=0, atol=atol)
    assert torch.equal(scored_M, nll_M)
    assert nll_M.dtype == torch.float32
