"""One MAP fit of the hierarchical model, Eq. 6, on Accelerate: what it holds, and its side of each step.

The objective is J = (1/N) [sum_d nll_d - log p(theta | Theta, tau)], in nats per scored token of the training split.
`bora_sweep.train.fit` runs the steps, of one fit or of several that share their forward passes.

Shapes: B rows, N documents, F fits (at tau = 0 each task, else one), K adapters (one per task), P parameters of one
adapter.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from bora_sweep.config import UNTRAINED, Config
from bora_sweep.data.batches import fixed_batches, forward_parts, longest_of, training_batches
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.errors import InputError
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import refuse_mismatch
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.layout import make_layout
from bora_sweep.model.lengths import length_limits
from bora_sweep.model.peft_io import read_adapters
from bora_sweep.model.prior import group_precisions
from bora_sweep.runs.storage import Folder
from bora_sweep.train.checkpoint import load_checkpoint, num_recorded_ooms
from bora_sweep.train.checkpoint_names import moments, names_of, restore_moments, task_order
from bora_sweep.train.device import PASS_TOKENS
from bora_sweep.train.distributed.process_group import from_rank_zero
from bora_sweep.train.distributed.shard import Share
from bora_sweep.train.methods.published import ScoredSplit
from bora_sweep.train.optim import learning_rates, make_optimizer, make_scheduler, map_step, task_weights
from bora_sweep.train.state import Start, State


class Trainer:
    """What one fit holds while it runs."""

    num_fits = 1
    """Fits whose patience runs out by itself: one."""

    def __init__(
        self, config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, accelerator: Accelerator
    ) -> None:
        refuse_mismatch(base, corpus.largest_token, corpus.longest)
        self.config, self.corpus, self.accelerator = config, corpus, accelerator
        self.num_tokens, self.share = corpus.num_tokens("train"), Share(config, corpus)
        self.divisor = self.num_tokens if config.train.likelihood == "tokens" else 1
        self.validation = ScoredSplit(corpus, "validation", config.train)
        device = accelerator.device
        self.layout = make_layout(base, config.lora)
        dtype = torch.promote_types(base.dtype, torch.float32)
        self.hierarchy = Hierarchy(
            self.layout.initial(base, config.train.seed, dtype).to(device),
            num_tasks=corpus.num_tasks,
            tau=config.prior.tau,
            parametrization=config.prior.parametrization,
            tau_P=group_precisions(config.prior, self.layout, device, dtype),
            global_update=config.global_update,
            num_local_tasks=self.share.num_tasks,
            sum_over_tasks=self.share.total,
            tensor_sizes=self.layout.sizes if config.prior.penalty == "tensor_norm" else None,
        )
        if config.train.initial_noise > 0:
            self.add_initial_noise_()
        self.weight_K = torch.from_numpy(task_weights(config, corpus)[self.share.tasks]).to(device, dtype)
        self.adapted = AdaptedModel(base.to(device), self.layout, compiled=config.train.compile)
        self.length_limits = self._length_limits()
        rate = learning_rates(config, self.layout).to(device, dtype)
        stands_still = config.prior.tau == 0 and not config.is_separate
        optimizer = make_optimizer(
            self.hierarchy, config.learning_rate, config.solver, self.divisor, rate, rowwise=stands_still
        )
        self.scheduler = make_scheduler(config, corpus, optimizer)
        self.optimizer = accelerator.prepare(optimizer)
        self.state = State(best_epochs=[0] * self.num_fits, best_nll_nats=[math.inf] * self.num_fits)
        self.best = self._parameters()

    def _length_limits(self) -> tuple[int, ...]:
        """Lengths that no shorter document is padded beyond."""
        limits = length_limits(self.adapted.base, self.corpus.shortest, self.corpus.longest)
        if limits and self.config.train.padding != "ignored":
            raise InputError(
                f"train.padding={self.config.train.padding}: the model is another one in rows of more than {limits[0]} "
                f"tokens, to which shorter documents would be filled up; set model.max_tokens={limits[0]}"
            )
        return limits

    @torch.no_grad()
    def add_initial_noise_(self) -> None:
        """Each task off Theta by noise of its own."""
        bank = self.hierarchy.task_KP
        if bank is not None:
            for row, task in enumerate(range(self.share.tasks.start, self.share.tasks.stop)):
                rng = np.random.default_rng([self.config.train.seed, task])
                noise_P = rng.normal(0, self.config.train.initial_noise, bank.shape[-1])
                bank[row] += torch.from_numpy(noise_P).to(bank)

    @property
    def stopped_by(self) -> str | None:
        """Why no further epoch is due, None while one is."""
        if self.config.method in UNTRAINED:
            return self.config.method
        if self.state.diverged is not None:
            return "divergence"
        if self.state.stopped is not None:
            return self.state.stopped
        if not self._is_due(self.state.epoch + 1).any():
            return "patience"
        return "max_epochs" if self.state.epoch >= self.config.train.max_epochs else None

    def _is_due(self, epoch: int) -> np.ndarray:
        """Of each fit, whether its patience reaches as far as this epoch."""
        return epoch - np.array(self.state.best_epochs) <= self.config.train.patience

    @property
    def micro_batch_size(self) -> int:
        """Documents per forward pass at most."""
        train = self.config.train
        return self.state.micro_batch_size or train.micro_batch_size or train.batch_size

    @property
    def scoring_batch_size(self) -> int:
        """Twice as many, as there are no gradients to hold; as many, once memory has run out."""
        return self.state.micro_batch_size or 2 * self.micro_batch_size

    def halve_micro_batch(self) -> None:
        """After a pass that the device's memory did not hold: what it left goes, and the next is half as large."""
        self._bound_micro_batch(self.micro_batch_size // 2, "out of memory")
        for bank in self.hierarchy.parameters():
            if bank.grad is not None:
                bank.grad.zero_()

    def _bound_micro_batch(self, rows: int, why: str) -> None:
        before = self.micro_batch_size
        self.state.micro_batch_size = max(1, rows)
        now = self.state.micro_batch_size
        self.state.notes.append(f"{why} with {before} documents in a forward pass; went on with {now}")

    def start(self, folder: Folder | None = None, start: Start | None = None) -> bool:
        """Go on from the newest checkpoint in `folder`, else begin: at `start`, or at the adapters of `init_from`.

        A process that was killed for its memory left no word; each such time counts as one pass that was too large.

        Returns:
            Whether the model is to be scored before training, epoch 0.

        Raises:
            InputError: Adapters of `init_from`, or a checkpoint, that this fit could not go on from.
        """
        checkpoint = from_rank_zero(lambda: None if folder is None else load_checkpoint(folder))
        if checkpoint is not None:
            tensors, progress, damage = checkpoint
            self._restore(tensors, progress)
            self.state.notes += damage
        kills = from_rank_zero(lambda: 0 if folder is None else num_recorded_ooms(folder))
        train = self.config.train
        if self.micro_batch_size > (rows := max(1, (train.micro_batch_size or train.batch_size) >> kills)):
            self._bound_micro_batch(rows, "killed for its memory")
        if checkpoint is not None:
            return False
        if start is None and self.config.init_from is not None:
            source = Path(self.config.init_from)
            start = Start(*read_adapters(source, self.layout, self.config.lora, self.corpus.tasks))
        if start is not None:
            self.hierarchy.set_adapters_(start.mean_P, self.share.part(start.theta_KP))
            self.best = self._parameters()
        return start is None or start.is_candidate

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The documents of each step of an epoch."""
        train = self.config.train
        if train.batches == "fixed":
            return fixed_batches(self.corpus, "train", train.batch_size, train.seed)
        return training_batches(self.corpus, train.batch_size, train.seed, epoch)

    def parts(self, document_B: np.ndarray) -> list[np.ndarray]:
        """The documents of each of this process's forward passes of a step."""
        own_B = self.share.documents(document_B)
        if self.width(document_B) is not None:  # rows of one length, whatever the documents'
            return [own_B[i : i + self.micro_batch_size] for i in range(0, len(own_B), self.micro_batch_size)]
        pass_tokens = PASS_TOKENS.get(self.accelerator.device.type)
        return forward_parts(self.corpus, own_B, self.micro_batch_size, pass_tokens, self.length_limits)

    def width(self, document_B: np.ndarray) -> int | None:
        """Positions of each row of a batch, where what fills a row is scored; None where it is not."""
        if self.config.train.padding == "ignored" or len(document_B) == 0:
            return None
        return longest_of(self.corpus, document_B)

    def begin_step(self) -> None:
        """Before the forward passes of a step."""

    def weights(self, document_B: np.ndarray, num_batches: int) -> tuple[float, Tensor]:
        """What the nats of a batch are multiplied by in J, for all tasks and for each.

        The M batches of an epoch part the training split, so M times the nats of a batch drawn at random is an unbiased
        estimate of the sum in Eq. 4, and over an epoch the estimates average to it exactly. With
        `train.likelihood=documents` J is not per token, and a task's nats are divided by its scored tokens in the batch
        and multiplied by its number of training documents.
        """
        if self.config.train.likelihood == "tokens":
            return num_batches / self.num_tokens, self.weight_K
        scored_B = self.corpus.documents["num_tokens"].to_numpy()[document_B]
        if (width := self.width(document_B)) is not None:
            scored_B = scored_B + width - np.diff(self.corpus.offsets)[document_B]
        task_N, size = self.corpus.documents["task"].to_numpy(), self.corpus.num_tasks
        scored_K = np.bincount(task_N[document_B], scored_B, size)
        weight_K = np.bincount(task_N[self.corpus.split("train")], minlength=size) / np.maximum(scored_K, 1)
        return 1.0, torch.from_numpy(weight_K).to(self.weight_K)

    def loss(self, nll_B: Tensor, task_B: Tensor, scale: float, weight_K: Tensor) -> Tensor:
        """A batch's share of J without the prior, `scale` and `weight_K` from `weights`."""
        return scale * (weight_K[task_B] * nll_B).sum()

    def end_step(self, nll_nats: float) -> None:
        """One optimiser step on the gradients that the banks hold; none where the batch's nats are not finite."""
        if not math.isfinite(nll_nats):
            self.state.diverged = (
                f"the loss is {nll_nats} at step {self.state.step + 1} (epoch {self.state.epoch + 1}) with tau="
                f"{self.config.prior.tau:g} and learning rate {self.config.learning_rate:g}; lower the learning rate"
            )
            return
        self.share.sum_gradients_(self.hierarchy)
        self.accelerator.unscale_gradients(self.optimizer)
        norm, update = self.config.train.max_grad_norm, self.config.global_update
        map_step(self.hierarchy, self.optimizer, self.config.solver, self.divisor, norm, update)
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()
        self.state.step += 1

    def end_epoch(self) -> None:
        """After the last step: the sums over the training split as it was seen, and what it took."""
        if self.config.global_update == "alternating":
            self.hierarchy.recenter_()
        nats, num_tokens, seconds = self.state.nats, self.state.num_tokens, self.state.seconds
        self.state.end_epoch()
        self._record("train", nats, num_tokens, seconds)

    def update_best(self, nll_N: np.ndarray, seconds: float) -> None:
        """Keep the epoch if its scores of the validation split are the best so far."""
        self._record("validation", float(nll_N.sum()), int(self.validation.scored_N.sum()), seconds)
        if self.config.train.reported == "best_epochs" and not self._report(nll_N):
            return
        nll_F = self._nats_of_fits(nll_N)
        if not np.isfinite(nll_F).any():
            self.state.diverged = (
                f"the validation loss is {nll_N.sum()} at step {self.state.step} (epoch {self.state.epoch}) with tau="
                f"{self.config.prior.tau:g} and learning rate {self.config.learning_rate:g}; lower the learning rate"
            )
            return
        better_F = self._is_due(self.state.epoch) & (nll_F < np.array(self.state.best_nll_nats))
        for index in np.flatnonzero(better_F).tolist():
            self.state.best_nll_nats[index], self.state.best_epochs[index] = float(nll_F[index]), self.state.epoch
        if better_F.any():
            self._keep(better_F)

    def _report(self, nll_N: np.ndarray) -> bool:
        """Note what the published code would of an epoch; whether it would: it does not look at the untrained model."""
        if self.state.epoch == 0:
            return False
        found, state = self.validation.numbers(nll_N), self.state
        earlier = state.reported_nats or [math.inf] * self.corpus.num_tasks
        state.reported_nats = np.fmin(earlier, found.nats_K).tolist()
        state.reported_perplexity = min(state.reported_perplexity, found.perplexity)
        return True

    def _nats_of_fits(self, nll_N: np.ndarray) -> np.ndarray:
        if self.config.train.reported == "best_epochs":
            return np.array([self.validation.numbers(nll_N).nats * self.validation.scored_N.sum()])
        return nll_N.sum(keepdims=True)

    def _keep(self, better_F: np.ndarray) -> None:  # noqa: ARG002, a single fit is better or is not
        self.best = self._parameters()

    def return_to_best(self) -> None:
        """Put the banks where they were at the best epoch."""
        self.hierarchy.load_state_dict(self.best)

    def std_KP(self) -> Tensor | None:
        """Of the posterior of the tasks at the best epoch, where the method gives one."""
        return None

    def _record(self, split: str, nll: float, tokens: int, seconds: float) -> None:
        self.state.curve.append(
            {
                "epoch": self.state.epoch,
                "step": self.state.step,
                "split": split,
                "nll_nats": nll,
                "num_tokens": tokens,
                "log_prior": self.hierarchy.log_prior().item(),
                "learning_rate": self.scheduler.get_last_lr()[0],
                "seconds": seconds,
            }
        )

    def _parameters(self) -> dict[str, Tensor]:
        """A copy of the banks, on the host: a GPU's memory decides how many tasks fit."""
        return {name: bank.detach().to("cpu", copy=True) for name, bank in self.hierarchy.named_parameters()}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a resume needs: parameters now and at the best epoch, and Adam's moments.

        Whole in the first process, for which the others must call this too.
        """
        best = {f"best.{name}": bank for name, bank in self.best.items()}
        held = {**self._parameters(), **best, **moments(self.optimizer, self.hierarchy)}
        return {name: self.share.whole(tensor) if tensor.dim() == 2 else tensor for name, tensor in held.items()}

    def progress(self) -> dict[str, Any]:
        """All else that a resume needs, as JSON."""
        scaler = self.accelerator.scaler
        return {
            **names_of(self.layout, self.corpus.tasks),
            "state": asdict(self.state),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _restore(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        order = task_order(progress, self.layout, self.corpus.tasks, "the fit's checkpoint")
        self.state = State(**progress["state"])
        if order != sorted(order):
            tensors = {name: tensor[order] if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
            self.state.reorder(order)
        tensors = {name: self.share.part(tensor) if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
        names = list(self._parameters())
        self.hierarchy.load_state_dict({name: tensors[name] for name in names})
        self.best = {name: tensors[f"best.{name}"] for name in names}
        restore_moments(self.optimizer, self.hierarchy, tensors)
        self.scheduler.load_state_dict(progress["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(progress["scaler"])
