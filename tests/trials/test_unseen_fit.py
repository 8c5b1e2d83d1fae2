"""`search.unseen_folds` of a single fit, and what goes with it."""

import pytest

from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.errors import InputError
from bora_sweep.runs.results import read_results


@pytest.fixture
def settings(corpus_file, model_folder) -> list[str]:
    return [
        f"data.path={corpus_file}", f"model.name={model_folder}", "model.max_tokens=16", "lora.rank=2",
        "train.max_epochs=2", "train.device=cpu", "prior.tau=50",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_fit_that_has_ended_gets_them_by_resume_and_others_by_another_number(settings, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["fit", *settings, f"output={run}"]) == 0
    before = read_results(run)
    assert before.task_scores["unseen_nll_nats"].isna().all()
    capsys.readouterr()
    assert main(["fit", "--resume", f"output={run}", "search.unseen_folds=2"]) == 0
    printed = capsys.readouterr().err
    assert "tasks without text, fold 2 of 2: 2 tasks left out" in printed
    two = read_results(run)
    assert (two.task_scores["unseen_nll_nats"].notna() == (two.task_scores["split"] != "train")).all()
    assert two.trials.equals(before.trials)
    assert main(["fit", "--resume", f"output={run}", "search.unseen_folds=9"]) == 0  # four tasks
    assert "fold 4 of 4: 1 task left out" in capsys.readouterr().err
    assert not read_results(run).task_scores.equals(two.task_scores)
    assert main(["fit", "--resume", f"output={run}", "search.unseen_folds=2"]) == 0
    assert "left out" not in capsys.readouterr().err  # these are there
    assert read_results(run).task_scores.equals(two.task_scores)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("search.unseen_folds=1", "need at least 2, or null"),
        ("search.mode=path", "values of a path begin where others ended"),
        ("ray.workers_per_trial=2", "are of one process; drop one of the two"),
        ("init_from=adapters", "its adapters may have seen the tasks"),
        ("train.padding=scored", "drop search.unseen_folds=2"),
    ],
)
def test_what_does_not_go_with_them_is_refused(setting, says):
    with pytest.raises(InputError, match=says):
        load_config(["search.unseen_folds=2", setting])


def test_another_method_is_refused_before_anything_is_written(settings, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["fit", *settings, "search.unseen_folds=2", "method=vi", f"output={run}"]) == 2
    assert "leaves tasks out of fits of method=map, not of vi" in capsys.readouterr().err
    assert not run.exists()
