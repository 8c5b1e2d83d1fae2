"""The negative log likelihood against a loop over tokens, and its chunked form against the plain one."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, VOCABULARY, make_base, scored_until
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from bora_sweep.config import LoraConfig
from bora_sweep.model import linear_cross_entropy
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.layout import make_layout
from bora_sweep.model.likelihood import Likelihood, nll_nats
from bora_sweep.model.linear_cross_entropy import linear_nll, workspace

SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 2,
}  # fmt: skip
NOT_LINEAR = {
    "capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL)),
    "scaled": lambda: CohereForCausalLM(CohereConfig(**SMALL)),
}


@given(st.integers(1, 4), st.integers(2, 8), st.integers(2, 9), st.integers(0, 10_000))
@settings(deadline=None)
def test_nll_is_the_sum_of_log_probabilities_of_the_documents_tokens(rows, longest, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    logits_BTV = torch.randn(rows, longest, vocabulary, generator=generator, dtype=torch.float64)
    tokens_BT = torch.randint(vocabulary, (rows, longest), generator=generator)
    length_B = torch.randint(2, longest + 1, (rows,), generator=generator)
    expected = [
        -sum(torch.log_softmax(logits_BTV[b, i], -1)[tokens_BT[b, i + 1]] for i in range(int(length_B[b]) - 1))
        for b in range(rows)
    ]
    scored_BT = scored_until(length_B, longest)
    torch.testing.assert_close(nll_nats(logits_BTV, tokens_BT, scored_BT), torch.stack(expected))


def test_bfloat16_logits_are_summed_in_float32():
    logits_BTV = torch.randn(2, 50, 9).bfloat16()
    tokens_BT, scored_BT = torch.randint(9, (2, 50)), scored_until(torch.tensor([50, 20]), 50)
    assert torch.equal(nll_nats(logits_BTV, tokens_BT, scored_BT), nll_nats(logits_BTV.float(), tokens_BT, scored_BT))


@given(st.integers(1, 40), st.booleans(), st.integers(1, 16), st.integers(0, 10_000))
@settings(deadline=None)
def test_a_loss_in_chunks_equals_the_plain_loss_and_its_gradient(positions, with_bias, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(6, 9, bias=with_bias, dtype=torch.float64).requires_grad_(False)
    hidden_MH = torch.randn(positions, 6, generator=generator, dtype=torch.float64).requires_grad_()
    target_M = torch.randint(9, (positions,), generator=generator)
    weight_M = torch.randn(positions, generator=generator, dtype=torch.float64)
    plain_M = F.cross_entropy(head(hidden_MH), target_M, reduction="none")
    (expected_MH,) = torch.autograd.grad((weight_M * plain_M).sum(), hidden_MH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(linear_cross_entropy.CHUNK, "cpu", chunk)
        chunked_M = linear_nll(hidden_MH, head, target_M)
    (gradient_MH,) = torch.autograd.grad((weight_M * chunked_M).sum(), hidden_MH)
    torch.testing.assert_close(chunked_M, plain_M, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient_MH, expected_MH, rtol=1e-12, atol=1e-12)


def test_a_loss_in_chunks_takes_bfloat16_and_sums_in_float32():
    head = nn.Linear(64, 200, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    hidden_MH = torch.randn(300, 64).bfloat16().requires_grad_()
    target_M = torch.randint(200, (300,))
    nll_M = linear_nll(hidden_MH, head, target_M)
    plain_M = F.cross_entropy(head(hidden_MH).float(), target_M, reduction="none")
    torch.testing.assert_close(nll_M, plain_M, rtol=1e-6, atol=1e-6)
    nll_M.sum().backward()
    exact_MH = hidden_MH.detach().float().requires_grad_()
    F.cross_entropy(F.linear(exact_MH, head.weight.float()), target_M, reduction="sum").backward()
    error = (hidden_MH.grad.float() - exact_MH.grad).norm() / exact_MH.grad.norm()
    assert hidden_MH.grad.dtype == torch.bfloat16
    assert error < 0.01  # 8 bits: 1 / 256 for each number


@pytest.mark.parametrize("first", [(9, 20, torch.float64), (4, 12, torch.float64), (9, 12, torch.float32)])
def test_the_memory_of_one_loss_is_reused_by_the_next(first, monkeypatch):
    """After a head with another vocabulary, fewer positions or another precision; and equal requests share memory."""
    monkeypatch.setattr(linear_cross_entropy, "_reused", threading.local())
    wanted = (9, 12, torch.float64)
    for rows, columns, dtype in (first, wanted):
        space_CV = workspace(rows, columns, dtype, torch.device("cpu"))
        assert (*space_CV.shape, space_CV.dtype) == (rows, columns, dtype)
    assert workspace(*wanted, torch.device("cpu")).data_ptr() == space_CV.data_ptr()


def test_rows_with_only_a_start_symbol_have_no_loss():
    base = make_base("opt")
    layout = make_layout(base, LoraConfig(rank=2, target_modules="all-linear"))
    hierarchy = Hierarchy(layout.initial(base, 0, torch.float64), num_tasks=2, tau=10.0, parametrization="noncentered")
    likelihood = Likelihood(AdaptedModel(base, layout), [hierarchy])
    (nll_B,) = likelihood(torch.tensor([[2], [2]]), torch.tensor([], dtype=torch.int64), torch.tensor([0, 1]))
    nll_B.sum().backward()
    assert torch.equal(nll_B, torch.zeros(2, dtype=torch.float64))
    assert not hierarchy.task_KP.grad.any()


@pytest.mark.parametrize("readable", [{"cpu"}, set()])
@pytest.mark.parametrize("nats", [80.0, 86.0, 88.0, 95.0, 102.0, 104.0, 500.0, 1e6])
def test_nats_are_exact_where_the_probability_underflows(nats, readable, monkeypatch):
    """float32 has full precision down to 1e-38, and fewer digits down to 1e-45."""
    monkeypatch.setattr(linear_cross_entropy, "READABLE", readable)
    head = nn.Linear(2, 3, bias=True).requires_grad_(False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]]))
        head.bias.zero_()
    hidden_MH = torch.tensor([[nats, 0.0], [0.3, 0.1], [2.0, nats]], requires_grad=True)
    target_M = torch.tensor([1, 0, 2])
    nll_M = linear_nll(hidden_MH, head, target_M)
    nll_M.sum().backward()
    exact_MH = hidden_MH.detach().double().requires_grad_()
    expected_M = F.cross_entropy(F.linear(exact_MH, head.weight.double()), target_M, reduction="none")
    expected_M.sum().backward()
    torch.testing.assert_close(nll_M.double(), expected_M, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(hidden_MH.grad.double(), exact_MH.grad, rtol=1e-6, atol=1e-6)


class Reads(TorchDispatchMode):
    """Counts the numbers that the program looks at within, for each of which it would wait on a GPU."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("readable", "reads"), [({"cpu"}, 1), (set(), 0)])
def test_the_loss_looks_at_no_number_where_the_program_would_wait_for_it(readable, reads, monkeypatch):
    monkeypatch.setattr(linear_cross_entropy, "READABLE", readable)
    head = nn.Linear(6, 9).requires_grad_(False)
    with Reads() as found:
        linear_nll(torch.randn(20, 6, requires_grad=True), head, torch.arange(20) % 9).sum().backward()
    assert found.count == reads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_under_autocast_the_loss_is_that_of_the_operations_it_stands_for(dtype):
    head = nn.Linear(32, 100, dtype=dtype).requires_grad_(False)
    hidden_MH, target_M = torch.randn(40, 32, dtype=dtype, requires_grad=True), torch.randint(100, (40,))
    with torch.autocast("cpu", torch.bfloat16):
        nll_M = linear_nll(hidden_MH, head, target_M)
        logits_MV = head(hidden_MH)
    plain_M = F.cross_entropy(logits_MV.to(nll_M.dtype), target_M, reduction="none")
    (gradient_MH,), (expected_MH,) = (torch.autograd.grad(loss.sum(), hidden_MH) for loss in (nll_M, plain_M))
    torch.testing.assert_close(nll_M, plain_M, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_MH, expected_MH, rtol=0.02, atol=0.02 if dtype != torch.float64 else 1e-12)
    assert nll_M.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("family", [*FAMILIES, *NOT_LINEAR])
def test_the_likelihood_equals_that_of_the_bases_own_logits(family):
    """Both where a linear head alone makes the logits, and where they are capped or scaled after it."""
    torch.manual_seed(0)
    base = make_base(family) if family in FAMILIES else NOT_LINEAR[family]().double()
    layout = make_layout(base, LoraConfig(rank=2, target_modules="all-linear"))
    hierarchy = Hierarchy(layout.initial(base, 0, torch.float64), num_tasks=3, tau=10.0, parametrization="noncentered")
    nn.init.normal_(hierarchy.task_KP, std=0.3)
    nn.init.normal_(hierarchy.mean_P, std=0.3)
    adapted = AdaptedModel(base, layout)
    tokens_BT = torch.randint(VOCABULARY, (5, 9))
    scored_BT, task_B = torch.rand(5, 9) < 0.4, torch.tensor([0, 1, 2, 2, 0])
    scored_BT[:, 0] = scored_BT[1] = False  # a row may have nothing that is scored
    place_M = scored_BT.flatten().nonzero().squeeze(1)
    plain_B = nll_nats(adapted(tokens_BT, hierarchy.theta_BP(task_B)), tokens_BT, scored_BT)
    expected = torch.autograd.grad(plain_B.sum(), list(hierarchy.parameters()))
    nll_B = Likelihood(adapted, [hierarchy])(tokens_BT, place_M, task_B)[0]
    gradients = torch.autograd.grad(nll_B.sum(), list(hierarchy.parameters()))
    assert (adapted.head is None) == (family in NOT_LINEAR)
    torch.testing.assert_close(nll_B, plain_B, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", *NOT_LINEAR])
def test_no_logits_are_made_where_nothing_is_scored(family, monkeypatch):
    """A linear head sees the scored positions alone; any other the columns in which some row is scored."""
    torch.manual_seed(0)
    base = make_base(family) if family in FAMILIES else NOT_LINEAR[family]().double()
    layout = make_layout(base, LoraConfig(rank=2, target_modules=["q_proj"]))
    hierarchy = Hierarchy(layout.initial(base, 0, torch.float64), num_tasks=2, tau=10.0, parametrization="noncentered")
    likelihood, seen = Likelihood(AdaptedModel(base, layout), [hierarchy]), []
    linear = F.linear
    monkeypatch.setattr(
        F, "linear", lambda x, w, b=None: seen.append((x.shape[:-1].numel(), len(w))) or linear(x, w, b)
    )
    monkeypatch.setattr(torch, "mm", lambda x, y, **out: seen.append((len(x), y.shape[1])) or torch.matmul(x, y, **out))
    scored_BT = torch.zeros(4, 12, dtype=torch.bool)
    scored_BT[:, 9:11], scored_BT[0, 4] = True, True
    place_M = scored_BT.flatten().nonzero().squeeze(1)
    likelihood(torch.randint(VOCABULARY, (4, 12)), place_M, torch.tensor([0, 1, 1, 0]))
    assert sum(rows for rows, columns in seen if columns == VOCABULARY) == (9 if family == "llama" else 4 * 3)
