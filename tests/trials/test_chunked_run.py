"""Whole runs of documents in chunks: every table is by document, as for the same documents uncut."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from chats import CHATML, make_byte_tokenizer, make_chat_base

import bora_sweep
from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import tokenize_for
from bora_sweep.errors import InputError
from bora_sweep.model.base import load_tokenizer
from bora_sweep.report import align_documents
from bora_sweep.trials.fingerprints import check_unchanged, fingerprints_of

TRAIN = {"max_epochs": 1, "device": "cpu", "batch_size": 16}
SIZES = ["task", "split", "num_documents", "num_tokens"]
OF_DOCUMENTS = ["task", "split", "document_id", "num_tokens"]
MODELS = {
    "uncut": {"max_tokens": 64},
    "chunk": {"max_tokens": 6, "long_documents": "chunk", "chunk_overlap": 2},
    "cut": {"max_tokens": 6},
}


@pytest.fixture(scope="module")
def sections(corpus_file, model_folder) -> dict:
    return {"data": {"path": corpus_file}, "lora": {"rank": 2}, "train": TRAIN, "model": {"name": model_folder}}


def with_model(sections: dict, how: str) -> dict:
    return {**sections, "model": {**sections["model"], **MODELS[how]}}


@pytest.fixture(scope="module")
def results(sections, tmp_path_factory) -> dict[str, bora_sweep.Results]:
    folder = tmp_path_factory.mktemp("runs")
    return {how: bora_sweep.fit(**with_model(sections, how), output=folder / how) for how in MODELS}


def test_all_that_is_read_is_by_document_and_no_token_is_lost(results):
    uncut, chunk = results["uncut"], results["chunk"]
    pd.testing.assert_frame_equal(chunk.task_scores[SIZES], uncut.task_scores[SIZES])
    pd.testing.assert_frame_equal(chunk.document_scores[OF_DOCUMENTS], uncut.document_scores[OF_DOCUMENTS])
    assert not chunk.document_scores.duplicated(["task", "split", "document_id"]).any()
    sums = chunk.document_scores.groupby(["task", "split"])[["nll_nats", "num_tokens"]].sum()
    scored = chunk.task_scores[chunk.task_scores["split"] != "train"].set_index(["task", "split"])
    assert scored["nll_nats"].to_numpy() == pytest.approx(sums["nll_nats"].loc[scored.index].to_numpy(), rel=1e-12)
    assert scored["num_tokens"].tolist() == sums["num_tokens"].loc[scored.index].tolist()
    assert chunk.trials["train_tokens"].item() == uncut.trials["train_tokens"].item()
    assert (chunk.document_scores["nll_nats"] != uncut.document_scores["nll_nats"]).any()


def test_the_run_says_what_cutting_lost(results, sections, tmp_path, capsys):
    lost = {how: of.trials["cut_token_fraction"].item() for how, of in results.items()}
    assert lost["uncut"] == lost["chunk"] == 0
    texts = pd.read_parquet(sections["data"]["path"])["text"].str.split().str.len()
    assert lost["cut"] == pytest.approx((texts - 4).clip(lower=0).sum() / (texts + 2).sum())
    bora_sweep.fit(**with_model(sections, "cut"), output=tmp_path / "run", quiet=False)
    said = " ".join(capsys.readouterr().err.split())
    assert f"cut: {lost['cut']:.1%} of all tokens are lost; model.long_documents=chunk keeps them all" in said
    page = bora_sweep.Report(tmp_path / "run").write().read_text()
    assert f"{lost['cut']:.1%} of all tokens of the data were neither trained on nor scored" in page
    assert "model.long_documents=chunk" in page


def test_the_bootstrap_resamples_documents_not_chunks(results):
    found = {}
    for how in ("uncut", "chunk"):
        test = results[how].document_scores.query("split == 'test'")
        found[how] = align_documents(test.assign(setting=0), settings=[0])
    assert found["chunk"].weight_N.tolist() == found["uncut"].weight_N.tolist()
    assert found["chunk"].task_N.tolist() == found["uncut"].task_N.tolist()
    assert len(found["chunk"].value_NJ) == results["chunk"].task_scores.query("split == 'test'")["num_documents"].sum()
    page = bora_sweep.Report(results["chunk"].trials["run"].item()).write().read_text()
    assert "neither trained on" not in page


def test_a_finished_run_resumes_and_other_chunks_are_other_inputs(sections, tmp_path):
    output = tmp_path / "run"
    first = bora_sweep.fit(**with_model(sections, "chunk"), output=output)
    again = bora_sweep.fit(resume=True, output=output)
    pd.testing.assert_frame_equal(again.document_scores, first.document_scores)
    found = {}
    for how, more in [*((how, {}) for how in MODELS), ("chunk", {"chunk_overlap": 1})]:
        made = with_model(sections, how)
        config = load_config([{**made, "model": {**made["model"], **more}}])
        corpus = load_corpus(config.data)
        tokenized = tokenize_for(config, corpus, load_tokenizer(config.model, config.data))
        found[how, *more] = fingerprints_of(config, corpus, tokenized)
    assert len({prints.tokens for prints in found.values()}) == 4
    with pytest.raises(InputError, match="the same texts now have other tokens"):
        check_unchanged(output, load_config([]), found["cut",], found["chunk",])


def test_conversations_with_long_answers_in_chunks_from_the_command_line(tmp_path):
    tokenizer = make_byte_tokenizer(CHATML)
    make_chat_base("llama", tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rng, lines = np.random.default_rng(0), []
    for n in range(12):
        for task in ("ann", "bob"):
            turns = [f"{n}?", "a" * int(rng.integers(1, 90)), "b" * int(rng.integers(1, 90)), f"{task} {n}"]
            roles = ("user", "assistant", "user", "assistant")
            lines.append(
                {"task": task, "messages": [{"role": r, "content": c} for r, c in zip(roles, turns, strict=True)]}
            )
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flat = [
        f"data.path={tmp_path / 'x.jsonl'}", f"model.name={tmp_path / 'base'}", "lora.rank=2", "train.max_epochs=1",
        "train.device=cpu", "model.long_documents=chunk",
    ]  # fmt: skip
    assert main(["fit", *flat, "model.max_tokens=60", f"output={tmp_path / 'run'}"]) == 0
    found, config = bora_sweep.read_results(tmp_path / "run"), load_config([*flat, "model.max_tokens=300"])
    whole = tokenize_for(config, load_corpus(config.data), tokenizer)  # longer than the model's positions
    assert whole.longest > 64
    assert len(whole.offsets) - 1 == len(whole.documents)
    sizes: Any = found.task_scores[SIZES]
    sizes = sizes.sort_values(["task", "split"], ignore_index=True)
    pd.testing.assert_frame_equal(sizes, whole.table().sort_values(["task", "split"], ignore_index=True))
    assert len(found.document_scores) == (whole.documents["split"] != "train").sum()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_a_sweep_of_chunks_pairs_documents_over_tau(sections, tmp_path: Path):
    search = {"num_trials": 0, "taus": [100, 1000], "pack": 2}
    results = bora_sweep.sweep(**with_model(sections, "chunk"), search=search, output=tmp_path / "run")
    assert (results.trials["status"] == "finished").all()
    per_trial = results.document_scores.groupby("trial_id").size()
    uncut = load_config([with_model(sections, "uncut")])
    corpus = load_corpus(uncut.data)
    assert set(per_trial) == {(corpus.documents["split"] != "train").sum()}
