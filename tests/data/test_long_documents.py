"""Long documents: what cutting loses is said, and with chunks each token is scored once, after what it may see."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from chats import CHATML, LLAMA_3, make_byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from bora_sweep.cli import main
from bora_sweep.config import DataConfig, load_config
from bora_sweep.data.corpus import Corpus, load_corpus
from bora_sweep.data.describe import example
from bora_sweep.data.encode import Encoder
from bora_sweep.data.tokens import TokenizedCorpus, token_notes, tokenize, tokenize_for
from bora_sweep.errors import InputError

WORDS, BYTES, LLAMA = make_tokenizer(), make_byte_tokenizer(CHATML), make_byte_tokenizer(LLAMA_3)
WHOLE = 100_000
FORMS = {
    "text": (WORDS, DataConfig()),
    "text after a prompt": (WORDS, DataConfig(prompt="w1 {task}")),
    "prompt": (WORDS, DataConfig()),
    "conversation": (BYTES, DataConfig()),
    "conversation with a start symbol": (LLAMA, DataConfig()),
    "last turn": (BYTES, DataConfig(loss_on="last_assistant")),
    "all turns": (BYTES, DataConfig(loss_on="all")),
}


def corpus_of(form: str, lengths: list[int]) -> Corpus:
    """Documents of these lengths: of texts, of prompts and answers, of user and assistant in turns."""
    words = [" ".join(f"w{(3 * n + i) % 40}" for i in range(length)) for n, length in enumerate(lengths)]
    frame = pd.DataFrame({"task": "a", "split": "train", "floor_nll_nats": 5.0, "text": words, "content": None})
    if form == "prompt":
        pairs = list(zip(words, [*words[1:], words[0]], strict=True))
        frame["text"], frame["content"] = [b for _, b in pairs], [{"prompt": a} for a, _ in pairs]
        frame["prompt"] = [a for a, _ in pairs]
    elif form != "text" and form != "text after a prompt":
        turns = [{"role": ("user", "assistant")[n % 2], "content": f"{n} {text}"} for n, text in enumerate(words)]
        turns = turns[: len(turns) // 2 * 2] or [*turns, {"role": "assistant", "content": "w1"}]
        frame = frame.iloc[:1].assign(content=[{"messages": turns, "num_given": None}], prompt="")
    return Corpus("made", ("a",), frame.assign(document_id=[str(n) for n in range(len(frame))]), ())


def sequence(corpus: TokenizedCorpus, c: int) -> tuple[list[int], list[bool]]:
    where = slice(corpus.offsets[c], corpus.offsets[c + 1])
    return corpus.tokens[where].tolist(), corpus.scored[where].tolist()


def contexts(corpus: TokenizedCorpus, n: int) -> list[tuple[list[int], int]]:
    """Each scored token of a document, after the tokens that it is predicted from."""
    found = []
    for c in np.flatnonzero(corpus.document_of(np.arange(len(corpus.offsets) - 1)) == n):
        tokens, scored = sequence(corpus, c)
        found += [(tokens[:i], tokens[i]) for i in np.flatnonzero(scored)]
    return found


def wanted(tokens: list[int], scored: list[bool], start: int, most: int, overlap: int) -> list[tuple[list[int], int]]:
    """The same by definition: the window of a place beyond the first `most` begins `overlap` before its new part."""
    pairs = []
    for place in np.flatnonzero(scored).tolist():
        if place < most:
            pairs.append((tokens[:place], tokens[place]))
        else:
            room = most - start - overlap
            new = most + (place - most) // room * room
            pairs.append((tokens[:start] + tokens[new - overlap : place], tokens[place]))
    return pairs


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_each_scored_token_is_scored_once_in_order_after_its_window(data):
    form = data.draw(st.sampled_from(list(FORMS)))
    tokenizer, config = FORMS[form]
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    most = data.draw(st.integers(4, 60))
    overlap = data.draw(st.integers(1, most - 2))
    corpus = corpus_of(form, lengths)
    whole = tokenize(corpus, tokenizer, WHOLE, data=config)
    made = tokenize(corpus, tokenizer, most, overlap=overlap, data=config)
    prepended = Encoder(tokenizer).prepended
    assert made.longest <= most
    assert made.documents["num_tokens"].tolist() == whole.documents["num_tokens"].tolist()
    assert made.documents["floor_nll_nats"].tolist() == whole.documents["floor_nll_nats"].tolist()
    assert (made.cut_token_fraction, made.documents["was_cut"].any()) == (0, False)
    for n in range(len(whole.documents)):
        tokens, scored = sequence(whole, n)
        start = len(prepended) if tokens[: len(prepended)] == prepended else 0
        assert contexts(made, n) == wanted(tokens, scored, start, most, overlap)
        assert made.scored_places(n).tolist() == np.flatnonzero(scored).tolist()
    for c in range(len(made.offsets) - 1):
        _, scored = sequence(made, c)
        assert (scored[0], scored[-1]) == (False, True)
    assert made.num_tokens_C.sum() == made.num_tokens("train") == whole.num_tokens("train")
    summed = made.sum_by_document(np.stack([made.num_tokens_C, np.ones_like(made.num_tokens_C)]))
    assert summed[0].tolist() == whole.documents["num_tokens"].tolist()
    assert summed[1].sum() == len(made.sequences("train")) == len(made.offsets) - 1


@given(st.sampled_from(list(FORMS)), st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_where_no_document_is_longer_chunks_are_what_is_cut(form, lengths, overlap):
    tokenizer, config = FORMS[form]
    corpus = corpus_of(form, lengths)
    longest = max(tokenize(corpus, tokenizer, WHOLE, data=config).longest, overlap + 2)
    cut = tokenize(corpus, tokenizer, longest, data=config)
    made = tokenize(corpus, tokenizer, longest, overlap=overlap, data=config)
    for name in ("tokens", "scored", "offsets", "task_C", "num_tokens_C"):
        assert getattr(made, name).tolist() == getattr(cut, name).tolist()
    pd.testing.assert_frame_equal(made.documents, cut.documents)
    assert made.notes == cut.notes


def test_chunks_of_a_text_by_hand():
    corpus = corpus_of("text", [9, 2])
    made = tokenize(corpus, WORDS, 6, overlap=2)
    ids, end = WORDS.convert_tokens_to_ids([f"w{i}" for i in range(9)]), WORDS.eos_token_id
    assert [sequence(made, c)[0] for c in range(3)] == [
        [end, *ids[:5]], [end, *ids[3:5], *ids[5:8]], [end, *ids[6:8], ids[8], end]
    ]  # fmt: skip
    assert [sequence(made, c)[1].count(True) for c in range(3)] == [5, 3, 2]
    assert made.chunks is not None
    assert made.chunks.document_C.tolist() == [0, 0, 0, 1]
    assert made.notes == ("1 document longer than model.max_tokens=6 read as 3 chunks",)
    shown = example(made, WORDS, in_color=False).plain
    assert shown.startswith("chunk 1 of 3 of document '0' of task 'a' as tokens, 5 of 6 scored")


def test_a_prompt_that_fills_the_first_chunks_is_context_and_its_answer_is_scored():
    corpus = corpus_of("prompt", [30, 3, 30])
    made = tokenize(corpus, WORDS, 8, overlap=3)
    assert made.documents["num_tokens"].tolist() == [4, 31, 31]
    assert made.chunks is not None
    assert (made.chunks.document_C == 0).sum() <= 2  # of nine windows
    assert len(tokenize(corpus, WORDS, 8).documents) == 1


def test_a_window_without_room_is_refused():
    with pytest.raises(InputError, match=r"model\.chunk_overlap=7: with 1 tokens .* model\.max_tokens=8; lower it"):
        tokenize(corpus_of("text", [9]), WORDS, 8, overlap=7)


def test_what_cutting_loses_is_said_with_its_mend():
    corpus = corpus_of("text", [18, 8, 2])  # 20, 10 and 4 tokens
    cut = tokenize(corpus, WORDS, 10)
    assert cut.cut_token_fraction == pytest.approx(10 / 34)
    (note,) = token_notes(cut)
    assert note.startswith("1 document longer than model.max_tokens=10 cut: 29.4% of all tokens are lost; ")
    assert "model.long_documents=chunk" in note
    assert "a larger model.max_tokens" in note
    prompts = corpus_of("prompt", [30, 3, 3])  # 35, 8, 35 tokens; the first is left out, the last cut
    found = tokenize(prompts, WORDS, 8)
    assert found.cut_token_fraction == pytest.approx((35 + 27) / 78)
    assert any(
        note.startswith("2 documents longer than model.max_tokens=8 cut or left out: 79.5%") for note in found.notes
    )
    assert tokenize(corpus, WORDS, 20).cut_token_fraction == 0


def test_equal_documents_in_train_and_test_are_noted_whatever_their_chunks():
    corpus = corpus_of("text", [30, 20, 30])
    frame = corpus.documents.assign(split=["train", "validation", "test"])
    frame.loc[2, "text"] = frame.loc[0, "text"]
    notes = token_notes(tokenize(Corpus("made", ("a",), frame, ()), WORDS, 8, overlap=2))
    assert "1 document of validation and test with the same tokens as a training document" in notes


def rows(longest: int) -> list[dict]:
    """Prompts with answers of unlike lengths."""
    return [
        {"task": task, "prompt": " ".join(["w1"] * (1 + n % 3)) + f" w{n}", "completion": " ".join(["w9"] * length)}
        for n in range(12)
        for task in ("ann", "bob")
        for length in [1 + (5 * n) % longest]
    ]


def read(lines: list[dict], folder, **sections: Any) -> TokenizedCorpus:
    (folder / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = load_config([{"metrics": ["rouge_l"], "data": {"path": str(folder / "x.jsonl")}, **sections}])
    return tokenize_for(config, load_corpus(config.data), WORDS)


def test_the_answers_of_metrics_are_whole_though_their_tokens_are_in_chunks(tmp_path):
    whole = read(rows(20), tmp_path, model={"max_tokens": 64}).references
    made = read(rows(20), tmp_path, model={"max_tokens": 8, "long_documents": "chunk"})
    found = made.references
    assert whole is not None
    assert found is not None
    assert len(made.offsets) - 1 > len(made.documents)
    assert (found.text_N, found.given_N.tolist()) == (whole.text_N, whole.given_N.tolist())
    assert found.document_N.tolist() == whole.document_N.tolist()


def test_an_answer_after_a_prompt_of_several_chunks_is_refused_by_metrics_alone(tmp_path):
    lines = [{**row, "prompt": f"{row['prompt']} w3 w4 w5 w6 w7"} for row in rows(4)]
    chunk = {"max_tokens": 7, "long_documents": "chunk"}
    with pytest.raises(
        InputError, match=r"model\.long_documents=chunk: \d+ documents of validation and test with"
    ) as told:
        read(lines, tmp_path, model=chunk)
    assert "Raise model.max_tokens" in str(told.value)
    made = read(lines, tmp_path, model=chunk, metrics=[])
    assert len(made.documents) == 24


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["model.chunk_overlap=4"], "model.chunk_overlap=4: model.long_documents=cut makes no chunks"),
        (["model.long_documents=chunk", "model.chunk_overlap=127"], "model.chunk_overlap=127: need 1 to 126"),
        (["model.long_documents=chunk", "model.max_text_tokens=9"], "model.max_text_tokens=9 goes"),
        (["model.long_documents=chunk", "data.truncate=prompt"], "data.truncate=prompt goes"),
        (["model.long_documents=chunk", "train.likelihood=documents"], "train.likelihood=documents"),
        (["model.long_documents=chunk", "train.padding=scored"], "train.padding=scored"),
        (["model.long_documents=chunk", "train.batches=fixed"], "train.batches=fixed"),
        (["model.long_documents=chunk", "train.reported=best_epochs"], "train.reported=best_epochs"),
        (
            ["protocol=published_code", "model.long_documents=chunk"],
            "model.max_text_tokens=118, train.likelihood=documents, train.padding=scored, train.batches=fixed, "
            "train.reported=best_epochs",
        ),
    ],
)
def test_what_goes_with_whole_documents_alone_is_refused_with_chunks(options, says):
    with pytest.raises(InputError) as told:
        load_config(options)
    assert says in str(told.value)
    assert "model.long_documents" in str(told.value) or "max_tokens" in str(told.value)


def test_an_overlap_of_nothing_is_refused():
    with pytest.raises(InputError, match=r"model\.chunk_overlap=0: need at least 1, or null"):
        load_config(["model.long_documents=chunk", "model.chunk_overlap=0"])


def test_the_overlap_is_a_quarter_where_it_is_left_out():
    assert load_config([]).model.overlap is None
    for most, overlap in ((3, 1), (128, 32), (1000, 250)):
        assert load_config(["model.long_documents=chunk", f"model.max_tokens={most}"]).model.overlap == overlap


def test_a_corpus_is_described_with_what_is_lost_and_what_is_not(corpus_file, model_folder, capsys):
    shown = {}
    for how in ("cut", "chunk"):
        options = [f"data.path={corpus_file}", f"model.name={model_folder}", "model.max_tokens=7"]
        assert main(["data", "describe", *options, f"model.long_documents={how}"]) == 0
        shown[how] = " ".join(capsys.readouterr().out.split())
    assert "of all tokens are lost; model.long_documents=chunk keeps them all" in shown["cut"]
    assert "longer than model.max_tokens=7 read as" in shown["chunk"]
    assert "lost" not in shown["chunk"]
