"""What a GPU does with this code: its rates, whether the numbers are right, unlike lengths, kernels, whole fits.

    python benchmarks/gpu_stages.py rates|exactness|lengths|profile|fits

The stages of benchmarks/first_gpu_run.py that have no benchmark of their own. Each finding is a line of JSON, also in
`$OUT/first_gpu_run.jsonl`; one that fails says how, and the next is made.
"""

import math
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pandas as pd
import torch
import transformers
from arguments import start
from geometry import GEOMETRIES, Geometry
from loops import Ours
from pack import random_corpus
from provenance import say
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bora_sweep.config import Config, TrainConfig, with_values
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.model.linear_cross_entropy import linear_nll
from bora_sweep.process import Interrupted
from bora_sweep.train.device import PASS_TOKENS, make_accelerator
from bora_sweep.train.fit import fit
from bora_sweep.train.make_trainer import make_trainer
from bora_sweep.train.methods.tau_estimate import estimate_tau
from bora_sweep.train.pack import Pack
from bora_sweep.train.step import step

TAUS = {"tau=0": 0.0, "tau=100": 100.0}


def find(what: str, work: Callable[[], Any]) -> None:
    """Say what `work` returns, or how it failed."""
    started = time.perf_counter()
    try:
        say(what=what, found=work(), seconds=round(time.perf_counter() - started, 2))
    except Exception as error:  # a finding too
        lines = traceback.format_exc().splitlines()[-4:-1]
        say(what=what, failed=f"{type(error).__name__}: {str(error)[:300]}", at=lines)


def milliseconds(work: Callable[[int], object], repeats: int = 7, warmup: int = 3) -> float:
    """Median time of `work`, the device waited for."""
    seconds = []
    for number in range(-warmup, repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work(number + warmup)
        torch.cuda.synchronize()
        if number >= 0:
            seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)


def rates() -> None:
    """The machine: matrix products, memory, launches, and what attention costs at its first meeting with a shape."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,clocks.sm,driver_version", "--format=csv,noheader"]
    find("GPU", lambda: subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip())
    versions = [torch.__version__, torch.backends.cudnn.version(), transformers.__version__, accelerate.__version__]
    say(what="versions of torch, cuDNN, Transformers, Accelerate", found=versions)
    for rows, inner, columns in ((8192, 8192, 8192), (8192, 1024, 1024), (8192, 1024, 4096), (8192, 2048, 8192)):
        a, b = (torch.randn(*shape, device="cuda", dtype=torch.bfloat16) for shape in ((rows, inner), (columns, inner)))
        flops = 2 * rows * inner * columns
        find(
            f"TFLOP/s of {rows} x {inner} by {inner} x {columns}, bfloat16",
            lambda a=a, b=b, flops=flops: (
                20 * flops / milliseconds(lambda _: [F.linear(a, b) for _ in range(20)]) / 1e9
            ),
        )
    find("TB/s of a copy, read and written", _copy_rate)
    small = torch.zeros(64, device="cuda")
    find("us of a small launch", lambda: milliseconds(lambda _: [small.add_(1) for _ in range(2000)]) / 2)

    def attention(rows: int, tokens: int, backend: SDPBackend) -> list[float]:
        x = torch.randn(rows, 16, tokens, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)

        def there_and_back(_: int) -> None:
            F.scaled_dot_product_attention(x, x, x, is_causal=True).sum().backward()

        with sdpa_kernel([backend]):
            return [milliseconds(there_and_back, repeats=1, warmup=0) for _ in range(2)]

    shapes = (64, 128), (37, 93), (20, 117), (64, 77), (12, 30)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        find(
            f"ms of attention at the first and second meeting with a shape, {backend.name}",
            lambda b=backend: [attention(rows, tokens, b) for rows, tokens in shapes],
        )


def _copy_rate() -> float:
    here, there = (torch.empty(2**30, device="cuda", dtype=torch.float32) for _ in range(2))
    return 2 * 4 * 2**30 / milliseconds(lambda _: there.copy_(here)) / 1e9


def exactness() -> None:
    """Loss and gradients against float64 on the CPU; the same bits from run to run."""
    geometry = replace(GEOMETRIES["tiny"], rows=16, tokens=48)
    same: dict[str, Any] = {}

    def gradients(device: str, dtype: torch.dtype, compiled: bool = False) -> tuple[float, list[Tensor]]:
        torch.manual_seed(0)
        loop = Ours(geometry, torch.device(device), dtype, compiled=compiled)
        (batch,) = geometry.batches(1, torch.device(device))
        if not same:
            same["base"] = {name: weight.double().cpu() for name, weight in loop.adapted.base.state_dict().items()}
            same["banks"] = [0.02 * torch.randn(p.shape, dtype=torch.float64) for p in loop.hierarchy.parameters()]
        loop.adapted.base.load_state_dict(same["base"])
        with torch.no_grad():
            for bank, values in zip(loop.hierarchy.parameters(), same["banks"], strict=True):
                bank.copy_(values)
        nats, *found = loop.gradients(batch)
        return nats, [gradient.double().cpu() for gradient in found]

    nats, expected = gradients("cpu", torch.float64)

    def apart(dtype: torch.dtype, device: str, compiled: bool) -> dict[str, Any]:
        own, found = gradients(device, dtype, compiled)
        of_banks = [((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]
        return {"nats": abs(own - nats) / nats, "gradients of Theta, tasks": of_banks}

    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for device, compiled in (("cpu", False), ("cuda", False), ("cuda", True)):
            if not (compiled and dtype == torch.float64):
                what = f"apart from float64 on the CPU: {device}, {dtype}{', compiled' if compiled else ''}"
                find(what, lambda d=dtype, v=device, c=compiled: apart(d, v, c))

    def bits() -> list[bool]:
        runs = [gradients("cuda", torch.bfloat16)[1] for _ in range(6)]
        return [all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True)) for run in runs[1:]]

    find("the same bits from run to run", bits)
    head = torch.nn.Linear(512, 50272, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    hidden = torch.randn(5000, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(50272, (5000,), device="cuda")
    plain = F.cross_entropy(F.linear(hidden, head.weight).double(), target, reduction="none")
    ours = linear_nll(hidden, head, target)
    pairs = [(ours, plain), tuple(torch.autograd.grad(nll.sum(), hidden)[0] for nll in (ours, plain))]
    find("the loss and its gradient, bfloat16, apart from float64", lambda: [_apart(a, b) for a, b in pairs])


def _apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def documents(count: int = 5000, mean: float = 4.1, spread: float = 0.7, longest: int = 128) -> TokenizedCorpus:
    """Texts of unlike lengths, as a real corpus has them: lognormal ones, of 25 tasks."""
    rng = np.random.default_rng(0)
    length_N = np.clip(rng.lognormal(mean, spread, count).astype(int), 4, longest)
    return _of_lengths(length_N, rng)


def _of_lengths(length_N: np.ndarray, rng: np.random.Generator) -> TokenizedCorpus:
    place = np.arange(len(length_N))
    split = np.select([place % 10 == 8, place % 10 == 9], ["validation", "test"], "train")
    columns = {"task": rng.integers(25, size=len(place)), "split": split, "num_tokens": length_N - 1, "was_cut": False}
    frame = pd.DataFrame(columns).assign(document_id=place.astype(str), floor_nll_nats=math.nan)
    words = rng.integers(4, 50272, length_N.sum(), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(length_N)])
    scored = np.ones(len(words), dtype=bool)
    scored[offsets[:-1]] = False
    return TokenizedCorpus("lengths", tuple(f"t{k}" for k in range(25)), frame, words, scored, offsets)


def lengths() -> None:
    """Tokens per second of an epoch's steps, at the first and second meeting with its shapes."""
    geometry = GEOMETRIES["opt-350m"]
    base = geometry.base(torch.device("cuda"), torch.bfloat16)
    unlike = documents()
    full = _of_lengths(np.full(2500, 128), np.random.default_rng(1))
    here, everywhere = PASS_TOKENS.get("cuda"), None

    def epoch(corpus: TokenizedCorpus, tau: float, pass_tokens: int | None, cudnn: bool = False) -> dict[str, Any]:
        config = with_values(Config(lora=geometry.lora, train=TrainConfig()), prior={"tau": tau})
        accelerator = make_accelerator(config)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        PASS_TOKENS.pop("cuda", None)
        if pass_tokens is not None:
            PASS_TOKENS["cuda"] = pass_tokens
        trainer = make_trainer(config, Pack(config, corpus, base, accelerator))
        batches = trainer.batches(epoch=1)[:25]
        try:
            found = [_tokens_per_second(trainer, batches) for _ in range(2)]
            passes = sum(len(trainer.pack.forward_batches(batch)) for batch in batches) / len(batches)
        finally:
            trainer.pack.close()
        return {"tokens/s": found, "passes a step": passes}

    find("full rows, tau=100", lambda: epoch(full, 100.0, here))
    for name, tau in TAUS.items():
        find(f"unlike lengths, {name}", lambda tau=tau: epoch(unlike, tau, here))
        find(f"unlike lengths, {name}, cut as on a CPU", lambda tau=tau: epoch(unlike, tau, everywhere))
    find("unlike lengths, tau=100, cuDNN's attention", lambda: epoch(unlike, 100.0, here, cudnn=True))


def _tokens_per_second(trainer, batches: Sequence[np.ndarray]) -> int:
    started = time.perf_counter()
    seen = sum(step(trainer.pack, [trainer], batch, len(batches))[1] for batch in batches)
    torch.cuda.synchronize()
    return round(seen / (time.perf_counter() - started))


def profile() -> None:
    """Where a step's time goes: the GPU's busy time beside the wall's, launches, memory, the kernels that take most."""

    def of(geometry: Geometry, dtype: torch.dtype, top: int = 14) -> dict[str, Any]:
        torch.cuda.reset_peak_memory_stats()
        loop, batches = Ours(geometry, torch.device("cuda"), dtype), geometry.batches(2, torch.device("cuda"))
        taken = milliseconds(lambda number: loop.step(batches[number % 2]))
        activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as seen:
            for number in range(3):
                loop.step(batches[number % 2])
            torch.cuda.synchronize()
        kernels = [e for e in seen.key_averages() if e.device_type.name == "CUDA" and "#" not in e.key]
        kernels.sort(key=lambda event: -event.self_device_time_total)
        return {
            "ms": taken,
            "GPU busy ms": sum(event.self_device_time_total for event in kernels) / 3e3,
            "launches": sum(event.count for event in kernels) // 3,
            "peak GiB": torch.cuda.max_memory_allocated() / 2**30,
            "kernels: name, launches, ms": [
                (event.key[:70], event.count // 3, event.self_device_time_total / 3e3) for event in kernels[:top]
            ],
        }

    opt, llama = GEOMETRIES["opt-350m"], GEOMETRIES["llama-1b"]
    for name, geometry in (("opt-350m", opt), ("opt-350m", replace(opt, rows=8)), ("llama-1b", llama)):
        find(f"{name}, {geometry.rows} x {geometry.tokens}", lambda g=geometry: of(g, torch.bfloat16))
        torch.cuda.empty_cache()
    find("opt-350m, 64 x 128, float32", lambda: of(opt, torch.float32))


def fits() -> None:
    """Whole fits of every kind on the GPU, their scores beside those on the CPU; a resume; memory that runs out."""
    geometry = GEOMETRIES["tiny"]
    corpus = random_corpus(geometry, tokens=24, documents=14 * 12)
    plain = Config(lora=geometry.lora, train=TrainConfig(batch_size=16, max_epochs=3))

    def run(config: Config, dtype: torch.dtype = torch.float32, **values: Any):
        return fit(config, corpus, geometry.base(torch.device("cpu"), dtype), **values)

    kinds: dict[str, dict[str, Any]] = {
        "tau=100": {}, "tau=0": {"prior": {"tau": 0.0}}, "tau=inf": {"prior": {"tau": math.inf}},
        "tensor_norm": {"prior": {"penalty": "tensor_norm"}}, "dora": {"lora": {"variant": "dora"}},
        "mora": {"lora": {"variant": "mora"}}, "vi": {"method": "vi"},
        "checkpointed": {"train": {"gradient_checkpointing": True}}, "buckets": {"train": {"length_bucket": 32}},
        "scored padding": {"train": {"padding": "scored", "batches": "fixed"}},
    }  # fmt: skip

    def both(values: dict[str, Any]) -> dict[str, Any]:
        config = with_values(plain, **values)
        here, there = run(config), run(with_values(config, train={"device": "cpu"}))
        apart = float(np.abs(here.nll_nats["test"] / there.nll_nats["test"] - 1).max())
        return {"test nats, largest ratio - 1": apart, "notes": here.state.notes}

    for name, values in kinds.items():
        find(f"a fit on the GPU and on the CPU, {name}", lambda values=values: both(values))
    for dtype, precision in ((torch.bfloat16, "no"), (torch.float32, "bf16"), (torch.float32, "fp16")):
        config = with_values(plain, train={"precision": precision})
        what = f"nats of validation and test, {dtype} base, precision={precision}"
        find(what, lambda c=config, d=dtype: [float(nll.sum()) for nll in run(c, d).nll_nats.values()])
    find("same seed, same bits", lambda: torch.equal(run(plain).theta_KP, run(plain).theta_KP))

    def resumed() -> float:
        beats = iter(range(10**6))

        def check_stop() -> None:
            if next(beats) == 12:
                raise Interrupted

        with tempfile.TemporaryDirectory() as folder:
            try:
                run(plain, folder=Path(folder), check_stop=check_stop)
            except Interrupted:
                return (run(plain, folder=Path(folder)).theta_KP - run(plain).theta_KP).abs().max().item()
        raise AssertionError("not interrupted")

    find("a resumed fit and a whole one, largest difference", resumed)
    shared = with_values(plain, prior={"tau": math.inf})
    base = geometry.base(torch.device("cpu"), torch.float32)
    find("the estimate of tau", lambda: estimate_tau(shared, corpus, base, fit(shared, corpus, base)))
    find("4.5 GiB for a step that wants 6.5", _short_of_memory)


def _short_of_memory() -> list[str]:
    """What a fit notes that may have 4.5 GiB."""
    geometry = GEOMETRIES["opt-350m"]
    text = random_corpus(geometry, tokens=128, documents=64 * 4)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(4.5 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        config = Config(lora=geometry.lora, train=TrainConfig(batch_size=64, max_epochs=1))
        return fit(config, text, geometry.base(torch.device("cuda"), torch.bfloat16)).state.notes
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


STAGES = {"rates": rates, "exactness": exactness, "lengths": lengths, "profile": profile, "fits": fits}


def run(names: list[str]) -> None:
    """The stages, in this process."""
    if not torch.cuda.is_available():
        print("benchmarks/gpu_stages.py measures a GPU and there is none here: nothing was measured")
        sys.exit(1)
    for name in names:
        STAGES[name]()


if __name__ == "__main__":
    start(run, __doc__, "STAGE", choices=STAGES)
