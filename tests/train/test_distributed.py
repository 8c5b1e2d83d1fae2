"""Two processes that make one fit make the fit that one process makes, in float64; all on the CPU, by Gloo."""

import numpy as np
import pandas as pd
import pytest
import torch
from answers import make_answers
from tiny import make_base, make_corpus, make_tokenizer
from two_processes import assert_same, found, run_in_two

from bora_sweep.config import Config, load_config
from bora_sweep.errors import InputError
from bora_sweep.process import Interrupted
from bora_sweep.runs.results import read_results
from bora_sweep.train import evaluate
from bora_sweep.train import step as step_module
from bora_sweep.train.distributed.shard import Shard, even_blocks
from bora_sweep.train.fit import fit
from bora_sweep.trials.path import run_path
from bora_sweep.trials.trial import Trial, run_trial

SETTINGS = [
    "lora.rank=2", "train.device=cpu", "train.batch_size=5", "train.max_epochs=3", "train.learning_rate=0.03",
    "train.patience=2",
]  # fmt: skip
FITS = {
    "tau 0": ["prior.tau=0"],
    "tau 10": ["prior.tau=10"],
    "tau inf": ["prior.tau=inf"],
    "centered": ["prior.tau=10", "prior.parametrization=centered", "train.solver=adamw"],
    "mean": ["prior.tau=10", "train.global_update=mean", "train.task_weights=tasks", "train.micro_batch_size=2"],
    "pfedme": ["prior.tau=10", "method=pfedme", "prior.groups=matrix", "prior.group_scales={B: 3}"],
    "vi": ["prior.tau=10", "method=vi"],
    "fedsa": ["prior.tau=0", "method=fedsa"],
    "learnt": ["prior.tau=learn", "prior.groups=task"],
    "present": ["prior.tau=10", "train.bank=host", "train.tasks_per_batch=2"],
    "present tau 0": ["prior.tau=0", "train.update=present"],
}
METRICS = ["prior.tau=10", "metrics=[accuracy,rouge_l]", "metric.max_new_tokens=5"]
SIZES = {"a": 16, "b": 10, "c": 4, "d": 8}
DATA_PARALLEL = ("tau 0", "tau 10", "mean", "pfedme", "fedsa", "learnt", "present")
RESUMED = ("tau 10", "tau 0", "learnt", "present")
"""Fits that are also made without shards of tasks. The other methods have no code of their own there."""
CASES = [("tasks", name) for name in FITS] + [("data", name) for name in DATA_PARALLEL]
CUT = 7  # steps after which a fit is cut off: within its second epoch


def config_of(*settings: str, workers: int = 1) -> Config:
    return load_config([*SETTINGS, f"ray.workers_per_trial={workers}", *settings])


def cut_off(config: Config, folder, rank: int = 0) -> None:
    """Begin a fit, and have the last process asked to stop after some steps: all are to write where they stand."""
    calls = iter(range(1000))

    def check_stop() -> None:
        if rank == config.ray.workers_per_trial - 1 and next(calls) == CUT + 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(config, make_corpus(SIZES), make_base(), folder, check_stop=check_stop)


def score_little(pack, fits, batch, score=evaluate.score, limit: int = 2):
    """`score` on a device that holds few rows."""
    if len(batch.task_B) > limit:
        raise torch.OutOfMemoryError
    return score(pack, fits, batch)


def predictions_of(*settings: str, workers: int) -> pd.DataFrame | None:
    """The predictions of a fit at tau = 10."""
    config = config_of(*METRICS, *settings, workers=workers)
    return fit(config, make_answers(SIZES), make_base("llama"), tokenizer=make_tokenizer()).predictions


def no_number(reference: str, prediction: str) -> float:  # noqa: ARG001
    """A user's function that fails: the first process calls it, and all are to hear of it."""
    return float("nan")


def work(rank: int, folder) -> dict:
    """All that two processes do in this file's tests: starting them takes longer than what they do."""
    corpus, results = make_corpus(SIZES), {}
    own = folder / f"rank{rank}"  # no process but the first is to look at the run's folder
    whole = folder if rank == 0 else own

    def fit_of(*settings, at=None):
        return fit(config_of(*settings, workers=2), corpus, make_base(), at)

    for parallel, name in CASES:
        results[parallel, name] = found(fit_of(*FITS[name], f"train.parallel={parallel}"))
    for parallel in ("tasks", "data"):
        for name in RESUMED:
            results[parallel, name, "1 to 2"] = found(
                fit_of(*FITS[name], f"train.parallel={parallel}", at=whole / f"one {name} {parallel}")
            )
            cut_off(
                config_of(*FITS[name], f"train.parallel={parallel}", workers=2), whole / f"two {name} {parallel}", rank
            )
    with pytest.MonkeyPatch.context() as patch:
        for module in (evaluate, step_module) if rank == 1 else ():
            patch.setattr(module, "score", score_little)
        done = fit_of("prior.tau=10")
    results["memory"] = {**found(done), "micro_batch_size": done.state.micro_batch_size}
    results["held"] = Shard(config_of("prior.tau=10", workers=2), corpus).num_tasks
    try:
        fit(config_of("prior.tau=10"), corpus, make_base())
    except InputError as error:
        results["refused"] = str(error)
    run_trial(Trial("one", config_of("prior.tau=10", workers=2)), corpus, make_base, own)
    path = config_of("search.mode=path", "search.num_trials=3", "search.tau_high=1e3", workers=2)
    rows = run_path(path, corpus, make_base, own, "path")
    results["path"] = [(row["tau"], row["test_nll_nats"], row["started_from"]) for row in rows]
    results["metrics"] = {
        parallel: predictions_of(f"train.parallel={parallel}", workers=2) for parallel in ("tasks", "data")
    }
    with pytest.raises(InputError, match="returned nan for document"):
        predictions_of("metrics=[test_distributed:no_number]", workers=2)
    results["wrote"] = own.exists()
    return results


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple:
    """What the two found, and the folder that the first of them wrote."""
    folder = tmp_path_factory.mktemp("parallel")
    for parallel in ("tasks", "data"):
        for name in RESUMED:
            cut_off(config_of(*FITS[name], f"train.parallel={parallel}"), folder / f"one {name} {parallel}")
    return run_in_two(work, folder), folder


@pytest.fixture(scope="module")
def alone() -> dict:
    """The same fits, each by one process."""
    return {name: found(fit(config_of(*settings), make_corpus(SIZES), make_base())) for name, settings in FITS.items()}


@pytest.mark.parametrize(("parallel", "name"), CASES)
def test_two_processes_make_the_fit_of_one(made, alone, name, parallel):
    """Both know the same of it; but the tasks' banks lie whole in the first alone."""
    first, second = (results[parallel, name] for results in made[0])
    assert_same(first, alone[name])
    assert_same(second, alone[name], banks=False)
    assert len(first["curve"]) > 3
    shared = parallel == "tasks" and name not in ("tau inf", "vi")
    assert len(second["theta_KP"]) == (made[0][1]["held"] if shared else len(SIZES))


@pytest.mark.parametrize("parallel", ["tasks", "data"])
@pytest.mark.parametrize("name", RESUMED)
def test_a_fit_goes_on_with_more_or_fewer_processes_than_began_it(made, alone, name, parallel):
    results, folder = made
    assert_same(results[0][parallel, name, "1 to 2"], alone[name])
    left = folder / f"two {name} {parallel}"
    assert list(left.glob("checkpoint-*"))
    assert_same(found(fit(config_of(*FITS[name]), make_corpus(SIZES), make_base(), left)), alone[name])


def test_where_one_runs_out_of_memory_all_take_fewer_rows(made, alone):
    for results in made[0]:
        assert results["memory"]["micro_batch_size"] in (1, 2)
        assert_same(results["memory"], alone["tau 10"], banks=False)


def test_the_first_alone_touches_the_runs_folder_and_all_walk_the_same_path(made, tmp_path):
    (first, second), folder = made
    assert first["wrote"]
    assert not second["wrote"]
    rows = read_results(folder / "rank0").trials.set_index("trial_id")
    assert rows["status"].eq("finished").all()
    assert not list((folder / "rank0").glob("trials/*/checkpoint-*"))
    config = config_of("search.mode=path", "search.num_trials=3", "search.tau_high=1e3")
    path = run_path(config, make_corpus(SIZES), make_base, tmp_path, "path")
    for found_path in (first["path"], second["path"]):
        for row, (tau, nats, start) in zip(path, found_path, strict=True):
            assert (row["tau"], row["started_from"]) == (pytest.approx(tau), start)
            assert row["test_nll_nats"] == pytest.approx(nats, rel=1e-9)
    assert len(rows) == len(path) + 1


def test_processes_that_share_the_documents_have_the_predictions_of_one(made):
    expected = predictions_of(workers=1)
    for results in made[0]:
        for parallel in ("tasks", "data"):
            pd.testing.assert_frame_equal(results["metrics"][parallel], expected)


def test_another_number_of_processes_than_asked_for_is_refused(made):
    for results in made[0]:
        assert "set ray.workers_per_trial=2" in results["refused"]
    with pytest.raises(InputError, match=r"ray\.workers_per_trial=3: .* started for the fit is 1"):
        fit(config_of(workers=3), make_corpus(SIZES), make_base())


@pytest.mark.parametrize(
    "settings",
    [["search.pack=2"], ["train.precision=fp16"], ["ray.gpus_per_trial=0.5"]],
    ids=lambda settings: settings[0],
)
def test_what_several_processes_cannot_do_is_refused(settings):
    with pytest.raises(InputError, match=r"ray\.workers_per_trial=2"):
        config_of(*settings, workers=2)


def test_blocks_of_tasks_are_even_and_none_is_empty():
    assert even_blocks(np.ones(8), 4) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
    assert even_blocks(np.array([9, 1, 1, 1]), 3) == [slice(0, 1), slice(1, 2), slice(2, 4)]
    assert even_blocks(np.array([1, 1, 1, 9]), 3) == [slice(0, 2), slice(2, 3), slice(3, 4)]
    rng = np.random.default_rng(0)
    for _ in range(200):
        weight_K = rng.integers(1, 100, rng.integers(3, 12))
        blocks = even_blocks(weight_K, 3)
        assert [n for block in blocks for n in range(block.start, block.stop)] == list(range(len(weight_K)))
        assert all(block.stop > block.start for block in blocks)
        assert max(weight_K[block].sum() for block in blocks) <= weight_K.sum() / 3 + weight_K.max()
