"""Tensors of a fit go by the names of tasks, modules and banks: order decides nothing, other names are refused."""

import pytest
import torch
from tiny import make_base, make_corpus

from bora_sweep.config import Config, load_config
from bora_sweep.errors import InputError
from bora_sweep.model.layout import make_layout
from bora_sweep.train.checkpoint import save_adapters, save_checkpoint
from bora_sweep.train.checkpoint_names import names_of, task_order
from bora_sweep.train.device import make_accelerator
from bora_sweep.train.fit import run_epoch
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.resume import progress_of, start_or_resume, tensors_of
from bora_sweep.train.state import Fit
from bora_sweep.train.trainer import Trainer
from bora_sweep.trials.outcome import starting_point
from bora_sweep.trials.rows import about_adapters

SIZES = {"a": 16, "b": 10, "c": 8}
ORDER = ["c", "a", "b"]


def make_config(*settings: str) -> Config:
    return load_config(["lora.rank=2", "train.device=cpu", "train.batch_size=6", "train.learning_rate=0.01", *settings])


def trainer_of(config: Config, tasks, folder=None) -> Trainer:
    corpus = make_corpus({task: SIZES.get(task, 6) for task in tasks})
    trainer = make_trainer(config, Pack(config, corpus, make_base(), make_accelerator(config)))
    if folder is not None:
        start_or_resume(trainer, folder)
    return trainer


def trained(config: Config, folder) -> Trainer:
    trainer = trainer_of(config, SIZES)
    for _ in range(2):
        run_epoch(trainer.pack, [trainer])
    save_checkpoint(folder, trainer.state.step, tensors_of(trainer), progress_of(trainer))
    return trainer


def test_a_tau_of_each_task_that_was_learnt_goes_with_the_task(tmp_path):
    config = make_config("prior.tau=learn", "prior.groups=task")
    before = trained(config, tmp_path)
    after = trainer_of(config, ORDER, tmp_path)
    assert len(set(before.state.scales.values())) == len(SIZES)
    assert after.state.scales == before.state.scales
    rows = [list(SIZES).index(task) for task in ORDER]
    was, now = before.hierarchy.precision, after.hierarchy.precision
    assert isinstance(was, torch.Tensor)
    assert isinstance(now, torch.Tensor)
    torch.testing.assert_close(now, was[rows], rtol=1e-12, atol=0)


@pytest.mark.parametrize("settings", [["prior.tau=10"], ["prior.tau=0"], ["prior.tau=inf"], ["method=vi"]])
def test_a_checkpoint_gives_each_task_its_own_rows_in_whatever_order_the_tasks_are(settings, tmp_path):
    config = make_config(*settings)
    before = trained(config, tmp_path)
    after = trainer_of(config, ORDER, tmp_path)
    rows = [list(SIZES).index(task) for task in ORDER]
    there, here = tensors_of(before), tensors_of(after)
    assert there.keys() == here.keys()
    assert {"optimizer.mean_P.exp_avg", "optimizer.task_KP.exp_avg", "optimizer.task_KP.gradient"} & there.keys()
    for name in there.keys() - {"std_KP"}:  # which the number of tokens decides as well
        tensor = there[name]
        assert torch.equal(tensor[rows] if tensor.dim() == 2 else tensor, here[name]), name
    if config.prior.tau == 0:
        assert after.state.best_nll_nats == [before.state.best_nll_nats[row] for row in rows]
    assert after.state.notes == ["went on with the tasks in another order"]
    assert trainer_of(config, SIZES, tmp_path).state.notes == []


def test_a_checkpoint_of_other_tasks_or_modules_is_refused(tmp_path):
    config = make_config("prior.tau=10")
    trained(config, tmp_path)
    with pytest.raises(InputError, match="has other tasks: it has 'b', and 1 more do not match"):
        trainer_of(config, ["a", "zed", "c"], tmp_path)
    with pytest.raises(InputError, match=r"has adapters of other modules, such as .*k_proj"):
        trainer_of(make_config("prior.tau=10", "lora.target_modules=[fc1]"), SIZES, tmp_path)
    with pytest.raises(InputError, match="has adapters of other modules"):
        trainer_of(make_config("prior.tau=10", "lora.rank=3"), SIZES, tmp_path)


def test_modules_in_another_order_are_refused():
    layout = make_layout(make_base(), make_config().lora)
    written = names_of(layout, ORDER)
    assert task_order(written, layout, list(SIZES), "it") == [1, 2, 0]
    with pytest.raises(InputError, match="modules in another order"):
        task_order({**written, "parts": written["parts"][::-1]}, layout, ORDER, "it")


@pytest.mark.parametrize("method", ["map", "average"])
def test_a_trial_that_begins_with_anothers_adapters_takes_them_by_the_task(method, tmp_path):
    config = make_config("prior.tau=10", f"method={method}")
    base, corpus = make_base(), make_corpus(SIZES)
    layout = make_layout(base, config.lora)
    theta_KP = torch.arange(3.0)[:, None].expand(3, layout.num_parameters).contiguous()
    done = Fit(None, None, {}, theta_KP[0], theta_KP, layout, 0, "cpu", "float64")
    tensors = {"mean_P": theta_KP[0].clone(), "theta_KP": theta_KP}
    save_adapters(tmp_path / "trials" / "7", tensors, about_adapters(config, corpus, done))
    start = starting_point(config, base, run=tmp_path, trial_id="7", tasks=ORDER)
    assert start.theta_KP[:, 0].tolist() == ([2.0, 0.0, 1.0] if method == "map" else [1.0] * 3)
    with pytest.raises(InputError, match="trial 7: has other tasks: it lacks 'zed'"):
        starting_point(config, base, run=tmp_path, trial_id="7", tasks=[*ORDER, "zed"])
    with pytest.raises(InputError, match="trial 7: has adapters of other modules"):
        starting_point(make_config("lora.target_modules=[fc1]"), base, run=tmp_path, trial_id="7", tasks=ORDER)
