"""The memory that is reckoned for a step against the allocations of real steps, counted by torch's profiler."""

import json
import math
from itertools import accumulate

import pytest
import torch
from families import make_family
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from bora_sweep.config import Config, load_config, with_values
from bora_sweep.errors import InputError
from bora_sweep.model import hierarchy, linear_cross_entropy
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.grouped_hierarchy import GroupedHierarchy
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.layout import Layout, make_layout
from bora_sweep.model.likelihood import Likelihood
from bora_sweep.model.linear_cross_entropy import CHUNK
from bora_sweep.model.trial_logits import vocabulary_size
from bora_sweep.train import optim
from bora_sweep.train.memory import FitMemory, StepMemory
from bora_sweep.train.methods.learn_tau import SMALLER
from bora_sweep.train.optim import BLOCK_ELSEWHERE, make_optimizer, map_step

QV = "[q_proj,v_proj]"
SIZES = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
BASES = {
    "opt": lambda: OPTForCausalLM(OPTConfig(**SIZES, word_embed_proj_dim=64, ffn_dim=256)),
    "opt-350m": lambda: OPTForCausalLM(
        OPTConfig(**SIZES, word_embed_proj_dim=32, ffn_dim=256, do_layer_norm_before=False)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=192, num_key_value_heads=2)),
}


def make(family: str, dtype: torch.dtype, *settings: str) -> tuple[Config, PreTrainedModel, Layout]:
    base, config = BASES[family]().to(dtype).eval(), load_config(settings)
    return config, base, make_layout(base, config.lora)


def make_hierarchy(config, base, layout, num_tasks: int, num_groups: int = 0) -> Hierarchy:
    initial_P = layout.initial(base, 0, torch.promote_types(base.dtype, torch.float32))
    common = {
        "num_tasks": num_tasks, "tau": config.tau, "parametrization": config.prior.parametrization,
        "global_update": config.global_update,
    }  # fmt: skip
    if not num_groups:
        return Hierarchy(initial_P, **common)
    groups = {"group_K": torch.arange(num_tasks) % num_groups, "num_groups": num_groups, "tau_2": config.tau_2}
    return GroupedHierarchy(initial_P, **common, **groups)


def measured_peak(
    config, base, layout, num_tasks: int, rows: int, tokens: int, passes: int, path, fits: int = 1, num_groups: int = 0
) -> int:
    """Peak bytes of a second step, without the weights, banks and moments that stay between steps."""
    hierarchies = [make_hierarchy(config, base, layout, num_tasks, num_groups) for _ in range(fits)]
    optimizers = [make_optimizer(hierarchy, 1e-3, config.solver, 1000) for hierarchy in hierarchies]
    adapted = AdaptedModel(base, layout, checkpointed=config.train.gradient_checkpointing)
    likelihood = Likelihood(adapted, hierarchies)
    place_M = torch.arange(rows * tokens).view(rows, tokens)[:, 1:].flatten()
    batch = (torch.randint(vocabulary_size(base), (rows, tokens)), place_M, torch.arange(rows) % num_tasks)

    def step() -> None:
        for _ in range(passes):
            likelihood(*batch).sum().backward()
        for fit, optimizer in zip(hierarchies, optimizers, strict=True):
            map_step(fit, optimizer, config.solver, 1000, max_norm=1.0)

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    adapted.remove_hooks()
    profiler.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    allocated, peak = 0, 0
    for event in sorted(events, key=lambda event: event["ts"]):
        allocated += event["args"]["Bytes"]
        peak = max(peak, allocated)
    assert allocated == 0  # the step freed everything, and the profiler missed nothing
    return peak


def temporary(memory: StepMemory) -> dict[str, int]:
    """The parts of a training step that come and go."""
    return {name: getattr(memory, name) for name in ("forward", "backward", "gather", "update")}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What a CPU does otherwise than a GPU, and the memory that it needs and a GPU does not.

    Blocks of the bank are as large as there, and the logits of each chunk get new memory. Attention has a buffer for
    each thread. oneDNN's products in bfloat16 have some of a size that depends on the CPU.
    """
    monkeypatch.setitem(optim.BLOCK, "cpu", BLOCK_ELSEWHERE)
    monkeypatch.setattr(
        linear_cross_entropy, "workspace", lambda rows, columns, dtype, _: torch.empty(rows, columns, dtype=dtype)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "opt-350m"))]
)
@pytest.mark.parametrize(
    ("num_tasks", "rank", "targets", "rows", "tokens", "passes", "greatest"),
    [
        (4, 4, QV, 8, 32, 1, {"forward"}),
        (8, 4, QV, 32, 64, 1, {"forward", "backward"}),
        (8, 4, "all-linear", 32, 64, 1, {"forward", "backward"}),
        (4, 16, "all-linear", 64, 8, 1, {"backward", "gather"}),
        (64, 4, "all-linear", 8, 32, 1, {"update"}),
        (64, 16, "all-linear", 32, 8, 2, {"gather", "backward"}),
        (16, 16, QV, 8, 64, 2, {"forward", "backward"}),
    ],
)
def test_the_reckoned_peak_is_what_a_step_allocates(
    family, dtype, num_tasks, rank, targets, rows, tokens, passes, greatest, tmp_path, monkeypatch
):
    config, base, layout = make(family, dtype, f"lora.rank={rank}", f"lora.target_modules={targets}")
    block = 1 << 16 if passes > 1 and num_tasks > 16 else BLOCK_ELSEWHERE
    monkeypatch.setattr(hierarchy, "COLUMNS", 1 << 9)  # few beside those of such small adapters
    monkeypatch.setitem(optim.BLOCK, "cpu", block)
    reckoned = FitMemory(config, base, layout, tokens, chunk=CHUNK["cpu"], block=block)
    parts = temporary(reckoned.step(num_tasks, rows, passes=passes))
    measured = measured_peak(config, base, layout, num_tasks, rows, tokens, passes, tmp_path / "trace.json")
    assert max(parts.values()) == pytest.approx(measured, rel=0.03)
    assert max(parts, key=parts.__getitem__) in greatest


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("settings", "case"),
    [
        (["prior.tau=inf"], {}),
        (["prior.tau=inf"], {"rows": 2, "tokens": 4}),
        (["prior.tau=0"], {"passes": 2}),
        (["prior.parametrization=centered"], {"num_tasks": 200, "rows": 2, "tokens": 8}),
        (["train.solver=adamw"], {"num_tasks": 200, "rows": 2, "tokens": 8}),
        (["method=pfedme"], {"num_tasks": 100, "rows": 2, "tokens": 8}),
        (["lora.variant=dora"], {}),
        ([], {"fits": 3}),
        ([], {"fits": 3, "num_tasks": 100, "rows": 2, "tokens": 8}),
    ],
)
def test_priors_solvers_variants_and_packs_are_reckoned(settings, case, tmp_path):
    num_tasks, rows, tokens, passes, fits = (
        {"num_tasks": 4, "rows": 8, "tokens": 64, "passes": 1, "fits": 1} | case
    ).values()
    config, base, layout = make("llama", torch.float32, "lora.target_modules=all-linear", *settings)
    parts = temporary(
        FitMemory(config, base, layout, tokens, chunk=CHUNK["cpu"]).step(num_tasks, rows, passes=passes, fits=fits)
    )
    measured = measured_peak(config, base, layout, num_tasks, rows, tokens, passes, tmp_path / "trace.json", fits)
    assert max(parts.values()) == pytest.approx(measured, rel=0.03)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("tau", "tau_2", "num_groups", "case"),
    [
        ("100", "30", 3, {}),
        ("100", "30", 60, {"num_tasks": 200, "rows": 2, "tokens": 8}),
        ("100", "30", 60, {"num_tasks": 80, "rows": 16, "tokens": 4, "passes": 2}),
        ("100", "30", 60, {"fits": 3, "num_tasks": 80, "rows": 2, "tokens": 8}),
        ("100", "30", 8, {"num_tasks": 8, "rows": 64, "tokens": 4}),
        ("inf", "30", 3, {}),
        ("inf", "30", 60, {"num_tasks": 200, "rows": 2, "tokens": 8}),
        ("inf", "30", 8, {"num_tasks": 8, "rows": 64, "tokens": 4}),
        ("inf", "0", 60, {"num_tasks": 200, "rows": 2, "tokens": 8, "passes": 2}),
    ],
)
def test_a_level_of_groups_is_reckoned(tau, tau_2, num_groups, case, dtype, tmp_path):
    num_tasks, rows, tokens, passes, fits = (
        {"num_tasks": 4, "rows": 8, "tokens": 64, "passes": 1, "fits": 1} | case
    ).values()
    settings = ["data.groups_path=groups.csv", f"prior.tau={tau}", f"prior.tau_2={tau_2}"]
    config, base, layout = make("llama", dtype, "lora.target_modules=all-linear", *settings)
    reckoned = FitMemory(config, base, layout, tokens, chunk=CHUNK["cpu"], num_groups=num_groups)
    parts = temporary(reckoned.step(num_tasks, rows, passes=passes, fits=fits))
    measured = measured_peak(
        config, base, layout, num_tasks, rows, tokens, passes, tmp_path / "trace.json", fits, num_groups
    )
    assert max(parts.values()) == pytest.approx(measured, rel=0.03)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3", "phi3", "gpt_neox", "bloom"])
def test_other_families_are_counted_too(family, tmp_path):
    """Among them one whose head is no linear layer alone, and attention of other makes."""
    base, config = make_family(family), load_config(["lora.target_modules=all-linear"])
    layout = make_layout(base, config.lora)
    parts = temporary(FitMemory(config, base, layout, 48, chunk=CHUNK["cpu"]).step(3, 16))
    measured = measured_peak(config, base, layout, 3, 16, 48, 1, tmp_path / "trace.json")
    assert max(parts.values()) == pytest.approx(measured, rel=0.03)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_that_run_again_are_reckoned(family, dtype, tmp_path):
    config, base, layout = make(family, dtype, "lora.target_modules=all-linear", "train.gradient_checkpointing=true")
    parts = temporary(FitMemory(config, base, layout, 64, chunk=CHUNK["cpu"]).step(4, 32))
    measured = measured_peak(config, base, layout, 4, 32, 64, 1, tmp_path / "trace.json")
    assert max(parts.values()) == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("family", list(BASES))
def test_blocks_that_run_again_hold_no_more(family):
    whole, again = (
        FitMemory(*make(family, torch.bfloat16, "lora.target_modules=all-linear", *settings), 64).step(4, 8)
        for settings in ([], ["train.gradient_checkpointing=true"])
    )
    assert again.peak <= whole.peak
    assert again.forward < whole.forward
    assert again.backward < whole.backward


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("settings", "num_tasks", "num_groups", "rows", "tokens"),
    [
        (["prior.tau=10"], 4, 0, 16, 64),
        (["prior.tau=learn"], 4, 0, 16, 64),
        (["prior.tau=10"], 4, 0, 64, 4),
        (["prior.tau=learn"], 4, 0, 64, 4),
        (["prior.tau=10"], 100, 0, 64, 4),
        (["prior.tau=learn"], 100, 0, 64, 4),
        (["data.groups_path=groups.csv", "prior.tau=10"], 4, 3, 64, 4),
        (["data.groups_path=groups.csv", "prior.tau=learn"], 4, 3, 64, 4),
        (["data.groups_path=groups.csv", "prior.tau=inf", "prior.tau_2=10"], 4, 3, 64, 4),
    ],
)
def test_scoring_is_reckoned_as_what_a_pass_without_gradients_allocates(
    settings, num_tasks, num_groups, rows, tokens, tmp_path
):
    """Where tau is learnt, the passes with smaller deviations take the most."""
    config, base, layout = make("llama", torch.bfloat16, "lora.target_modules=all-linear", *settings)
    hierarchy = make_hierarchy(config, base, layout, num_tasks, num_groups)
    hierarchy.deviation_factor = SMALLER if config.learns_tau else None
    likelihood = Likelihood(AdaptedModel(base, layout), [hierarchy])
    place_M = torch.arange(rows * tokens).view(rows, tokens)[:, 1:].flatten()
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        likelihood(torch.zeros(rows, tokens, dtype=torch.long), place_M, torch.arange(rows) % num_tasks)
    path = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    sizes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    memory = FitMemory(config, base, layout, tokens, chunk=CHUNK["cpu"], num_groups=num_groups)
    reckoned = memory.step(num_tasks, rows // 2).scoring
    assert reckoned == pytest.approx(max(accumulate(sizes)), rel=0.03)


def test_the_permanent_parts_are_weights_banks_and_two_moments():
    config, base, layout = make("opt", torch.bfloat16, f"lora.target_modules={QV}")
    for tau in (0.0, 10.0, math.inf):
        own = with_values(config, prior={"tau": tau})
        hierarchy = Hierarchy(layout.initial(base, 0), num_tasks=5, tau=tau, parametrization="noncentered")
        memory = FitMemory(own, base, layout, 32).step(5, 8)
        banks = list(hierarchy.parameters())
        assert memory.base == sum(weight.nbytes for weight in base.parameters())
        assert memory.banks == sum((3 if bank.requires_grad else 1) * bank.nbytes for bank in banks)


def test_copies_of_the_optimiser_are_a_number_of_blocks():
    config, base, layout = make("opt", torch.bfloat16)
    without, three = (FitMemory(config, base, layout, 32, copies=copies).step(50, 8).update for copies in (0, 3))
    gradient = 4 * 51 * layout.num_parameters
    assert without == gradient
    assert three == gradient + 3 * 4 * 50 * layout.num_parameters  # the tasks' bank; Theta is taken after it


def test_it_grows_with_tasks_rows_tokens_and_fits():
    config, base, layout = make("llama", torch.bfloat16, "lora.target_modules=all-linear")
    peaks = [FitMemory(config, base, layout, tokens).step(4, 8).peak for tokens in (16, 17, 32, 64)]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[-1]
    memory = FitMemory(config, base, layout, 32)
    for grown in (
        [memory.step(tasks, 8).peak for tasks in (1, 2, 50, 51)],
        [memory.step(4, rows).peak for rows in (1, 2, 8, 9, 64)],
        [memory.step(4, 8, fits=fits).peak for fits in (1, 2, 3, 8)],
    ):
        assert grown == sorted(grown)
        assert grown[0] < grown[-1]


def test_what_fits_is_the_largest_number_that_does():
    config, base, layout = make("llama", torch.bfloat16, "lora.target_modules=all-linear", "lora.rank=8")
    memory, limit = FitMemory(config, base, layout, 64), 30_000_000
    tasks = memory.tasks_that_fit(limit, 8)
    assert memory.step(tasks, 8).peak <= limit < memory.step(tasks + 1, 8).peak
    fits = memory.fits_that_fit(limit, 2, 2)
    assert memory.step(2, 2, fits=fits).peak <= limit < memory.step(2, 2, fits=fits + 1).peak
    rows = memory.rows_that_fit(limit, 4, 64)
    assert 1 < rows < 63
    assert memory.step(4, rows, passes=2).peak <= limit < memory.step(4, rows + 1, passes=2).peak
    assert memory.rows_that_fit(10**10, 4, 64) == 64
    assert memory.tasks_that_fit(1000, 8) == memory.rows_that_fit(1000, 4, 64) == memory.fits_that_fit(1000, 4, 8) == 0


def test_what_is_not_reckoned_is_refused():
    config, base, layout = make("opt", torch.float32)
    with pytest.raises(InputError, match="method=vi"):
        FitMemory(with_values(config, method="vi"), base, layout, 32)
    with pytest.raises(InputError, match=r"train\.precision=bf16.*model\.dtype=bfloat16"):
        FitMemory(with_values(config, train={"precision": "bf16"}), base, layout, 32)
