"""Some tasks of a corpus are the corpus that their documents alone would make."""

import numpy as np
import pandas as pd
import pytest
from tiny import make_frame, make_tokenizer

from bora_sweep.data.corpus import Corpus
from bora_sweep.data.some_tasks import some_tasks
from bora_sweep.data.tokens import TokenizedCorpus, tokenize

FIELDS = ["tokens", "scored", "offsets"]


def corpus_of(frame: pd.DataFrame, overlap: int | None) -> TokenizedCorpus:
    tasks = tuple(frame["task"].unique())
    return tokenize(Corpus("made", tasks, frame, ()), make_tokenizer(), max_tokens=8, overlap=overlap)


@pytest.mark.parametrize("overlap", [None, 2], ids=["cut", "chunks"])
def test_it_is_the_corpus_of_their_documents(overlap):
    """Also where long documents are several sequences; in the corpus's order, whatever order is asked for."""
    frame = make_frame({"a": 5, "b": 6, "c": 4, "d": 7}).sample(frac=1, random_state=0).sort_values("task")
    frame["split"] = np.resize(["train", "validation", "test"], len(frame))
    names = [str(i) for i in range(len(frame))]
    frame = frame.assign(content=None, document_id=names, floor_nll_nats=np.nan).reset_index(drop=True)
    own = frame["task"].isin(["b", "d"])
    for splits in (None, ["validation", "test"]):
        kept = frame[own if splits is None else own & frame["split"].isin(splits)].reset_index(drop=True)
        got, expected = some_tasks(corpus_of(frame, overlap), [3, 1], splits), corpus_of(kept, overlap)
        assert got.tasks == expected.tasks == ("b", "d")
        pd.testing.assert_frame_equal(got.documents, expected.documents)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
        if overlap is not None:
            assert len(got.offsets) - 1 > len(got.documents)
            np.testing.assert_array_equal(got.chunks.document_C, expected.chunks.document_C)
            np.testing.assert_array_equal(got.chunks.shift_C, expected.chunks.shift_C)
