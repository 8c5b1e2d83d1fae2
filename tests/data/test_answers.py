"""The answers that metrics compare with: references, and candidates with the tokens that a model would generate."""

import json

import pytest
from chats import CHATML, make_byte_tokenizer
from tiny import make_tokenizer

from bora_sweep.config import load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import tokenize_for
from bora_sweep.errors import InputError

LABELS = ["w5", "w6 w7", "w8"]


def rows(number: int = 12) -> list[dict]:
    return [
        {"task": task, "prompt": f"w{n} w1", "completion": LABELS[(n + k) % 3]}
        for n in range(number)
        for k, task in enumerate(("ann", "bob"))
    ]


def talks(number: int = 12) -> list[dict]:
    def turns(row: dict) -> list[dict]:
        return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]

    return [{"task": row["task"], "messages": turns(row)} for row in rows(number)]


def corpus_of(lines: list[dict], folder, tokenizer=None, **sections):
    (folder / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"path": str(folder / "x.jsonl"), **sections.pop("data", {})}
    config = load_config([{"metrics": ["accuracy"], "model": {"max_tokens": 64}, "data": data, **sections}])
    return tokenize_for(config, load_corpus(config.data), tokenizer or make_tokenizer())


def test_the_references_are_the_completions_of_validation_and_test(tmp_path):
    corpus, tokenizer = corpus_of(rows(), tmp_path), make_tokenizer()
    found = corpus.references
    assert corpus.documents["split"].iloc[found.document_N].tolist() == [
        s for s in corpus.documents["split"] if s != "train"
    ]
    for n, given, text, choices, tokens in zip(
        found.document_N, found.given_N, found.text_N, found.choices_N, found.choice_tokens_N, strict=True
    ):
        sequence = corpus.tokens[corpus.offsets[n] : corpus.offsets[n + 1]].tolist()
        assert given == 3
        assert choices == tuple(LABELS)
        assert tuple(sequence[given:]) == tokens[choices.index(text)]
        assert tokenizer.decode(sequence[given:-1]) == text
    assert len({id(tokens) for tokens in found.choice_tokens_N}) == 1
    assert found.end_tokens == (tokenizer.eos_token_id,)


def test_an_answer_is_what_the_template_writes(tmp_path):
    found = corpus_of(rows(), tmp_path, data={"template": "w9 {completion} {prompt}"}).references
    assert set(found.choices_N[0]) == {f"w9 {label} {prompt}" for label in LABELS for prompt in (found.text_N[0][-5:],)}
    assert found.text_N[0] in found.choices_N[0]


@pytest.mark.parametrize("loss_on", ["assistant", "last_assistant"])
def test_of_a_conversation_it_is_the_last_turn(tmp_path, loss_on):
    lines = talks()
    for n, line in enumerate(lines[::3]):  # each begins otherwise, else one split would have them all
        begins = [{"role": "user", "content": f"a{n}"}, {"role": "assistant", "content": "b"}]
        line["messages"] = [*begins, *line["messages"]]
    tokenizer = make_byte_tokenizer(CHATML)
    corpus = corpus_of(lines, tmp_path, tokenizer, data={"loss_on": loss_on})
    found = corpus.references
    assert set(found.text_N) <= set(LABELS)
    assert set(found.choices_N) == {tuple(LABELS)}
    end, turns = tokenizer.convert_tokens_to_ids("<|im_end|>"), []
    for n, given, text, tokens in zip(
        found.document_N, found.given_N, found.text_N, found.choice_tokens_N, strict=True
    ):
        sequence = corpus.tokens[corpus.offsets[n] : corpus.offsets[n + 1]].tolist()
        assert tuple(sequence[given:]) == tokens[LABELS.index(text)]
        assert all(choice[-1] == end for choice in tokens)
        prompt = str(tokenizer.decode(sequence[:given]))
        assert prompt.endswith("<|im_start|>assistant\n")
        turns.append(prompt.count("<|im_start|>assistant"))
    assert set(turns) == {1, 2}
    assert found.end_tokens == (tokenizer.eos_token_id, end)


def test_candidates_of_a_row(tmp_path):
    lines = [{**row, "choices": [row["completion"], "w30", f"w3{n % 9}"]} for n, row in enumerate(rows())]
    lines = [line for line in lines if len(set(line["choices"])) == 3]
    found = corpus_of(lines, tmp_path, data={"choices_column": "choices"}).references
    assert {choices[1] for choices in found.choices_N} == {"w30"}
    assert all(text == choices[0] for text, choices in zip(found.text_N, found.choices_N, strict=True))


def test_a_conversation_whose_last_turn_is_cut_off_has_no_answer(tmp_path):
    lines = talks()
    begins = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for n, line in enumerate(lines[::3]):
        line["messages"] = [*begins, {"role": "user", "content": f"{n}{'c' * 80}"}, line["messages"][-1]]
    tokenizer = make_byte_tokenizer(CHATML)
    corpus = corpus_of(lines, tmp_path, tokenizer, model={"max_tokens": 90}, data={"keep_together": "document"})
    pairs = zip(corpus.documents["split"], corpus.documents["was_cut"], strict=True)
    cut_of = {n: was_cut for n, (split, was_cut) in enumerate(pairs) if split != "train"}
    assert any(cut_of.values())
    assert set(corpus.references.document_N) == {n for n, was_cut in cut_of.items() if not was_cut}


def test_what_has_no_answers_is_refused(tmp_path):
    texts = [{"task": row["task"], "text": row["completion"]} for row in rows()]
    for lines, options, says in (
        (
            texts,
            {},
            "running text have no answer",
        ),
        ([{**row, "completion": f"w{n % 40} w{n}"} for n, row in enumerate(rows(200))], {}, "more than 64"),
        ([{**row, "completion": "w5"} for row in rows()], {}, "one distinct completion alone"),
        (
            [{**row, "completion": row["completion"] if n else "w33"} for n, row in enumerate(rows())],
            {},
            "is not among its 3",
        ),
        (talks(), {"data": {"loss_on": "all"}}, "data.loss_on=all scores what the user says"),
    ):
        tokenizer = make_byte_tokenizer(CHATML) if "messages" in lines[0] else None
        seeds = range(8) if "not among" in says else [0]
        refused = []
        for seed in seeds:  # in one of these splits the row with a label of its own is held out
            data = {"seed": seed, **options.get("data", {})}
            try:
                corpus_of(lines, tmp_path, tokenizer, data=data)
            except InputError as error:
                refused.append(str(error))
        assert refused
        assert all(says in message for message in refused)
