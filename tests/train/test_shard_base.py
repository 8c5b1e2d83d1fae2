"""A base sharded over two processes makes the fit of one process with a whole base, in float64, on the CPU by Gloo."""

from collections import Counter
from copy import deepcopy
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from answers import make_answers
from families import FAMILIES, make_family
from tiny import make_base, make_corpus, make_tokenizer
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from two_processes import assert_same, found, run_in_two

from bora_sweep.config import Config, load_config
from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.layout import make_layout
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.model.trial_logits import made_up_tokens
from bora_sweep.process import Interrupted
from bora_sweep.train.distributed.equal_passes import EqualPasses
from bora_sweep.train.distributed.sharded_base import place_base, root_of
from bora_sweep.train.fit import fit

SETTINGS = [
    "lora.rank=2", "train.device=cpu", "train.batch_size=5", "train.max_epochs=3", "train.learning_rate=0.03",
    "train.patience=2",
]  # fmt: skip
FITS = {
    "tau 0": ["prior.tau=0"],
    "tau 100": ["prior.tau=100"],
    "tau inf": ["prior.tau=inf"],
    "one document": ["prior.tau=100", "train.batch_size=1", "train.max_epochs=1"],
    "many passes": ["prior.tau=10", "train.micro_batch_size=2", "prior.parametrization=centered"],
    "dora": ["prior.tau=100", "lora.variant=dora"],
    "checkpointed": ["prior.tau=100", "train.gradient_checkpointing=true", "train.length_bucket=4"],
    "vi": ["prior.tau=10", "method=vi"],
}
CASES = [(parallel, name) for parallel in ("tasks", "data") for name in FITS if (parallel, name) != ("tasks", "vi")]
METRICS = ["prior.tau=10", "metrics=[accuracy,rouge_l]", "metric.max_new_tokens=5"]
SIZES = {"a": 16, "b": 10, "c": 4, "d": 8}
STOPS = {"a step": 1, "scoring": 2}
"""Calls of `check_stop` after the last step of an epoch."""
MODELS = [
    ("opt", "lora"), ("opt-350m", "dora"), ("gpt2", "dora"), ("llama", "mora"), ("cohere2", "lora"),
    ("gemma2", "lora"),
]  # fmt: skip
"""Tiny bases and kinds of adapters. OPT calls its decoder past the module that holds it, Gemma 2 caps its logits."""


def config_of(*settings: str, workers: int = 2) -> Config:
    return load_config([*SETTINGS, f"ray.workers_per_trial={workers}", *settings])


def sharded_fit(*settings: str, at: Path | None = None, base=None, **more):
    config = config_of("train.shard_base=true", *settings)
    return fit(config, make_corpus(SIZES), make_base() if base is None else base, at, **more)


def base_of(family: str) -> PreTrainedModel:
    return make_base(family) if family in tiny.FAMILIES else make_family(family, dtype=torch.float64)


def nats_and_gradients(adapted: AdaptedModel, times: int = 2) -> list[torch.Tensor]:
    """Nats of some rows, each with an adapter of its own, with their gradients; and logits without gradients."""
    base, layout = adapted.base, adapted.layout
    generator, tokens_BT = torch.Generator().manual_seed(1), made_up_tokens(base, 3, 9)
    initial_P, results = layout.initial(base, 0, torch.float64), []

    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            noise_BP = torch.randn(3, layout.num_parameters, generator=generator, dtype=torch.float64)
            self.bank_BP = nn.Parameter(initial_P + 0.1 * noise_BP)

        def theta_BP(self, task_B, dtype):
            return self.bank_BP[task_B].to(dtype)

    for _ in range(times):
        bank = Bank()
        place_M = torch.tensor([1, 2, 5, 10, 17, 20, 26])
        nll_SB = Likelihood(adapted, [bank])(tokens_BT, place_M, torch.arange(3))  # type: ignore[list-item]
        nll_SB.sum().backward()
        with torch.no_grad():
            logits_BTV = adapted(tokens_BT, bank.bank_BP)
        results += [nll_SB.detach(), bank.bank_BP.grad, logits_BTV]
    return results


def whole_and_sharded(base: PreTrainedModel, variant: str) -> tuple[AdaptedModel, AdaptedModel]:
    """A base and its shards, each with adapters."""
    layout = make_layout(base, load_config([f"lora.variant={variant}", "lora.rank=4"]).lora)
    whole = AdaptedModel(deepcopy(base), layout)
    return whole, AdaptedModel(place_base(base, torch.device("cpu"), shard=True), layout)


def compare_model(family: str, variant: str) -> dict:
    """What a whole base and its shards compute, before and after a pass that fails."""
    whole, adapted = whole_and_sharded(base_of(family), variant)
    base, layout = adapted.base, adapted.layout
    expected, first = nats_and_gradients(whole), nats_and_gradients(adapted)

    def fail(*_):
        raise ValueError("in a block")

    hook = base.get_submodule(layout.sites[-1].name).register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="in a block"):
        adapted(made_up_tokens(base, 1, 5), torch.zeros(1, layout.num_parameters))
    hook.remove()
    return {
        "equal": [torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(expected, first, strict=True)],
        "recovered": [torch.equal(a, b) for a, b in zip(first, nats_and_gradients(adapted), strict=True)],
        "whole": sum(weight.numel() for weight in base.parameters()),
        "blocks": sum(weight.numel() for weight in base.parameters() if isinstance(weight, DTensor)),
        "held": sum(
            weight.to_local().numel() if isinstance(weight, DTensor) else weight.numel() for weight in base.parameters()
        ),
    }


def compare_families(rank: int, folder: Path) -> dict:  # noqa: ARG001
    """Whether shards compute what the whole base does, bit by bit, for each family that can be adapted."""
    results = {}
    for name in FAMILIES:
        base = make_family(name)
        try:
            make_layout(base, load_config([]).lora)
        except InputError:
            continue
        pairs = zip(*(nats_and_gradients(adapted, 1) for adapted in whole_and_sharded(base, "lora")), strict=True)
        results[name] = all(torch.equal(whole, sharded) for whole, sharded in pairs)
    return results


def interrupted(rank: int, folder: Path, parallel: str, calls: int) -> None:
    """A fit whose last process alone is asked to stop, at the end of its second epoch or in the scoring after it."""
    left = [calls]
    ended = []

    def check_stop() -> None:
        if rank == 1 and ended:
            left[0] -= 1
            if left[0] == 0:
                raise Interrupted

    def on_step(report) -> None:
        if (report.epoch, report.batch) == (2, report.num_batches):
            ended.append(report)

    with pytest.raises(Interrupted):
        sharded_fit("prior.tau=100", f"train.parallel={parallel}", at=folder, check_stop=check_stop, on_step=on_step)


def predictions_of(*settings: str, workers: int) -> pd.DataFrame | None:
    config = config_of(*METRICS, *settings, workers=workers)
    return fit(config, make_answers(SIZES), make_base("llama"), tokenizer=make_tokenizer()).predictions


def work(rank: int, folder: Path) -> dict:
    """All that two processes do in this file's tests: starting them takes longer than what they do."""
    results, empty, own_empty_pass = {}, Counter(), EqualPasses._empty_pass
    own = folder / f"rank{rank}"  # no process but the first is to look at the run's folder

    def counted(self, with_gradient: bool) -> None:
        empty[with_gradient] += 1
        own_empty_pass(self, with_gradient)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EqualPasses, "_empty_pass", counted)
        for parallel, name in CASES:
            results[parallel, name] = found(sharded_fit(*FITS[name], f"train.parallel={parallel}"))
            results[parallel, name, "empty"] = dict(empty)
            empty.clear()
    base = make_base()
    for again in ("first", "again"):
        results[again] = found(sharded_fit("prior.tau=100", base=base))
    with pytest.raises(InputError, match=r"train\.shard_base=false: an earlier fit has sharded this base"):
        fit(config_of("prior.tau=100"), make_corpus(SIZES), base)
    results["hooks"] = len(root_of(base)._forward_pre_hooks)
    sharded_fit("prior.tau=100", "train.max_epochs=1", base=base)
    results["hooks after"] = len(root_of(base)._forward_pre_hooks)
    results["metrics"] = {
        parallel: predictions_of(f"train.parallel={parallel}", "train.shard_base=true", workers=2)
        for parallel in ("tasks", "data")
    }
    for parallel in ("tasks", "data"):
        for name, calls in STOPS.items():
            interrupted(rank, (own if rank else folder) / f"{name} {parallel}", parallel, calls)
    results["models"] = {model: compare_model(*model) for model in MODELS}
    results["memory"] = run_out_of_memory(rank)  # the last: the processes can do no more together
    return results


def run_out_of_memory(rank: int) -> tuple[str, str]:
    """How a fit ends of which one process runs out of memory in the middle of a pass; the other waits for it there."""
    base, calls = make_base(), iter(range(1000))

    def fail(*_):
        if rank == 1 and torch.is_grad_enabled() and next(calls) == 8:  # in a step
            raise torch.OutOfMemoryError

    base.get_submodule("model.decoder.layers.1.self_attn").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError) as ended:
        sharded_fit("prior.tau=100", base=base)
    return ended.type.__name__, str(ended.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[list[dict], Path]:
    """What the two found, and the folder that the first of them wrote."""
    folder = tmp_path_factory.mktemp("sharded")
    return run_in_two(work, folder), folder


@pytest.fixture(scope="module")
def alone() -> dict:
    """The same fits, each by one process with a whole base."""
    return {
        name: found(fit(config_of(*settings, workers=1), make_corpus(SIZES), make_base()))
        for name, settings in FITS.items()
    }


@pytest.mark.parametrize(("parallel", "name"), CASES)
def test_a_sharded_base_makes_the_fit_of_one_process(made, alone, parallel, name):
    first, second = (results[parallel, name] for results in made[0])
    assert_same(first, alone[name])
    assert_same(second, alone[name], banks=False)


@pytest.mark.parametrize("parallel", ["tasks", "data"])
def test_a_process_without_documents_of_a_batch_makes_empty_passes(made, parallel):
    """With batches of one document one of the two has none in each step."""
    steps = len(make_corpus(SIZES).split("train"))
    empty = [results[parallel, "one document", "empty"] for results in made[0]]
    assert sum(counts.get(True, 0) for counts in empty) == steps


def test_a_base_stays_sharded_for_the_next_fit_and_loses_the_hooks_of_the_last(made, alone):
    for results in made[0]:
        assert_same(results["first"], alone["tau 100"], banks=False)
        assert_same(results["again"], alone["tau 100"], banks=False)
        assert results["hooks"] == results["hooks after"]


def test_processes_with_a_sharded_base_have_the_predictions_of_one(made):
    expected = predictions_of(workers=1)
    for results in made[0]:
        for parallel in ("tasks", "data"):
            pd.testing.assert_frame_equal(results["metrics"][parallel], expected)


@pytest.mark.parametrize("parallel", ["tasks", "data"])
@pytest.mark.parametrize("name", STOPS)
def test_a_stop_of_one_process_ends_all_with_a_checkpoint(made, alone, name, parallel):
    """And one process with a whole base goes on from it."""
    left = made[1] / f"{name} {parallel}"
    assert list(left.glob("checkpoint-*"))
    config = config_of("prior.tau=100", workers=1)
    assert_same(found(fit(config, make_corpus(SIZES), make_base(), left)), alone["tau 100"])


@pytest.mark.parametrize("model", MODELS, ids=" ".join)
def test_shards_have_the_nats_and_gradients_of_the_whole_also_after_a_pass_that_failed(made, model):
    for results in made[0]:
        case = results["models"][model]
        assert all(case["equal"])
        assert all(case["recovered"])


@pytest.mark.families
def test_shards_of_all_families_compute_what_the_whole_base_does(tmp_path):
    for results in run_in_two(compare_families, tmp_path):
        assert len(results) > 40
        assert all(results.values()), results


@pytest.mark.parametrize("model", MODELS, ids=" ".join)
def test_two_processes_hold_half_of_the_blocks_each(made, model):
    first, second = (results["models"][model] for results in made[0])
    outside = first["whole"] - first["blocks"]
    assert first["held"] + second["held"] == first["whole"] + outside
    assert max(first["held"], second["held"]) - outside < 0.6 * first["blocks"]


def test_memory_that_runs_out_in_a_pass_ends_all_processes(made):
    """The second process ends with the reason, the first because the second is gone."""
    (first, _), (second, reason) = (results["memory"] for results in made[0])
    assert (first, second) == ("RuntimeError", "OutOfMemoryError")
    assert reason.startswith("train.shard_base=true: out of memory in a pass")
    assert "train.micro_batch_size below 5" in reason


@pytest.mark.parametrize(
    ("settings", "workers", "message"),
    [
        ([], 1, r"ray\.workers_per_trial=1"),
        (["train.compile=true"], 2, r"train\.compile=true"),
        (["search.estimate_tau=true"], 2, r"search\.estimate_tau=true"),
    ],
    ids=["one process", "compile", "estimate_tau"],
)
def test_what_a_sharded_base_cannot_do_is_refused(settings, workers, message):
    with pytest.raises(InputError, match=r"train\.shard_base=true.*" + message):
        config_of("train.shard_base=true", *settings, workers=workers)


def test_a_base_that_cannot_be_sharded_by_block_is_refused():
    shared = make_base("llama")
    layers = shared.base_model.layers  # type: ignore[union-attr]
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight  # type: ignore[index, union-attr]
    packed = make_base("llama")
    weight = packed.base_model.layers[0].mlp.up_proj.weight  # type: ignore[index, union-attr]
    packed.base_model.layers[0].mlp.up_proj.weight = nn.Parameter(weight.to(torch.int8), requires_grad=False)  # type: ignore[index, union-attr]
    bare = make_base("llama")
    bare.base_model.layers = nn.Sequential(*bare.base_model.layers)  # type: ignore[union-attr, misc]
    for base, message in ((shared, "is also a weight of"), (packed, "packed"), (bare, "no list of blocks")):
        with pytest.raises(InputError, match=message):
            place_base(base, torch.device("cpu"), shard=True)
