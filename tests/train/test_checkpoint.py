"""Files of a trial: whole or not believed, and without pickle."""

import pytest
import torch

from bora_sweep.errors import InputError
from bora_sweep.runs.requests import STOP_TRIAL_FILE
from bora_sweep.train import checkpoint
from bora_sweep.train.checkpoint import (
    DamagedError,
    drop_checkpoints,
    load_adapters,
    load_checkpoint,
    save_adapters,
    save_checkpoint,
)


def names(trial) -> list[str]:
    return sorted(path.name for path in trial.iterdir())


def test_the_newest_whole_checkpoint_is_read_and_all_but_two_are_dropped(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, {"bank": torch.full((2, 3), float(step))}, {"step": step})
    (tmp_path / ".checkpoint-000000020.safetensors.1.part").write_bytes(b"{")
    tensors, state, damage = load_checkpoint(tmp_path)
    assert (state, damage) == ({"step": 15}, [])
    assert torch.equal(tensors["bank"], torch.full((2, 3), 15.0))
    assert names(tmp_path)[1:] == ["checkpoint-000000010.safetensors", "checkpoint-000000015.safetensors"]
    drop_checkpoints(tmp_path)
    assert names(tmp_path) == []


def test_a_request_to_end_the_fit_goes_with_its_checkpoints(tmp_path):
    """Else it would end the trial's next fit in its first epoch."""
    save_checkpoint(tmp_path, 5, {"bank": torch.zeros(2)}, {})
    (tmp_path / STOP_TRIAL_FILE).write_text("")
    drop_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_step_can_be_written_again(tmp_path):
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, 5, {"bank": torch.tensor([value])}, {})
    assert load_checkpoint(tmp_path)[0]["bank"].item() == 2.0


@pytest.mark.parametrize("place", [9, 60, 200, -1])
def test_one_bit_is_enough_to_fall_back_to_the_checkpoint_before(place, tmp_path):
    for step in (5, 10):
        bank = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        save_checkpoint(tmp_path, step, {"bank": bank, "step": torch.tensor(step)}, {"step": step, "words": ["ø"] * 20})
    newest = tmp_path / "checkpoint-000000010.safetensors"
    content = bytearray(newest.read_bytes())
    content[place] ^= 1
    newest.write_bytes(content)
    tensors, state, (said,) = load_checkpoint(tmp_path)
    assert state["step"] == 5
    assert tensors["step"].item() == 5
    assert newest.name in said


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_torn_file_is_not_believed(kept, tmp_path):
    save_adapters(tmp_path, {"mean_P": torch.randn(50)}, {"tasks": ["a"]})
    file = tmp_path / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DamagedError, match="adapters"):
        load_adapters(tmp_path)
    save_checkpoint(tmp_path, 5, {"bank": torch.randn(50)}, {})
    only = tmp_path / "checkpoint-000000005.safetensors"
    only.write_bytes(only.read_bytes()[:kept])
    assert load_checkpoint(tmp_path) is None


def test_adapters_carry_what_they_are(tmp_path):
    about = {"tasks": ["ø", "b"], "sites": [["a.b", 3, 4]]}
    save_checkpoint(tmp_path, 5, {"bank": torch.zeros(1)}, {})
    save_adapters(tmp_path, {"theta_KP": torch.eye(2).expand(2, 2), "mean_P": torch.zeros(2)}, about)
    drop_checkpoints(tmp_path)
    tensors, read = load_adapters(tmp_path)
    assert read == about
    assert torch.equal(tensors["theta_KP"], torch.eye(2))
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("written", [0, 99])
def test_a_checkpoint_of_a_release_that_holds_other_things_in_it_is_refused_by_name(written, tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 5, {"bank": torch.ones(2)}, {"step": 5})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", written)
        save_checkpoint(tmp_path, 10, {"bank": torch.ones(2)}, {"step": 10})
        save_adapters(tmp_path, {"mean_P": torch.ones(2)}, {"tasks": ["a"]})
    with pytest.raises(InputError, match=rf"checkpoint-000000010\.safetensors.*format {written}"):
        load_checkpoint(tmp_path)
    assert load_adapters(tmp_path)[1] == {"tasks": ["a"]}


def test_copies_among_the_checkpoints_are_neither_read_nor_counted_nor_removed(tmp_path):
    foreign = ["checkpoint-000000015 (1).safetensors", "checkpoint-000000099.conflict.safetensors",
               "._checkpoint-000000099.safetensors", "checkpoint-last.safetensors", ".notes.part"]  # fmt: skip
    for name in foreign:
        (tmp_path / name).write_bytes(b"not ours")
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, {"bank": torch.ones(2)}, {"step": step})
    assert load_checkpoint(tmp_path)[1:] == ({"step": 15}, [])
    assert {"checkpoint-000000010.safetensors", "checkpoint-000000015.safetensors", *foreign} == set(names(tmp_path))
    drop_checkpoints(tmp_path)
    assert names(tmp_path) == sorted(foreign)
