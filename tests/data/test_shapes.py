"""Rows of four shapes: how they are recognised, read, split and cut, and what is refused with one message."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from chats import CHATML, make_byte_tokenizer
from datasets import Dataset
from tiny import make_tokenizer

from bora_sweep.config import DataConfig, load_config
from bora_sweep.data.corpus import Corpus, load_corpus
from bora_sweep.data.describe import describe, example
from bora_sweep.data.known_documents import write_documents
from bora_sweep.data.tokens import TokenizedCorpus, tokenize
from bora_sweep.errors import InputError

TALK = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]


def prompts(number: int = 12, tasks: Sequence[str] = ("ann", "bob")) -> pd.DataFrame:
    rows = [{"task": task, "prompt": f"w{n} w1", "completion": f"w{n} w2"} for n in range(number) for task in tasks]
    return pd.DataFrame(rows)


def talks(number: int = 12) -> list[dict]:
    return [
        {
            "task": task,
            "messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{task}{n}"}],
        }
        for n in range(number)
        for task in ("ann", "bob")
    ]


def write(rows: pd.DataFrame | list[dict], path: Path) -> Path:
    rows = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        Dataset.from_list(rows).to_parquet(str(path))
    return path


def load(path: Path, **data: object) -> Corpus:
    return load_corpus(load_config([{"data": {"path": str(path), **data}}]).data)


def refusal(path: Path, **data: object) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def document(corpus: TokenizedCorpus, n: int) -> tuple[list[int], list[bool]]:
    where = slice(corpus.offsets[n], corpus.offsets[n + 1])
    return corpus.tokens[where].tolist(), corpus.scored[where].tolist()


# Shapes and formats


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_prompts_and_completions_are_read_from_every_format(tmp_path, suffix):
    corpus = load(write(prompts(), tmp_path / f"x{suffix}"))
    assert corpus.form == "prompt"
    tokenizer = make_tokenizer()
    tokens, scored = document(tokenize(corpus, tokenizer, 64), 0)
    assert tokenizer.convert_ids_to_tokens(tokens) == ["</s>", "w0", "w1", "w0", "w2", "</s>"]
    assert scored == [False] * 3 + [True] * 3


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_conversations_are_read_from_every_format_that_holds_lists(tmp_path, suffix):
    whole = load(write(talks(), tmp_path / f"x{suffix}"))
    halves = [{"task": r["task"], "prompt": r["messages"][:1], "completion": r["messages"][1:]} for r in talks()]
    parts = load(write(halves, tmp_path / f"y{suffix}"))
    assert whole.form == parts.form == "conversation"
    one, two = (tokenize(corpus, make_byte_tokenizer(), 64) for corpus in (whole, parts))
    assert np.array_equal(one.tokens, two.tokens)
    assert np.array_equal(one.scored, two.scored)
    assert one.documents.equals(two.documents)


def test_a_conversation_may_be_json_in_a_text_column(tmp_path):
    as_text = [{**row, "messages": json.dumps(row["messages"])} for row in talks()]
    corpora = [load(write(rows, tmp_path / name)) for rows, name in ((talks(), "a.jsonl"), (as_text, "b.csv"))]
    one, two = (tokenize(corpus, make_byte_tokenizer(), 64) for corpus in corpora)
    assert np.array_equal(one.tokens, two.tokens)


def test_keys_that_other_rows_lack_are_no_part_of_a_conversation(tmp_path):
    """Arrow fills them with null; a chat template must not see them."""
    rows = talks()
    rows[0]["messages"][0]["name"] = "Eve"
    corpus = load(write(rows, tmp_path / "x.parquet"))
    keys = [set(turn) for content in corpus.documents["content"] for turn in content["messages"]]
    assert sorted(map(len, keys)) == [2] * (len(keys) - 1) + [3]


def test_columns_have_the_names_that_the_keys_say(tmp_path):
    renamed = prompts().rename(columns={"prompt": "question", "completion": "answer", "task": "who"})
    path = write(renamed, tmp_path / "x.jsonl")
    corpus = load(path, prompt_column="question", completion_column="answer", task_column="who")
    assert document(tokenize(corpus, make_tokenizer(), 64), 0)[1] == [False] * 3 + [True] * 3
    chats = write([{"task": r["task"], "turns": r["messages"]} for r in talks()], tmp_path / "y.jsonl")
    assert load(chats, messages_column="turns").form == "conversation"


def test_templates_name_any_column_of_the_row(tmp_path):
    frame = prompts().rename(columns={"prompt": "question", "completion": "text"}).assign(year=7)
    path = write(frame, tmp_path / "x.parquet")
    corpus = load(path, prompt="w30 {question} {task}", template="w31 {text}")
    assert corpus.form == "prompt"
    tokenizer = make_tokenizer()
    tokens, scored = document(tokenize(corpus, tokenizer, 64, data=DataConfig(
        prompt="w30 {question} {task}", template="w31 {text}")), 0)  # fmt: skip
    words = ["</s>", "w30", "w0", "w1", "<unk>", "w31", "w0", "w2", "</s>"]
    assert tokenizer.convert_ids_to_tokens(tokens) == words  # the tokenizer's own start symbol comes first
    assert scored == [False] * 5 + [True] * 4
    assert load(path, prompt="{year}: {question}").documents["content"][0] == {"year": "7", "question": "w0 w1"}
    assert "has no column 'yaer'; its columns are " in refusal(path, prompt="{yaer}")
    halves = write(prompts(), tmp_path / "y.parquet")
    assert load(halves, prompt="Q: {prompt}", template=" A: {completion}").form == "prompt"
    for prompt in ("Answer!", "{task}: ", "{year}"):
        message = refusal(write(prompts().assign(year=7), tmp_path / "z.parquet"), prompt=prompt)
        assert "leaves out the prompts, column 'prompt'" in message


def test_a_prompt_and_its_completion_are_encoded_apart(tmp_path):
    """As a server has the prompt alone: no token joins the end of one to the beginning of the other."""
    frame = prompts().assign(prompt=[f"q{n}\n" for n in range(24)], completion="\nyes")
    corpus = tokenize(load(write(frame, tmp_path / "x.jsonl")), make_byte_tokenizer(), 64)
    tokenizer = make_byte_tokenizer()
    tokens, scored = document(corpus, 0)
    given = [token for token, is_scored in zip(tokens, scored, strict=True) if not is_scored]
    assert given == tokenizer("q0\n", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("form", ["prompt", "conversation"])
def test_the_end_of_an_answer_is_learnt_where_the_pad_token_is_the_end_token(tmp_path, form):
    """As in SmolLM2 and Llama: the end token at the end of an answer is scored, and as padding it is not."""
    from bora_sweep.data.batches import collate

    tokenizer = make_byte_tokenizer(CHATML, end="<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = talks() if form == "conversation" else prompts()
    corpus = tokenize(load(write(rows, tmp_path / "x.jsonl")), tokenizer, 96)
    batch = collate(corpus, np.arange(len(corpus.documents)), width=96)
    end = tokenizer.eos_token_id
    for row, length in enumerate(batch.length_B):
        assert batch.tokens_BT[row, length - 1] == end
        assert batch.scored_BT[row, length - 1]
        assert (batch.tokens_BT[row, length:] == end).all()
        assert not batch.scored_BT[row, length:].any()
    assert batch.num_tokens == corpus.documents["num_tokens"].sum() == corpus.scored.sum()


# Splits


def test_equal_prompts_share_a_split(tmp_path):
    frame = pd.concat([prompts(), prompts().assign(completion="w9")], ignore_index=True)
    path = write(frame, tmp_path / "x.jsonl")
    corpus = load(path)
    assert corpus.documents.groupby("prompt")["split"].nunique().max() == 1
    said = str(list(cast(Any, describe(corpus)[-1]).columns[1].cells))
    assert "48 documents share 12 prompts (12 across tasks); equal prompts are in one split" in said
    apart = load(path, keep_together="document")
    prompt = pd.Series([content["prompt"] for content in apart.documents["content"]])
    assert apart.documents.groupby(prompt)["split"].nunique().max() > 1


def test_prompts_that_are_all_equal_say_how_to_split_them(tmp_path):
    path = write(prompts().assign(prompt="w0"), tmp_path / "x.jsonl")
    assert "no document for validation" in refusal(path)
    assert load(path, keep_together="document").documents["split"].nunique() == 3


def test_a_new_answer_to_a_known_question_stays_in_its_split(tmp_path):
    write_documents(tmp_path / "run", load(write(prompts(), tmp_path / "old.jsonl")).record)
    before = load(tmp_path / "old.jsonl").documents.set_index("prompt")["split"].to_dict()
    new = write(prompts(20).assign(completion="w7 w7"), tmp_path / "new.jsonl")
    documents = load(new, split_from=str(tmp_path / "run"), seed=5).documents
    known = documents[documents["prompt"].isin(before)]
    assert len(known) == 24
    assert known["split"].tolist() == [before[prompt] for prompt in known["prompt"]]


@pytest.mark.parametrize("given", [("train", "validation", "test"), ("train", "test"), ("train", "validation")])
def test_a_users_own_splits_are_kept_and_a_missing_one_is_drawn_from_training(tmp_path, given):
    frame = prompts(30)
    frame["fold"] = [given[n // 2 % len(given)] for n in range(len(frame))]
    documents = load(write(frame, tmp_path / "x.jsonl"), split_column="fold").documents
    fold = np.array([frame["fold"].tolist()[int(n)] for n in documents["document_id"]])
    for split in given[1:]:
        assert set(documents["split"].to_numpy()[fold == split]) == {split}
    assert set(documents["split"][fold == "train"]) == {"train", "validation", "test"} - set(given[1:])
    whole = load(tmp_path / "x.jsonl").documents
    assert set(whole["split"]) == {"train", "validation", "test"}


def test_splits_may_be_files_of_their_own(tmp_path):
    train, other = write(prompts(20), tmp_path / "a.jsonl"), write(prompts(5), tmp_path / "b.csv")
    documents = load(train, test_path=str(other)).documents
    assert documents["split"].value_counts().to_dict()["test"] == 10
    assert set(documents["split"]) == {"train", "validation", "test"}
    assert set(documents.loc[documents["split"] == "test", "document_id"]) == {f"test/{n}" for n in range(10)}
    both = load(train, test_path=str(other), validation_path=str(other)).documents
    assert both["split"].value_counts().to_dict() == {"train": 40, "validation": 10, "test": 10}


# Cuts


def test_a_document_without_room_for_its_answer_is_left_out_or_cut_at_the_left_of_its_prompt(tmp_path):
    frame = prompts(12)
    frame.loc[:1, "prompt"] = " ".join(["w5"] * 9)
    corpus = load(write(frame, tmp_path / "x.jsonl"), keep_together="document")
    ends = tokenize(corpus, make_tokenizer(), 8)
    assert len(ends.documents) == 22
    assert [note for note in ends.notes if note.startswith("2 documents whose prompt alone has model.max_tokens=8 or")]
    assert not ends.documents["was_cut"].any()
    kept = tokenize(corpus, make_tokenizer(), 8, data=DataConfig(truncate="prompt"))
    long = corpus.documents["document_id"].tolist().index("0")
    tokens, scored = document(kept, long)
    assert make_tokenizer().convert_ids_to_tokens(tokens) == ["</s>", *["w5"] * 4, "w0", "w2", "</s>"]
    assert scored == [False] * 5 + [True] * 3
    assert kept.documents["was_cut"].sum() == 2
    with pytest.raises(
        InputError, match=r"model\.max_tokens=3: the prompts of all training documents of task 'ann' \(and"
    ):
        tokenize(corpus, make_tokenizer(), 3)


def test_an_answer_that_is_too_long_is_cut_at_its_end_without_an_end_token(tmp_path):
    frame = prompts(12).assign(completion=" ".join(["w3"] * 9))
    corpus = load(write(frame, tmp_path / "x.jsonl"))
    for truncate, given in (("end", 3), ("prompt", 1)):
        made = tokenize(corpus, make_tokenizer(), 8, data=DataConfig(truncate=truncate))
        tokens, scored = document(made, 0)
        assert make_tokenizer().convert_ids_to_tokens(tokens)[given:] == ["w3"] * (8 - given)
        assert scored == [False] * given + [True] * (8 - given)
        assert made.documents["was_cut"].all()


def test_a_document_is_shown_token_by_token_with_what_is_scored(tmp_path):
    corpus = tokenize(load(write(prompts(), tmp_path / "x.jsonl")), make_tokenizer(), 64)
    plain = example(corpus, make_tokenizer(), in_color=False).plain
    assert "3 of 6 scored (in brackets):\n</s>·w" in plain
    assert plain.endswith("·w2·</s>]")
    colored = example(corpus, make_tokenizer(), in_color=True)
    assert sum("green" in str(span.style) for span in colored.spans) == 3


# What is wrong, one message each


def bad(tmp_path: Path, row: dict, **data: object) -> str:
    """The refusal of good rows and one that is not."""
    rows = talks() if "messages" in row else prompts().to_dict("records")
    return refusal(write([*rows, {"task": "ann", **row}], tmp_path / "x.jsonl"), **data)


def test_a_file_of_no_shape_or_of_two(tmp_path):
    path = write([{"task": "a", "speech": "b"}] * 3, tmp_path / "x.jsonl")
    message = refusal(path)
    assert "no column 'text' (data.text_column), no 'prompt' with 'completion'" in message
    assert "The columns are 'task', 'speech'" in message
    both = write([{**row, "text": "x"} for row in talks()], tmp_path / "y.jsonl")
    message = refusal(both)
    assert "its rows could be running text or a conversation" in message
    assert "data.text_column=text or data.messages_column=messages" in message
    assert load(both, messages_column="messages").form == "conversation"
    assert load(both, text_column="text", keep_together="document", split="sample").form == "text"
    assert "name rows of different shapes" in refusal(both, text_column="text", messages_column="messages")


def test_rows_that_are_not_what_their_column_says(tmp_path):
    assert "row 24 (counted from 0): the completion in column 'completion' is empty" in bad(
        tmp_path, {"prompt": "w1", "completion": "  "}
    )
    turn = {"role": "assistant", "content": "x"}
    for messages, says in (
        ([], "is no conversation"),
        ([{"role": "user"}], "turn 0: the content is nothing; it needs text"),
        ([{"content": "x"}, turn], "turn 0: the role is nothing"),
        ([{"role": "", "content": "x"}, turn], 'turn 0: the role is ""'),
        ([{"from": "human", "value": "x"}, turn], "rename them to 'role' and 'content'"),
        ([{"role": "user", "content": [{"type": "image", "url": "u"}]}, turn], "only text is read"),
        ([{"role": "user", "content": "x"}], "no turn of the assistant in column 'messages'"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}], "a turn to learn"),
        (["hello"], "is no message"),
    ):
        message = bad(tmp_path, {"messages": messages})
        assert says in message
        assert "row 24 (counted from 0)" in message
    assert "line 25: 'messages' is \"hello\"" in bad(tmp_path, {"messages": "hello"})
    assert "row 24" in bad(tmp_path, {"messages": None})


def test_prompts_are_texts_or_conversations_and_not_both(tmp_path):
    rows = [{"task": "ann", "prompt": TALK[:1], "completion": "Ann."}] * 3
    assert "column 'prompt' holds lists and 'completion' texts" in refusal(write(rows, tmp_path / "x.jsonl"))
    assert "data.prompt='Q': " in refusal(write(talks(), tmp_path / "y.jsonl"), prompt="Q")


def test_splits_that_are_none(tmp_path):
    frame = prompts().assign(fold=["train"] * 23 + ["dev"])
    path = write(frame, tmp_path / "x.jsonl")
    assert (
        "row 23 (counted from 0): 'dev' in column 'fold' (data.split_column) is no split; write 'validation'"
        in refusal(path, split_column="fold")
    )
    none = write(frame.assign(fold="test"), tmp_path / "y.jsonl")
    assert "no document to train on" in refusal(none, split_column="fold")
    other = write(prompts().rename(columns={"completion": "answer"}), tmp_path / "z.jsonl")
    message = refusal(path, validation_path=str(other))
    assert "validation_path=" in message
    assert "no column 'completion'" in message
    for settings, says in (
        ({"split_column": "fold", "test_path": "z"}, "drop one"),
        ({"split_column": "fold", "split": "sample"}, "gives the splits"),
        ({"split_column": "fold", "split_from": "run"}, "gives the splits"),
    ):
        with pytest.raises(InputError, match=says):
            DataConfig(path="x", **settings)
    with pytest.raises(InputError, match=r"goes with data\.path=FILE"):
        DataConfig(test_path="x")


def test_choices_that_do_not_hold_the_answer(tmp_path):
    frame = prompts()
    frame["choices"] = [[answer, "w9"] for answer in frame["completion"]]
    corpus = load(write(frame, tmp_path / "x.jsonl"), choices_column="choices")
    assert corpus.documents["content"][0]["choices"] == ["w0 w2", "w9"]
    wrong = {
        "do not hold the answer, 'w0 w2'": ["w9", "w8"],
        "no list of two": ["w0 w2"],
        "twice": ["w0 w2", "w0 w2"],
        "list": "w",
    }
    for says, choices in wrong.items():
        rows = frame.to_dict("records")
        rows[0]["choices"] = choices
        message = refusal(write(rows, tmp_path / "y.jsonl"), choices_column="choices")
        assert says in message


def test_keys_of_another_shape_are_refused(tmp_path):
    halves = write(prompts(), tmp_path / "x.jsonl")
    for data, says in (
        ({"loss_on": "all"}, "data.loss_on=all: is for conversations"),
        ({"chat_template": CHATML}, "data.chat_template={% for"),
        ({"template_kwargs": {"a": "b"}}, "data.template_kwargs="),
    ):
        assert says in refusal(halves, **data)
    text = write([{"task": t, "text": f"{t} {n}"} for n in range(6) for t in "ab"], tmp_path / "y.jsonl")
    assert "data.truncate=prompt: is for rows with prompts" in refusal(text, truncate="prompt")


def test_conversations_in_csv_are_json_in_every_column(tmp_path):
    halves = [{"task": r["task"], "prompt": r["messages"][:1], "completion": r["messages"][1:]} for r in talks()]
    as_text = [
        {**row, "prompt": json.dumps(row["prompt"]), "completion": json.dumps(row["completion"])} for row in halves
    ]
    lists, texts = (load(write(rows, tmp_path / name)) for rows, name in ((halves, "a.jsonl"), (as_text, "b.csv")))
    assert texts.form == "conversation"
    one, two = (tokenize(corpus, make_byte_tokenizer(), 64) for corpus in (lists, texts))
    assert np.array_equal(one.tokens, two.tokens)
    as_text[3]["completion"] = "hello"
    assert "row 0 (counted from 0) of column 'completion' holds messages as JSON, and row 3 a text" in refusal(
        write(as_text, tmp_path / "c.csv")
    )


def test_a_role_that_is_spelt_otherwise_is_not_left_unlearnt(tmp_path):
    rows = talks()
    for role, usual in (("Assistant", "assistant"), ("gpt", "assistant"), ("human", "user")):
        rows[2]["messages"][-1 if usual == "assistant" else 0]["role"] = role
        assert f"turn {int(usual == 'assistant')}: the role is \"{role}\"; write '{usual}'" in refusal(
            write(rows, tmp_path / "x.jsonl")
        )


def test_a_prompt_beside_a_text_is_not_dropped(tmp_path):
    path = write(prompts().rename(columns={"completion": "text"}), tmp_path / "x.jsonl")
    assert "has columns 'text' and 'prompt'; if the rows are running text, say so by data.text_column=text" in refusal(
        path
    )
    assert load(path, text_column="text").form == "text"
    assert load(path, prompt="{prompt}").form == "prompt"
