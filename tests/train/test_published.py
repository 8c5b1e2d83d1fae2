"""`protocol=published_code` against its algorithm written anew, and each of its options against a loop.

The other side is `published_loop`: PEFT's `set_adapter`, a loop over tasks, pandas and torch's own AdamW.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from published_loop import PublishedLoop, published_splits
from tiny import make_base, make_corpus, make_frame, make_tokenizer
from torch.nn import functional as F

from bora_sweep.config import DataConfig, load_config
from bora_sweep.data.batches import collate, fixed_batches, longest_of
from bora_sweep.data.corpus import Corpus, load_corpus
from bora_sweep.data.split import sample_documents
from bora_sweep.data.tokens import tokenize, tokenize_for
from bora_sweep.errors import InputError
from bora_sweep.model.tensor_norm import TensorNormHierarchy
from bora_sweep.report import write_report
from bora_sweep.runs.results import perplexity, read_results
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.evaluate import score, score_documents
from bora_sweep.train.fit import fit, run_epoch, validate
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.methods.published import RowwiseAdam, ScoredSplit, published_order
from bora_sweep.train.pack import Pack
from bora_sweep.train.step import step
from bora_sweep.trials.trial import Trial, run_trial

TASKS = ["ann", "bob", "cid", "dee"]
SIZES = {"ann": 16, "bob": 24, "cid": 4, "dee": 9}  # so few of cid that batches of 6 lack it
SETTINGS = [
    "lora.rank=2", "lora.alpha=4", "lora.target_modules=[q_proj,v_proj]", "train.device=cpu", "train.batch_size=6",
    "train.max_epochs=3", "train.lr_per_tau=1e-4", "train.learning_rate=3e-3", "model.max_tokens=16",
]  # fmt: skip


def published(*settings: str):
    return load_config(["protocol=published_code", *SETTINGS, *settings])


def mixed_frame() -> pd.DataFrame:
    """Documents of all tasks, one among the other, as in a file by time."""
    return make_frame(SIZES, longest=14).sample(frac=1, random_state=3).reset_index(drop=True)


def published_fit(folder: Path, *settings: str):
    """The settings, and the corpus read from a file of `mixed_frame` and split by them."""
    mixed_frame().to_parquet(folder / "speeches.parquet")
    config = published(f"data.path={folder / 'speeches.parquet'}", "data.min_documents=4", *settings)
    return config, tokenize_for(config, load_corpus(config.data), make_tokenizer())


def trainer_of(config, corpus, base):
    return make_trainer(config, Pack(config, corpus, base, make_accelerator(config)))


@pytest.mark.parametrize("tau", [0.0, 30.0])
def test_it_equals_the_published_algorithm_step_by_step(tmp_path, tau):
    """Twenty steps over several epochs, with documents that are cut, padded and absent, and what each epoch reports."""
    config, corpus = published_fit(tmp_path, f"prior.tau={tau}", "model.max_text_tokens=11")
    trainer = trainer_of(config, corpus, make_base())
    loop = PublishedLoop(mixed_frame(), tau, config.learning_rate, 16, 11, trainer)
    ours: list[float] = []
    backward = trainer.pack.accelerator.backward

    def noted(loss):
        ours[-1] += loss.item()
        backward(loss)

    trainer.pack.accelerator.backward = noted  # type: ignore[reportAttributeAccessIssue]
    reported: list[tuple[float, dict[str, float]]] = []
    steps = 0
    while steps < 20:
        batches = trainer.batches(trainer.state.epoch + 1)
        theirs = loop.batches("train")
        assert len(batches) == len(theirs)
        assert any({corpus.documents["task"][n] for n in batch} != {0, 1, 2, 3} for batch in batches)
        for document_B, batch in zip(batches, theirs, strict=True):
            ours.append(-trainer.hierarchy.log_prior().item())
            step(trainer.pack, [trainer], document_B, len(batches))
            assert ours[-1] == pytest.approx(loop.train(batch), rel=0, abs=1e-9)
            for theta_P, name in zip(loop.of(trainer), ["base_adapter", *TASKS], strict=True):
                torch.testing.assert_close(theta_P, loop.theta(name), rtol=0, atol=1e-9)
            steps += 1
        trainer.end_epoch()
        validate(trainer.pack, [trainer])
        loglik, perplexity, by_task = loop.validate()
        reported.append((perplexity, by_task))
        padded_N = score_documents(
            trainer.pack, [trainer], "validation", make_batches=trainer.pack.protocol.validation_batches
        )[0]
        found = trainer.pack.protocol.validation.numbers(padded_N)  # type: ignore[reportAttributeAccessIssue]
        assert found.nats == pytest.approx(-loglik, abs=1e-9)
        assert trainer.state.reported_perplexity == pytest.approx(min(value for value, _ in reported), abs=1e-9)
        lowest = [min(epoch[task] for _, epoch in reported) for task in TASKS]
        assert np.exp(trainer.state.reported_nats) == pytest.approx(lowest, abs=1e-9)
    trainer.pack.close()


@pytest.mark.parametrize("tau", [0.0, 30.0])
def test_a_fit_of_two_epochs_reports_what_the_published_code_does_from_the_same_file(tmp_path, tau):
    """No order of ours in it: what is read, split, batched, padded and reported by each side on its own."""
    settings = f"prior.tau={tau}", "train.max_epochs=2", "train.lr_per_tau=1e-4", "train.initial_noise=0.3"
    config, corpus = published_fit(tmp_path, *settings)
    reported = fit(config, corpus, make_base()).reported
    assert reported is not None
    start = trainer_of(config, corpus, make_base())
    start.pack.close()
    loop = PublishedLoop(mixed_frame(), tau, config.learning_rate, 16, 118, start)
    overall, by_task = [], []
    for _ in range(2):
        for batch in loop.batches("train"):
            loop.train(batch)
        _, perplexity, of_task = loop.validate()
        overall.append(perplexity)
        by_task.append([of_task[task] for task in TASKS])
    assert reported.perplexity == pytest.approx(min(overall), rel=0, abs=1e-9)
    assert reported.perplexity_K == pytest.approx(np.min(by_task, axis=0), rel=0, abs=1e-9)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_order_of_documents_is_that_of_datasets_shuffle(tmp_path, split):
    datasets = pytest.importorskip("datasets")
    config, corpus = published_fit(tmp_path, "prior.tau=30")
    rows = published_splits(mixed_frame())[split].reset_index(drop=True)
    shuffled = datasets.Dataset.from_pandas(rows).shuffle(seed=42)
    batches = fixed_batches(published_order(corpus, split, config.data), 6, 42)
    texts = mixed_frame()["text"]
    ids = corpus.documents["document_id"][np.concatenate(batches)]
    by_id = load_corpus(config.data).documents.set_index("document_id")["text"]
    assert by_id[ids].tolist() == shuffled["text"][:]
    assert len(set(texts)) == len(texts)


def test_documents_that_were_in_a_split_before_stay_in_the_order_of_their_source(tmp_path):
    config, corpus = published_fit(tmp_path, "prior.tau=30")
    documents = corpus.documents.copy()
    of_ann = np.flatnonzero(documents["task"] == 0)
    documents.loc[of_ann, "split"] = ["train"] * 10 + ["validation"] * 3 + ["test"] * 3
    drawn = published_order(corpus, "train", config.data)
    found = published_order(replace(corpus, documents=documents), "train", config.data)
    assert found[:10].tolist() == of_ann[:10].tolist()
    assert found[10:].tolist() == drawn[8:].tolist() != sorted(drawn[8:])
    by_text = replace(config.data, split="by_text")
    assert published_order(corpus, "train", by_text).tolist() == corpus.sequences("train").tolist()


def test_what_is_reported_is_a_loops_and_test_stays_free_of_padding(tmp_path):
    """A whole fit: the lowest of each task over the epochs, and test as always."""
    (config, corpus), base = published_fit(tmp_path, "prior.tau=30", "train.lr_per_tau=3e-3"), make_base()
    done = fit(config, corpus, base)
    assert done.reported is not None
    assert done.reported.split == "validation"
    trainer = trainer_of(config, corpus, base)
    lowest = np.full(len(TASKS), math.inf)
    for _ in range(done.state.epoch):
        run_epoch(trainer.pack, [trainer])
        nll_N = score_documents(
            trainer.pack, [trainer], "validation", make_batches=trainer.pack.protocol.validation_batches
        )[0]
        lowest = np.fmin(lowest, trainer.pack.protocol.validation.numbers(nll_N).nats_K)  # type: ignore
    np.testing.assert_allclose(done.reported.perplexity_K, np.exp(lowest), rtol=1e-12)
    trainer.hierarchy.load_state_dict({"mean_P": done.mean_P, "task_KP": done.theta_KP})
    for n, nats in zip(corpus.split("test"), done.nll_nats["test"], strict=True):
        alone = score(trainer.pack, [trainer], collate(corpus, np.array([n])))[0].item()
        assert nats == pytest.approx(alone, abs=1e-9)
    trainer.pack.close()


def test_a_cut_off_fit_reports_what_it_would_have(tmp_path):
    config, base = published("prior.tau=30", "train.lr_per_tau=3e-3"), make_base()
    corpus = make_corpus()
    whole = fit(config, corpus, base)
    seen = 0

    def stop(_state) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, corpus, base, tmp_path, on_epoch=stop)
    again = fit(config, corpus, base, tmp_path)
    assert again.reported is not None
    assert whole.reported is not None
    assert again.reported.perplexity == whole.reported.perplexity
    assert (again.reported.perplexity_K == whole.reported.perplexity_K).all()


@pytest.mark.parametrize("settings", [["protocol=published_code", *SETTINGS], [*SETTINGS[:6], "train.padding=scored"]])
def test_a_run_keeps_what_its_protocol_reports_apart_and_says_so(tmp_path, settings):
    corpus, base = make_corpus(), make_base()
    for tau in (0.0, 30.0, math.inf):
        run_trial(Trial(f"tau{tau:g}", load_config([*settings, f"prior.tau={tau}"])), corpus, lambda: base, tmp_path)
    results = read_results(tmp_path)
    assert set(results.trials["protocol"]) == {load_config(settings).protocol}
    assert results.trials["reported_as"].str.endswith("padding counted").all()
    assert (results.trials["reported_perplexity"] != results.trials["test_perplexity"]).all()
    for row in results.trials.to_dict("records"):
        assert row["test_num_tokens"] == corpus.num_tokens("test")
        assert row["test_perplexity"] == perplexity(row["test_nll_nats"], row["test_num_tokens"])
    split = "validation" if len(settings) > 8 else "test"
    noted = results.task_scores.dropna(subset=["reported_perplexity"])
    assert (noted["split"] == split).all()
    assert len(noted) == 3 * 3
    page = (write_report(str(tmp_path)).parent / "report.md").read_text()
    assert "count padding" in page
    assert f"{results.trials.set_index('tau').loc[30.0, 'reported_perplexity']:.2f}" in page


def test_ours_reports_nothing_else(tmp_path):
    row = run_trial(Trial("one", load_config([*SETTINGS[:6]])), make_corpus(), make_base, tmp_path)
    assert row["protocol"] == "ours"
    assert row["reported_perplexity"] is None
    assert read_results(tmp_path).task_scores["reported_perplexity"].isna().all()


@pytest.mark.parametrize("centered", [False, True])
def test_the_gradient_of_tensor_norms_is_autograds_of_a_loop(centered):
    generator = torch.Generator().manual_seed(0)
    sizes = [3, 5, 1]
    mean_P = torch.randn(9, generator=generator, dtype=torch.float64)
    parametrization = "centered" if centered else "noncentered"
    hierarchy = TensorNormHierarchy(mean_P, tensor_sizes=sizes, num_tasks=4, tau=2.5, parametrization=parametrization)
    assert hierarchy.task_KP is not None
    with torch.no_grad():
        hierarchy.task_KP.add_(torch.randn(4, 9, generator=generator, dtype=torch.float64))
        hierarchy.task_KP[1, :3] = mean_P[:3] if centered else 0.0  # a tensor at Theta is held there
    hierarchy.add_prior_gradient_(7)
    bank, mean = hierarchy.task_KP.detach().requires_grad_(), hierarchy.mean_P.detach().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for k in range(4):
        start = 0
        for size in sizes:
            part = bank[k, start : start + size]
            total = total + 2.5 / 7 * torch.norm(part - mean[start : start + size] if centered else part)
            start += size
    total.backward()
    assert hierarchy.log_prior().item() == pytest.approx(-7 * total.item())
    torch.testing.assert_close(hierarchy.task_KP.grad, bank.grad)
    assert hierarchy.task_KP.grad[1, :3].abs().max() == 0
    if centered:
        torch.testing.assert_close(hierarchy.mean_P.grad, mean.grad)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_padding_is_scored_to_the_longest_of_the_batch_where_asked_and_only_there(family):
    config = load_config([*SETTINGS[:5], "lora.alpha=null", "train.padding=scored", "train.micro_batch_size=2"])
    corpus, base = make_corpus(), make_base(family)
    trainer = trainer_of(config, corpus, base)
    split = ScoredSplit(corpus, "validation", config)
    padded_N = score_documents(
        trainer.pack, [trainer], "validation", make_batches=trainer.pack.protocol.validation_batches
    )[0]
    plain_N = score_documents(trainer.pack, [trainer], "validation")[0]
    trainer.pack.close()
    document_N = corpus.split("validation")
    for document_B in split.batches:
        width = max(corpus.offsets[n + 1] - corpus.offsets[n] for n in document_B)
        for n in document_B:
            own = corpus.tokens[corpus.offsets[n] : corpus.offsets[n + 1]].tolist()
            row = torch.tensor([own + [corpus.padding] * (width - len(own))])
            mask = torch.tensor([[1] * len(own) + [0] * (width - len(own))])
            logits = base(input_ids=row, attention_mask=mask).logits[0]  # B = 0: the base itself
            losses = [F.cross_entropy(logits[i], row[0, i + 1]).item() for i in range(width - 1)]
            place = int(np.flatnonzero(document_N == n)[0])
            assert padded_N[place] == pytest.approx(sum(losses), abs=1e-9)
            assert plain_N[place] == pytest.approx(sum(losses[: len(own) - 1]), abs=1e-9)
            assert split.scored_N[place] == width - 1
    found = split.sums(padded_N)
    assert found.perplexity == pytest.approx(math.exp(padded_N.sum() / split.scored_N.sum()))
    assert corpus.padding == make_tokenizer().eos_token_id


@pytest.mark.parametrize("padding", ["ignored", "scored"])
def test_the_likelihood_by_documents_is_each_tasks_mean_times_its_documents(padding):
    config = load_config([*SETTINGS[:5], "train.likelihood=documents", f"train.padding={padding}", "prior.tau=3"])
    corpus, base = make_corpus(), make_base()
    trainer = trainer_of(config, corpus, base)
    document_B = trainer.batches(1)[0]
    width = longest_of(corpus, document_B) if padding == "scored" else None
    expected = 0.0
    for task in range(3):
        own = document_B[corpus.documents["task"].to_numpy()[document_B] == task]
        if len(own):
            batch = collate(corpus, own, width)
            nll_B, _ = score(trainer.pack, [trainer], batch)
            documents = int(((corpus.documents["task"] == task) & (corpus.documents["split"] == "train")).sum())
            expected += documents * nll_B.sum().item() / batch.num_tokens
    scale, weight_K = trainer.pack.protocol.batch_weights(trainer.weight_K, document_B, 99)
    nll_SB, task_B = score(trainer.pack, [trainer], collate(corpus, document_B, width))
    trainer.pack.close()
    assert scale * (weight_K[task_B] * nll_SB[0]).sum().item() == pytest.approx(expected, abs=1e-9)
    assert trainer.pack.protocol.objective_tokens == 1


PROMPTED = DataConfig(prompt="w20 {task}", template="w21 {text}")


def test_a_prompt_is_given_and_never_scored_and_braces_in_a_text_stay():
    frame = pd.DataFrame({"task": ["w1", "w2"], "text": ["w3 {task}", "w5 w6 w7 w8 w9 w10"], "floor_nll_nats": np.nan})
    corpus = Corpus("made", ("w1", "w2"), frame.assign(split="train", content=None), ())
    tokenizer = make_tokenizer()
    made = tokenize(corpus, tokenizer, 8, data=PROMPTED)
    batch = collate(made, np.array([0, 1]))
    word = tokenizer.convert_tokens_to_ids
    assert batch.tokens_BT[0, :4].tolist() == word(["w20", "w1", "w21", "w3"])
    assert batch.tokens_BT[1].tolist() == word(["w20", "w2", "w21", "w5", "w6", "w7", "w8", "</s>"])
    assert batch.scored_BT.tolist() == [[False] * 2 + [True] * (n - 2) + [False] * (8 - n) for n in batch.length_B]
    assert batch.num_tokens == (batch.length_B - 2).sum() == made.documents["num_tokens"].sum()
    assert made.documents["was_cut"].tolist() == [False, True]
    at_end = tokenize(corpus, tokenizer, 8, max_text_tokens=9, data=PROMPTED)
    assert at_end.tokens[at_end.offsets[1] :].tolist() == word(["w20", "w2", "w21", "w5", "w6", "w7", "w8", "w9"])
    base = make_base()
    config = load_config([*SETTINGS[:4], "lora.alpha=null"])
    in_splits = replace(made, documents=made.documents.assign(split=["train", "validation"]))
    trainer = trainer_of(config, in_splits, base)
    nll = score(trainer.pack, [trainer], collate(made, np.array([1])))[0].item()
    trainer.pack.close()
    logits = base(input_ids=torch.tensor(batch.tokens_BT[1:])).logits[0]
    losses = [F.cross_entropy(logits[i], torch.tensor(batch.tokens_BT[1, i + 1])).item() for i in range(1, 7)]
    assert nll == pytest.approx(sum(losses), abs=1e-9)


def test_the_split_by_sample_is_pandas_own(corpus_file):
    frame = pd.read_parquet(corpus_file)
    config = load_config([
        f"data.path={corpus_file}", "data.split=sample", "data.validation_fraction=0.25", "data.test_fraction=0.25",
        "data.seed=42",
    ])  # fmt: skip
    found = load_corpus(config.data).documents
    for task, own in frame.groupby("task"):
        train = own.sample(frac=0.5, random_state=42)
        rest = own.drop(train.index)
        validation = rest.sample(frac=0.5, random_state=42)
        expected = {"train": train, "validation": validation, "test": rest.drop(validation.index)}
        for split, rows in expected.items():
            mine = found[(found["task"] == task) & (found["split"] == split)]
            assert set(mine["document_id"]) == {str(index) for index in rows.index}
    with pytest.raises(InputError, match="task 'a': 2 documents"):
        sample_documents(pd.Series(["a", "a"]), (0.5, 0.25, 0.25), 42)


def test_at_tau_0_an_absent_task_stands_still_as_adamw_leaves_it():
    generator = torch.Generator().manual_seed(1)
    bank = torch.nn.Parameter(torch.randn(3, 5, generator=generator, dtype=torch.float64))
    twins = [torch.nn.Parameter(row.detach().clone()) for row in bank]
    ours, theirs = RowwiseAdam([{"params": [bank]}], lr=0.1), torch.optim.AdamW(twins, lr=0.1, weight_decay=0.0)
    for absent in (None, 1, 1, None, 0, 2, None):
        bank.grad = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        for row, twin in enumerate(twins):
            twin.grad = None if row == absent else bank.grad[row].clone()
        if absent is not None:
            bank.grad[absent] = 0.0
        ours.step()
        theirs.step()
    torch.testing.assert_close(bank.detach(), torch.stack([twin.detach() for twin in twins]), rtol=0, atol=1e-12)


def test_the_noise_at_the_start_is_normal_and_each_tasks_own():
    config = load_config(
        [*SETTINGS[:4], "lora.alpha=null", "train.initial_noise=0.001", "lora.target_modules=all-linear"]
    )
    trainer = trainer_of(config, make_corpus(), make_base())
    delta_KP = trainer.hierarchy.delta_KP()
    trainer.pack.close()
    assert delta_KP.std().item() == pytest.approx(0.001, rel=0.1)
    assert abs(delta_KP.mean().item()) < 1e-4
    assert torch.corrcoef(delta_KP).triu(1).abs().max() < 0.2


def test_fixed_batches_are_the_same_in_each_epoch():
    trainer = trainer_of(published("prior.tau=3"), make_corpus(), make_base())
    first, second = trainer.batches(1), trainer.batches(2)
    trainer.pack.close()
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in second]
    assert sorted(np.concatenate(first).tolist()) == trainer.pack.corpus.split("train").tolist()


def test_a_protocol_stands_below_ones_own_settings(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("protocol: published_code\ntrain: {patience: 2}\n")
    config = load_config([str(own), "lora.rank=3"])
    assert (config.protocol, config.train.patience, config.lora.rank) == ("published_code", 2, 3)
    assert (config.prior.penalty, config.train.padding, config.data.seed) == ("tensor_norm", "scored", 42)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config([str(tmp_path / "config.yaml")]) == config
    assert load_config(["protocol=published_code"], base=config) == config  # as a resume asks for it
    assert load_config(["protocol=paper"]).prior.penalty == "squared"
    assert load_config([]) == load_config(["protocol=ours"])
    with pytest.raises(InputError, match="protocol=theirs"):
        load_config(["protocol=theirs"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["prior.penalty=tensor_norm", "train.solver=proximal"], "train.solver=proximal needs the squared distance"),
        (["prior.penalty=tensor_norm", "train.global_update=mean"], "global_update=mean"),
        (["prior.penalty=tensor_norm", "prior.groups=matrix"], "one tau for all"),
        (["train.likelihood=documents", "search.pack=4"], "drop search.pack=4"),
        (["train.padding=scored", "ray.workers_per_trial=2"], "drop ray.workers_per_trial=2"),
        (["train.reported=best_epochs", "search.mode=path"], "drop search.mode=path"),
        (["train.likelihood=documents", "train.task_weights=tasks"], "train.task_weights=tasks"),
        (["data.template=words"], "data.template='words'"),
        (["train.initial_noise=-1"], "train.initial_noise=-1"),
    ],
)
def test_what_cannot_be_together_is_refused_by_one_message(settings, says):
    with pytest.raises(InputError) as caught:
        load_config(settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
