"""The Triton kernels beside torch's operations on a GPU: their distance from float64, and their time.

    python benchmarks/triton_kernels.py

The optimiser's step over banks of 25 and 256 tasks of opt-350m's adapters, and the loss of a chunk of 2,048 positions
at two sizes of vocabulary. Lines of JSON, also in `$OUT/first_gpu_run.jsonl`; without a GPU it says so and ends.
"""

import sys
from typing import Any

import torch
from arguments import start
from provenance import say
from timing import interleaved
from torch import Tensor, nn
from torch.nn import functional as F

from bora_sweep.kernels import has_kernels_for
from bora_sweep.train.optim import ProximalAdam

PARAMETERS, ROUNDS = 1_572_864, 20
PRECISION, RATE = 1e-3, 1e-3


class InBlocks(ProximalAdam):
    """The step by torch's operations."""

    def _step(self, bank: Tensor, gradient: Tensor, group: dict) -> None:
        self.state[bank]["step"] += 1
        self._step_in_blocks(bank, gradient, group)


def apart(found: Tensor, expected: Tensor) -> float:
    """The relative distance, in float64."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def steps(num_tasks: int) -> dict[str, Any]:
    """A bank after three steps of each kind, apart from float64; and the milliseconds of a step."""
    start_KP = torch.randn(num_tasks, PARAMETERS, device="cuda")
    gradients = [torch.randn_like(start_KP) for _ in range(3)]

    def after(kind: type[ProximalAdam], dtype: torch.dtype) -> tuple[nn.Parameter, ProximalAdam]:
        bank = nn.Parameter(start_KP.to(dtype, copy=True))
        optimizer = kind([{"params": [bank], "prior_precision": PRECISION, "rate": 1.0}], lr=RATE)
        for gradient in gradients:
            bank.grad = gradient.to(dtype)
            optimizer.step()
        return bank, optimizer

    moved = [after(kind, torch.float32) for kind in (ProximalAdam, InBlocks)]
    few = start_KP[:1], [gradient[:1] for gradient in gradients]
    start_KP, gradients = few
    exact, alone = after(InBlocks, torch.float64)[0], after(ProximalAdam, torch.float32)[0]
    taken = interleaved([lambda _, o=optimizer: o.step() for _, optimizer in moved], ROUNDS, warmup=3)
    return {
        "kernel": has_kernels_for(moved[0][0]),
        "kernel and blocks apart": apart(moved[0][0], moved[1][0]),
        "apart from float64, one task's step": apart(alone - start_KP, exact - start_KP),
        "ms, kernel and blocks": [1e3 * one.median for one in taken],
    }


def losses(vocabulary: int, positions: int = 2048) -> dict[str, Any]:
    """Nats and errors of a chunk apart from float64, and the milliseconds of the kernel and of torch's operations."""
    from bora_sweep.kernels.cross_entropy import cross_entropy_

    logits_CV = 5 * torch.randn(positions, vocabulary, device="cuda")
    target_C = torch.randint(vocabulary, (positions,), device="cuda")
    nats_C, error_CV = logits_CV.new_empty(positions), torch.empty_like(logits_CV, dtype=torch.bfloat16)
    expected_C = F.cross_entropy(logits_CV[:256].double(), target_C[:256], reduction="none")
    error_of = logits_CV[:256].double().softmax(-1) - F.one_hot(target_C[:256], vocabulary)

    def kernel(_: int) -> None:
        cross_entropy_(logits_CV, target_C, nats_C, error_CV)

    def plain(_: int) -> None:
        F.cross_entropy(logits_CV, target_C, reduction="none")
        logits_CV.softmax(-1).scatter_add_(1, target_C[:, None], logits_CV.new_full((positions, 1), -1.0)).bfloat16()

    taken = interleaved([kernel, plain], ROUNDS, warmup=3)
    return {
        "nats and errors apart from float64": [apart(nats_C[:256], expected_C), apart(error_CV[:256], error_of)],
        "ms, kernel and torch": [1e3 * one.median for one in taken],
    }


def run() -> None:
    """All of it."""
    if not torch.cuda.is_available():
        print("benchmarks/triton_kernels.py measures a GPU and there is none here: nothing was measured")
        sys.exit(1)
    for num_tasks in (25, 256):
        say(what=f"the optimiser's step, {num_tasks} tasks", found=steps(num_tasks))
    for vocabulary in (50_272, 128_256):
        say(what=f"the loss of a chunk, vocabulary of {vocabulary:,}", found=losses(vocabulary))


if __name__ == "__main__":
    start(run, __doc__)
