"""When checkpoints are written, by a clock that the tests move: what they cost, and what a lost machine loses."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_base, make_corpus

from bora_sweep.config import load_config
from bora_sweep.process import Interrupted
from bora_sweep.train import checkpoint_times
from bora_sweep.train import fit as fit_module
from bora_sweep.train.checkpoint_times import CheckpointTimes
from bora_sweep.train.fit import fit

OWN = {name: getattr(checkpoint_times, name) for name in ("SPACING", "FIRST_SECONDS")}
"""The values that users have; conftest.py sets others for the tests that cut a fit off."""
SHARE = 0.02


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@contextmanager
def moved_by_hand() -> Iterator[Clock]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_times, "time", SimpleNamespace(monotonic=clock.monotonic))
        for name, value in OWN.items():
            patch.setattr(checkpoint_times, name, value)
        yield clock


def run_times(epochs: list[list[float]], costs: list[float], longest: float) -> tuple[list[tuple[float, float]], float]:
    """The begin and end of each checkpoint, and the end of all.

    Args:
        epochs: Seconds of the steps of each epoch; those of the last are its validation's.
        costs: Seconds of the checkpoints, in turn.
        longest: `CheckpointTimes`'s.
    """
    saves = []
    with moved_by_hand() as clock:
        times = CheckpointTimes(longest)
        for pieces in epochs:
            for number, seconds in enumerate(pieces, start=1):
                clock.now += seconds
                if times.is_due(within_epoch=number < len(pieces)):
                    with times.measured():
                        begun = clock.now
                        clock.now += costs[len(saves) % len(costs)]
                    saves.append((begun, clock.now))
        return saves, clock.now


seconds = st.floats(1e-3, 500)
fits = st.lists(st.lists(seconds, min_size=1, max_size=6), min_size=1, max_size=60)
costs = st.lists(st.floats(1e-4, 60), min_size=1, max_size=10)


@given(fits, costs)
def test_all_checkpoints_but_the_last_take_a_fiftieth_of_a_fit_at_most(epochs, costs):
    saves, ended = run_times(epochs, costs, math.inf)
    took = [end - begin for begin, end in saves]
    assert sum(took) <= SHARE * ended + (took[-1] if took else 0) + 1e-6


@given(fits, costs, st.floats(0.1, 1000))
def test_no_more_is_lost_than_was_promised_and_one_step_whatever_a_checkpoint_costs(epochs, costs, longest):
    saves, ended = run_times(epochs, costs, longest)
    begins, ends = [begin for begin, _ in saves], [end for _, end in saves]
    gaps = [begin - end for begin, end in zip([*begins, ended], [0.0, *ends], strict=True)]
    assert max(gaps) < longest + max(max(pieces) for pieces in epochs) + 1e-6
    # More than a fiftieth is taken only where the promise asks for it.
    took = [end - begin for begin, end in saves]
    assert all(
        gap >= min(longest, (1 - SHARE) / SHARE * cost) - 1e-6 for gap, cost in zip(gaps[1:-1], took, strict=False)
    )


@given(st.lists(st.floats(1.0, 50), min_size=1, max_size=20), costs)
def test_the_first_epoch_that_ends_after_a_second_is_saved(lengths, costs):
    saves, _ = run_times([[length] for length in lengths], costs, math.inf)
    assert saves[0][0] == lengths[0]


def test_short_epochs_of_a_new_fit_are_not():
    saves, _ = run_times([[0.3]] * 4, [0.001], math.inf)
    assert [begin for begin, _ in saves] == [pytest.approx(1.2)]


@pytest.mark.parametrize(
    ("cost", "minutes", "saved_at"),
    [
        (0.2, 5, [4, 16, 28]),  # 4 steps an epoch, a second each: at least 10 s of them between two checkpoints
        (2.0, 0.1, [4, 10, 16, 22, 28]),  # not 100 s, but 6 s, within epochs too
    ],
)
def test_a_fit_writes_them_then(cost, minutes, saved_at, monkeypatch, tmp_path):
    config = load_config(
        [
            "lora.rank=2", "train.device=cpu", "train.batch_size=6", "train.max_epochs=9", "prior.tau=10",
            "train.patience=9", f"train.checkpoint_minutes={minutes}",
        ]
    )  # fmt: skip
    corpus, steps, saves = make_corpus({"a": 44}), [], []
    with moved_by_hand() as clock:

        def save(folder, step, *_) -> None:  # noqa: ARG001
            clock.now += cost
            saves.append(step)

        def on_step(report) -> None:
            clock.now += 1
            steps.append(report)

        monkeypatch.setattr(fit_module, "save_checkpoint", save)
        fit(config, corpus, make_base(), tmp_path, on_step=on_step)
        assert len(steps) == 9 * 4
        assert [at for at in saves if at <= 30] == saved_at


def test_a_fit_that_is_asked_to_stop_writes_one_however_new_the_last_is(monkeypatch, tmp_path):
    config = load_config(["lora.rank=2", "train.device=cpu", "train.batch_size=6", "prior.tau=10"])
    saves, steps = [], []

    def stop() -> None:
        if len(steps) == 5:
            raise Interrupted

    with moved_by_hand() as clock:

        def save(folder, step, *_) -> None:  # noqa: ARG001
            clock.now += 100
            saves.append(step)

        def on_step(report) -> None:
            clock.now += 1
            steps.append(report)

        monkeypatch.setattr(fit_module, "save_checkpoint", save)
        with pytest.raises(Interrupted):
            fit(config, make_corpus({"a": 44}), make_base(), tmp_path, on_step=on_step, check_stop=stop)
    assert saves == [4, 5]
