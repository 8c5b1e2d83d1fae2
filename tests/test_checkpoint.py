"""Files of a trial: whole or not there, and without pickle."""

import torch

from bora_sweep.train.checkpoint import (
    drop_checkpoints,
    load_adapters,
    load_checkpoint,
    save_adapters,
    save_checkpoint,
)


def test_the_newest_whole_checkpoint_is_read_and_older_ones_are_dropped(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for step in (5, 10):
        save_checkpoint(tmp_path, step, {"bank": torch.full((2, 3), float(step))}, {"step": step})
    half = tmp_path / ".checkpoint-000000015.1.part"
    half.mkdir()
    (half / "state.json").write_text("{")
    tensors, state = load_checkpoint(tmp_path)
    assert state == {"step": 10}
    assert torch.equal(tensors["bank"], torch.full((2, 3), 10.0))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-000000010"]


def test_the_same_step_can_be_written_again(tmp_path):
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, 5, {"bank": torch.tensor([value])}, {})
    assert load_checkpoint(tmp_path)[0]["bank"].item() == 2.0


def test_adapters_carry_what_they_are(tmp_path):
    about = {"tasks": ["ø", "b"], "sites": [["a.b", 3, 4]]}
    save_checkpoint(tmp_path, 5, {"bank": torch.zeros(1)}, {})
    save_adapters(tmp_path, {"theta_KP": torch.eye(2).expand(2, 2), "mean_P": torch.zeros(2)}, about)
    drop_checkpoints(tmp_path)
    tensors, read = load_adapters(tmp_path)
    assert read == about
    assert torch.equal(tensors["theta_KP"], torch.eye(2))
    assert load_checkpoint(tmp_path) is None
