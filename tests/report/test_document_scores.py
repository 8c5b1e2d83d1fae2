"""Scores of the same documents under several trials are matched document by document."""

import math

import numpy as np
import pandas as pd
import pytest

from bora_sweep.errors import InputError
from bora_sweep.report import align_documents


def scores(trial: str = "a", setting: int = 0, shift: float = 0.0) -> pd.DataFrame:
    """`document_scores` of one trial: 3 tasks of 4 test documents."""
    rows = [
        {"task": f"t{d}", "document_id": str(i), "num_tokens": 10 + i, "nll_nats": (10 + i) * (3 + 0.1 * d * i + shift)}
        for d in range(3)
        for i in range(4)
    ]
    return pd.DataFrame(rows).assign(split="test", run="r", trial_id=trial, setting=setting, floor_nll_nats=math.nan)


def test_alignment_forgets_the_order_of_rows():
    both = pd.concat([scores("a", 0), scores("b", 1, shift=0.2)], ignore_index=True)
    straight = align_documents(both, [0, 1])
    mixed = align_documents(both.sample(frac=1, random_state=0), [0, 1])
    for name in ("task_N", "weight_N", "value_NM"):
        np.testing.assert_array_equal(getattr(straight, name), getattr(mixed, name))
    assert straight.of_task("t1").value_NM.shape == (4, 2)
    assert (straight.of_task("t1").task_N == "t1").all()


def test_seeds_of_a_setting_are_pooled_document_by_document():
    rows = pd.concat([scores("a", 0), scores("b", 0, shift=0.2), scores("c", 1, shift=0.1)])
    documents = align_documents(rows, [1, 0])
    np.testing.assert_allclose(documents.value_NM[:, 0], documents.value_NM[:, 1])


def test_documents_that_do_not_match_are_named():
    with pytest.raises(InputError, match=r"r, trial b: document '2' of task 't1' \(test\) has no score"):
        align_documents(pd.concat([scores("a"), scores("b", 1).query("task != 't1' or document_id != '2'")]), [0, 1])
    with pytest.raises(InputError, match=r"r, trial a: document '0' of task 't0' \(test\) is scored twice"):
        align_documents(pd.concat([scores("a"), scores("a").head(1)]), [0])
    longer = scores("b", 1).assign(num_tokens=lambda rows: rows["num_tokens"] + (rows["document_id"] == "3"))
    with pytest.raises(InputError, match=r"document '3' of task 't0' \(test\) has 14 tokens, 13 in trial a"):
        align_documents(pd.concat([scores("a"), longer]), [0, 1])
