"""Memory of a fit on its device, reckoned before anything is there: from the base's config.json and the settings.

What a forward and a backward pass hold is counted: the real code runs on tensors without numbers (`LiveBytes`), so that
any family of models can be counted. What the banks, the loss and the optimiser hold follows from their sizes.

Shapes: D tasks, G groups, S fits of a pack, B rows of a fit in a forward pass, T tokens, P parameters of one adapter.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import PreTrainedModel

from bora_sweep.config import Config
from bora_sweep.errors import InputError, one_line
from bora_sweep.model.grouped_hierarchy import GroupedHierarchy
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.layout import Layout
from bora_sweep.model.linear_cross_entropy import CHUNK_ELSEWHERE
from bora_sweep.model.live_bytes import LiveBytes
from bora_sweep.model.pass_bytes import PassBytes, Sink, count_passes
from bora_sweep.model.weight_bytes import dense_bytes, stored_bytes
from bora_sweep.train.distributed.sharded_base import blocks_of
from bora_sweep.train.optim import BLOCK_ELSEWHERE, COPIES_ELSEWHERE

METHODS = ("map", "pfedme")
"""Methods whose memory is reckoned: those that train by `bora_sweep.train.optim`."""
MIXED = ("bf16", "fp16")
"""Values of `train.precision` with casts that depend on the device and are not reckoned."""
MOST = 1 << 20
"""Tasks, beyond which no more are looked for."""
MOST_FITS = 64
"""The same of fits of a pack."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes on the device; the best epoch's copy is on the host."""

    base: int
    """The frozen weights."""
    banks: int
    """Theta, the D deviations and those of groups, and two Adam moments of each that moves."""
    gather: int
    """While rows are gathered from the bank, or their gradients are added into the bank's gradient."""
    forward: int
    """A training forward pass, with its loss: rows of adapters, saved activations, logits of a chunk."""
    backward: int
    """The backward pass: the same activations, and the gradients that flow through them."""
    update: int
    """In the optimiser's step: the bank's gradient and temporary copies."""
    scoring: int
    """A forward pass of validation, on twice as many rows, without gradients."""

    @property
    def peak(self) -> int:
        """The permanent parts plus the largest temporary one."""
        return self.base + self.banks + max(self.gather, self.forward, self.backward, self.update, self.scoring)


class FitMemory:
    """The memory of fits with these settings on rows of T tokens.

    Args:
        config: Of a fit. `step` is given the rows and passes instead of its batch size and micro batch.
        base: The base model in the type that it is used in; its weights may be absent (`empty_base`).
        layout: The adapters.
        tokens: T.
        chunk: Positions whose logits are in memory at a time.
        block: Numbers of the bank that the optimiser updates at a time.
        copies: Temporary copies of a block in the optimiser's step.
        num_groups: G, where tasks are in groups.

    Raises:
        InputError: The memory of the method, or of mixed precision, is not reckoned.
    """

    def __init__(
        self, config: Config, base: PreTrainedModel, layout: Layout, tokens: int, *, chunk: int = CHUNK_ELSEWHERE,
        block: int = BLOCK_ELSEWHERE, copies: int = COPIES_ELSEWHERE, num_groups: int = 0,
    ) -> None:  # fmt: skip
        if config.method not in METHODS:
            raise InputError(f"method={config.method}: memory is reckoned for {' and '.join(METHODS)} alone; drop it")
        if config.train.precision in MIXED:
            raise InputError(
                f"train.precision={config.train.precision}: mixed precision is not reckoned; plan with "
                "model.dtype=bfloat16, which is faster too"
            )
        self.config, self.base, self.layout, self.tokens = config, base, layout, tokens
        self.chunk, self.block, self.copies, self.num_groups = chunk, block, copies, num_groups
        self.dtype = torch.promote_types(base.dtype, torch.float32)
        """Of the banks, their gradients and Adam's moments."""
        self._passes, self._gather = lru_cache(self._count_passes), lru_cache(self._count_gather)
        self._scored_gather = lru_cache(self._count_scored_gather)
        quantization = config.model.quantization
        self._weights, self._dense = stored_bytes(base, quantization), dense_bytes(base, quantization)
        if config.train.shard_base:
            self._weights -= _saved_by_sharding(base, config.ray.workers_per_trial)

    def step(self, num_tasks: int, rows: int, *, passes: int = 1, fits: int = 1) -> StepMemory:
        """Peak memory of a step.

        Args:
            num_tasks: D.
            rows: B.
            passes: Forward passes of a step. With more than one, the bank's gradient accumulates while they run.
            fits: S.

        Raises:
            InputError: The model's code cannot be counted.
        """
        held = self._held(num_tasks, passes * rows)
        moving, resting = self._numbers(held, fits)
        gradient = moving * self.dtype.itemsize
        accumulated = gradient if passes > 1 or self.config.is_separate else 0
        counted = self._passes(self.config.is_shared and fits == 1)
        train, score = rows * fits, 2 * rows * fits
        loss = self._loss(counted, train, scores=True)
        forward = max(counted.forward(train) + self._dense, counted.held(train) + loss)
        return StepMemory(
            base=self._weights,
            banks=(3 * (moving + self._waiting(num_tasks, held, fits)) + resting) * self.dtype.itemsize,
            gather=accumulated + self._gather(held, rows, fits, accumulated > 0),
            forward=accumulated + forward,
            backward=accumulated + counted.backward(train) + self._dense,
            update=gradient + self._update_copies(self._largest_bank(held)),
            scoring=max(
                self._scored_gather(held, rows, fits),
                counted.scoring(score) + self._dense,
                counted.scored(score) + self._loss(counted, score, scores=False),
            ),
        )

    def tasks_that_fit(self, memory: int, rows: int, *, passes: int = 1, fits: int = 1) -> int:
        """The largest D whose step needs at most `memory` bytes, up to `MOST`; 0 if one task needs more."""
        return _largest(MOST, memory, lambda tasks: self.step(tasks, rows, passes=passes, fits=fits).peak)

    def rows_that_fit(self, memory: int, num_tasks: int, batch_size: int, *, fits: int = 1) -> int:
        """The largest B, up to the batch, whose step needs at most `memory` bytes; 0 if one row needs more."""
        if self.step(num_tasks, batch_size, fits=fits).peak <= memory:
            return batch_size
        return _largest(batch_size - 1, memory, lambda rows: self.step(num_tasks, rows, passes=2, fits=fits).peak)

    def fits_that_fit(self, memory: int, num_tasks: int, rows: int, *, passes: int = 1) -> int:
        """The largest S whose step needs at most `memory` bytes, up to `MOST_FITS`; 0 if one fit needs more."""
        return _largest(MOST_FITS, memory, lambda fits: self.step(num_tasks, rows, passes=passes, fits=fits).peak)

    def _held(self, num_tasks: int, batch_size: int) -> int:
        """The tasks whose rows a step moves: all D, or with `train.update=present` at most those of a batch."""
        if self.config.update == "all":
            return num_tasks
        return min(num_tasks, batch_size, self.config.train.tasks_per_batch or batch_size)

    def _waiting(self, num_tasks: int, held: int, fits: int) -> int:
        """How many numbers of rows are on the device beside those that a step moves: all, or those of the next batch.

        Args:
            num_tasks: D.
            held: Tasks of a step.
            fits: S.
        """
        if self.config.update == "all" or math.isinf(self.config.tau):
            return 0
        return fits * self.layout.num_parameters * (num_tasks if self.config.train.bank == "device" else held)

    def host_bytes(self, num_tasks: int, fits: int = 1) -> int:
        """Bytes of the rows of all tasks, with moments and those of the best epoch, where `train.bank` puts them."""
        if self.config.train.bank == "device" or math.isinf(self.config.tau):
            return 0
        return 4 * fits * num_tasks * self.layout.num_parameters * self.dtype.itemsize

    def _numbers(self, num_tasks: int, fits: int) -> tuple[int, int]:
        """How many numbers of the banks move, and how many do not."""
        (example,) = self._hierarchies(1, 1)
        theta = fits * self.layout.num_parameters
        bank = 0 if example.task_KP is None else num_tasks * theta
        if isinstance(example, GroupedHierarchy):
            bank += self.num_groups * theta
        return (bank + theta, 0) if example.mean_P.requires_grad else (bank, theta)

    def _largest_bank(self, num_tasks: int) -> int:
        """Numbers of the largest bank of a fit: the optimiser takes one after another."""
        (example,) = self._hierarchies(1, 1)
        rows = 1 if example.task_KP is None else num_tasks
        if isinstance(example, GroupedHierarchy):
            rows = max(rows, self.num_groups)
        return rows * self.layout.num_parameters

    def _update_copies(self, bank: int) -> int:
        """Bytes of the optimiser's temporary copies, or of those of the prior's gradient.

        Args:
            bank: Numbers of the fit's largest bank.
        """
        numbers = self.copies * max(self.layout.num_parameters, min(bank, self.block))
        if self.config.solver == "adamw" and 0 < self.config.tau < math.inf:
            numbers = max(numbers, (2 if self.config.prior.parametrization == "centered" else 1) * bank)
        return numbers * self.dtype.itemsize

    def _loss(self, counted: PassBytes, rows: int, *, scores: bool) -> int:
        """Bytes of `LinearCrossEntropy`: hidden states, a chunk's logits in both types, and for a gradient scores."""
        if counted.head is None:
            return 0
        vocabulary, width = counted.head.weight.shape
        size, positions = self.base.dtype.itemsize, rows * (self.tokens - 1)
        chunk, copy = min(self.chunk, positions), size if size < self.dtype.itemsize else 0
        vectors = 2 * positions + chunk if scores else positions
        return vectors * width * size + chunk * vocabulary * (self.dtype.itemsize + copy)

    def _hierarchies(self, num_tasks: int, fits: int) -> list[Hierarchy]:
        """Theta, G groups and D tasks of each fit, without numbers."""
        config = self.config
        common: dict[str, Any] = {
            "num_tasks": num_tasks, "tau": config.tau, "parametrization": config.prior.parametrization,
            "global_update": config.global_update,
        }  # fmt: skip
        with LiveBytes():
            initial_P = torch.empty(self.layout.num_parameters, dtype=self.dtype)
            if not config.has_group_level:
                return [Hierarchy(initial_P, **common) for _ in range(fits)]
            group_K, num_groups = torch.arange(num_tasks) % self.num_groups, self.num_groups
            common |= {"group_K": group_K, "num_groups": num_groups, "tau_2": config.tau_2}
            return [GroupedHierarchy(initial_P, **common) for _ in range(fits)]

    def _count_gather(self, num_tasks: int, rows: int, fits: int, accumulated: bool) -> int:
        """Peak bytes while rows are gathered from the banks, or their gradients added into the banks' gradients.

        With `accumulated` those of earlier passes are there, which are counted elsewhere.
        """
        hierarchies = self._hierarchies(num_tasks, fits)
        task_B = torch.empty(rows, dtype=torch.long, device="meta")  # real ones would be as large as tasks by rows
        banks = [bank for hierarchy in hierarchies for bank in hierarchy.parameters()]
        with LiveBytes():
            for bank in banks:
                bank.grad = torch.empty_like(bank) if accumulated and bank.requires_grad else None
        with LiveBytes(part for bank in banks for part in (bank, bank.grad) if part is not None) as live:
            dtype = None if self.layout.variant.full_precision else self.base.dtype
            each = [hierarchy.theta_BP(task_B, dtype) for hierarchy in hierarchies]
            theta_BP = each[0] if fits == 1 else torch.cat([theta.expand(rows, -1) for theta in each])
            end = Sink.apply(theta_BP)
            del each, theta_BP
            moving = [bank for hierarchy in hierarchies for bank in hierarchy.parameters() if bank.requires_grad]
            torch.autograd.grad(end, moving, allow_unused=True)  # to accumulate them here, autograd would copy them
            return live.peak

    def _count_scored_gather(self, num_tasks: int, rows: int, fits: int) -> int:
        """Peak bytes while rows are gathered for scoring; where tau is learnt, with smaller deviations."""
        hierarchies = self._hierarchies(num_tasks, fits)
        for hierarchy in hierarchies if self.config.learns_tau else ():
            hierarchy.deviation_factor = 0.5  # any number
        task_B = torch.empty(2 * rows, dtype=torch.long, device="meta")
        with torch.no_grad(), LiveBytes(bank for hierarchy in hierarchies for bank in hierarchy.parameters()) as live:
            dtype = None if self.layout.variant.full_precision else self.base.dtype
            each = [hierarchy.theta_BP(task_B, dtype) for hierarchy in hierarchies]
            if fits > 1:
                torch.cat([theta.expand(2 * rows, -1) for theta in each])
            return live.peak

    def _count_passes(self, shared: bool) -> PassBytes:
        checkpointing = self.config.train.gradient_checkpointing
        try:
            return count_passes(self.base, self.layout, self.tokens, shared=shared, checkpointing=checkpointing)
        except InputError:
            raise
        except Exception as error:  # any model's code
            raise InputError(
                f"model.name={self.config.model.name}: the memory of a {self.base.config.model_type} cannot be counted "
                f"without its weights ({one_line(error, limit=200)}); try a fit with train.max_epochs=1 on the card"
            ) from error


def _saved_by_sharding(base: PreTrainedModel, processes: int) -> int:
    """Bytes of the blocks' weights that a process does not hold, where two whole blocks are gathered at a time."""
    sizes = [sum(weight.nbytes for weight in block.parameters()) for block in blocks_of(base).values()]
    return max(0, sum(sizes) - sum(sizes) // processes - 2 * max(sizes))


def _largest(limit: int, memory: int, peak: Callable[[int], int]) -> int:
    """The largest number up to `limit` whose peak, which grows with it, is at most `memory`; 0 if that of 1 is more."""
    return bisect_right(range(1, limit + 1), memory, key=peak)
