"""Eq. 4: what is summed."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_sweep.model.objective import nll_nats


@given(st.integers(1, 4), st.integers(2, 8), st.integers(2, 9), st.integers(0, 10_000))
@settings(deadline=None)
def test_nll_is_the_sum_of_log_probabilities_of_the_document_s_own_tokens(rows, longest, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    logits_BTV = torch.randn(rows, longest, vocabulary, generator=generator, dtype=torch.float64)
    tokens_BT = torch.randint(vocabulary, (rows, longest), generator=generator)
    length_B = torch.randint(2, longest + 1, (rows,), generator=generator)
    expected = [
        -sum(torch.log_softmax(logits_BTV[b, i], -1)[tokens_BT[b, i + 1]] for i in range(int(length_B[b]) - 1))
        for b in range(rows)
    ]
    torch.testing.assert_close(nll_nats(logits_BTV, tokens_BT, length_B), torch.stack(expected))


def test_bfloat16_logits_are_summed_in_float32():
    logits_BTV = torch.randn(2, 50, 9).bfloat16()
    tokens_BT, length_B = torch.randint(9, (2, 50)), torch.tensor([50, 20])
    assert torch.equal(nll_nats(logits_BTV, tokens_BT, length_B), nll_nats(logits_BTV.float(), tokens_BT, length_B))
