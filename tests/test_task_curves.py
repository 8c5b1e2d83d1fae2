"""What benchmarks/new_tasks.py measures: parts of a corpus, curves of tasks that are fits alone, their convergence."""

import numpy as np
import pytest
import torch
from new_tasks_cells import EMBEDDED_PLAN
from new_tasks_tables import STALL, converged, window
from task_curves import Curve, curve, part_of
from tiny import make_base, make_corpus

from bora_sweep.config import load_config
from bora_sweep.model.layout import make_layout

TAU = 5.0


def add_config(*settings):
    common = ["data.path=made.parquet", "lora.rank=2", "train.device=cpu", "train.learning_rate=0.01"]
    return load_config([*common, "method=add", f"prior.tau={TAU}", "train.max_grad_norm=null", *settings])


def rows_of(corpus, tasks):
    documents = corpus.documents
    return [
        (n, task, split)
        for task in tasks
        for n, split in documents.loc[documents["task"] == corpus.tasks.index(task), "split"].items()
    ]


def theta_of(base, config):
    mean_P = make_layout(base, config.lora).initial(base, 3, torch.float64)
    return mean_P + 0.05 * torch.randn(mean_P.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_part_has_the_tokens_of_its_documents_under_its_own_names():
    corpus = make_corpus()
    rows = [(20, "z", "test"), (3, "y 1", "train"), (3, "y 0", "validation"), (7, "z", "train")]
    part = part_of(corpus, rows)
    assert part.tasks == ("y 0", "y 1", "z")
    assert part.documents["split"].tolist() == ["validation", "train", "test", "train"]
    for sequence, (document, task) in enumerate([(3, 0), (3, 1), (20, 2), (7, 2)]):
        ours, theirs = (slice(of.offsets[n], of.offsets[n + 1]) for of, n in ((part, sequence), (corpus, document)))
        assert part.tokens[ours].tolist() == corpus.tokens[theirs].tolist()
        assert part.scored[ours].tolist() == corpus.scored[theirs].tolist()
        assert part.task_C[sequence] == task
        assert part.documents["num_tokens"][sequence] == part.scored[ours].sum()


@pytest.mark.parametrize("num_batches", [1, 3])
def test_a_tasks_curve_does_not_depend_on_other_tasks_where_each_step_has_all_of_its_documents(num_batches):
    corpus, base = make_corpus(), make_base()
    config, points = add_config(), (0, 2, 5)
    mean_P = theta_of(base, config)
    alone, beside = (
        curve(config, part_of(corpus, rows_of(corpus, tasks)), base, mean_P, points, num_batches)
        for tasks in (["b"], ["a", "b"])
    )
    same = np.allclose(alone.objective_TK[:, 0], beside.objective_TK[:, 1], rtol=1e-9, atol=0)
    assert same == (num_batches == 1)  # the random order is one for all tasks
    assert (beside.objective_TK[0] > beside.objective_TK[-1]).all()


def test_with_all_documents_in_each_step_the_objective_falls_and_stays():
    corpus, base = make_corpus({"a": 4, "b": 6}), make_base()
    config = add_config("prior.tau=200")
    part = part_of(corpus, rows_of(corpus, ["a", "b"]))
    found = curve(config, part, base, theta_of(base, config), (0, 60, 90))
    fall_K = found.objective_TK[0] - found.objective_TK[-1]
    assert (fall_K > 0).all()
    assert (np.abs(found.objective_TK[-2] - found.objective_TK[-1]) < 0.01 * fall_K).all()


def made_curve(step_T, objective_TK):
    empty_TN = np.zeros((len(step_T), 0))
    return Curve(np.array(step_T), np.array(objective_TK), empty_TN, np.zeros_like(objective_TK))


@pytest.mark.parametrize("scale", [5.0, 10.0, 40.0])
def test_a_fit_has_converged_where_its_last_steps_brought_little_of_the_whole(scale):
    """An objective a + b exp(-s / scale) falls by b e^(-s / scale) (e^(w / scale) - 1) in the w steps before s."""
    step_T = np.arange(0, 401, 4)
    decay_T = np.exp(-step_T / scale)
    window_T = np.array([4 * np.ceil(window(step) / 4) for step in step_T.tolist()])  # as far as there is a point
    share_T = decay_T * (np.exp(window_T / scale) - 1) * [window(s) for s in step_T.tolist()] / window_T
    stalled_T = (share_T < STALL * (1 - decay_T)) & (step_T >= 8)
    still_T = 2 - 1e-5 * step_T  # the last quarter of a straight line is a quarter of its fall
    found = converged(made_curve(step_T, np.stack([3 + 0.4 * decay_T, 2 + 1e-6 * decay_T, still_T], axis=1)))
    assert found.tolist() == [stalled_T.argmax(), stalled_T.argmax(), len(step_T) - 1]
    assert decay_T[found[0]] < 2 * STALL


def test_each_cell_has_a_file_of_its_own():
    every = [*EMBEDDED_PLAN.runs(), *EMBEDDED_PLAN.others(4)]
    assert len({cell.name for cell in every}) == len(every) == len(set(every))
