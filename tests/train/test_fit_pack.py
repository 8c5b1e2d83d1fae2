"""Fits that share their forward passes are the fits that each would be alone, in float64."""

import math

import pytest
import torch
from tiny import make_base, make_corpus

from bora_sweep.config import load_config
from bora_sweep.runs.results import read_results
from bora_sweep.train.fit import fit, fit_pack
from bora_sweep.train.state import Fit, FitSpec
from bora_sweep.trials.trial import Trial, run_pack

SETTINGS = [
    "lora.rank=2", "lora.target_modules=[q_proj,v_proj]", "train.device=cpu", "train.batch_size=4",
    "train.max_epochs=6", "train.learning_rate=0.02", "train.patience=2",
]  # fmt: skip
UNLIKE = [
    ["prior.tau=0.5"],
    ["prior.tau=inf", "train.learning_rate=0.2"],  # ends early
    ["prior.tau=1e4", "train.learning_rate=0.003", "train.task_weights=tasks"],
    ["prior.tau=30", "prior.parametrization=centered", "prior.groups=matrix", "prior.group_scales={B: 10}"],
    ["prior.tau=30", "train.solver=adamw", "train.global_update=mean", "train.max_grad_norm=null"],
]


def make_slots(**changes):
    return [FitSpec(load_config([*SETTINGS, *settings]), **changes) for settings in UNLIKE]


@pytest.mark.parametrize("family", ["opt", pytest.param("llama", marks=pytest.mark.slow)])
def test_packed_equals_solo(family):
    """Also where a fit ends before the others, and for tasks without a row in a batch."""
    corpus, base = make_corpus({"a": 16, "b": 10, "c": 4}), make_base(family)
    packed = dict(fit_pack(make_slots(), corpus, base))
    assert all(not module._forward_hooks for module in base.modules())
    assert len({done.state.epoch for done in packed.values()}) > 1
    for place, slot in enumerate(make_slots()):
        solo, together = fit(slot.config, corpus, base), packed[place]
        assert together.stopped_by == solo.stopped_by
        assert together.state.best_epochs == solo.state.best_epochs
        torch.testing.assert_close(together.theta_KP, solo.theta_KP, rtol=0, atol=1e-9)
        torch.testing.assert_close(together.mean_P, solo.mean_P, rtol=0, atol=1e-9)
        for split, nll in solo.nll_nats.items():
            assert together.nll_nats[split] == pytest.approx(nll, rel=1e-9)
        for name in ("epoch", "step", "split", "num_tokens", "learning_rate"):
            assert [row[name] for row in together.state.curve] == [row[name] for row in solo.state.curve]


def test_a_fit_that_diverges_leaves_the_pack_and_the_others_alone():
    corpus, base = make_corpus(), make_base()
    configs = [load_config([*SETTINGS, "prior.tau=10", *more]) for more in ([], ["train.learning_rate=1e300"])]
    good, bad = (done for _, done in sorted(fit_pack([FitSpec(config) for config in configs], corpus, base)))
    assert bad.stopped_by == "divergence"
    assert "1e+300" in bad.state.diverged
    torch.testing.assert_close(good.theta_KP, fit(configs[0], corpus, base).theta_KP, rtol=0, atol=1e-9)


CUT_PACK = [load_config([*SETTINGS, f"prior.tau={tau}", "train.max_epochs=4"]) for tau in (1, 100, math.inf)]


@pytest.fixture(scope="module")
def whole_pack() -> dict[int, Fit]:
    """The fits of `CUT_PACK` when nothing cuts them off."""
    return dict(fit_pack([FitSpec(config) for config in CUT_PACK], make_corpus(), make_base()))


@pytest.mark.parametrize("cut", [2, 5, 9])
def test_a_pack_that_was_cut_off_between_two_checkpoints_ends_as_if_it_had_not_been(whole_pack, tmp_path, cut):
    corpus, base = make_corpus(), make_base()
    epochs = []

    class KilledError(Exception):
        pass

    def die(state):
        epochs.append(state.epoch)
        if len(epochs) == cut:
            raise KilledError

    def specs():
        return [FitSpec(config, tmp_path / str(place), on_epoch=die) for place, config in enumerate(CUT_PACK)]

    with pytest.raises(KilledError):
        list(fit_pack(specs(), corpus, base))
    assert all(not module._forward_hooks for module in base.modules())
    resumed = dict(fit_pack(specs(), corpus, base))
    for place, done in whole_pack.items():
        torch.testing.assert_close(resumed[place].theta_KP, done.theta_KP, rtol=0, atol=1e-9)
        assert resumed[place].state.best_epochs == done.state.best_epochs


def test_each_trial_of_a_pack_has_its_rows_as_soon_as_it_ends_and_is_not_made_again(tmp_path):
    corpus = make_corpus()
    configs = [load_config([*SETTINGS, "search.estimate_tau=true", *settings]) for settings in UNLIKE[:3]]
    trials = [Trial(f"{n:03d}", config) for n, config in enumerate(configs)]
    seen = []
    rows = run_pack(
        trials, corpus, make_base, tmp_path,
        on_epoch=lambda _: seen.append(set(read_results(tmp_path).trials.query("status == 'finished'")["trial_id"])),
    )  # fmt: skip
    assert {"001"} in seen  # while the others went on
    results = read_results(tmp_path)
    assert results.trials["tau"].tolist() == [0.5, math.inf, 1e4]
    assert results.trials["status"].eq("finished").all()
    assert results.trials["tau_estimate"].notna().tolist() == [False, True, False]
    assert len(results.document_scores) == 3 * sum(len(corpus.split(split)) for split in ("validation", "test"))

    def refuse():
        raise AssertionError("a base model was loaded")

    again = run_pack(trials, corpus, refuse, tmp_path)
    assert {name: row["test_nll_nats"] for name, row in again.items()} == {
        name: row["test_nll_nats"] for name, row in rows.items()
    }
