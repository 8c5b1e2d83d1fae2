"""What one fit owns: Theta and the tasks' adapters, the optimiser, and how far it has come.

`bora_sweep.train.step` makes its steps, on the MAP objective (`bora_sweep.model.map_objective`).

Shapes: N documents, F fits (at tau = 0 each task, at tau_2 = 0 each group, else one), K adapters (one per task), P
parameters of one adapter.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from bora_sweep.config import UNTRAINED, Config
from bora_sweep.model.grouped_hierarchy import GroupedHierarchy
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.prior import group_names, group_precisions
from bora_sweep.train.optim import learning_rate_factors, make_optimizer, make_scheduler, map_step, task_weights
from bora_sweep.train.out_of_memory import explain_oom
from bora_sweep.train.pack import Pack
from bora_sweep.train.present import PresentHierarchy, PresentTasks
from bora_sweep.train.row_bank import RowBank
from bora_sweep.train.row_log import RowLog
from bora_sweep.train.state import State


class Trainer:
    """One MAP fit while it runs.

    Args:
        config: Of the fit.
        pack: What it shares with the other fits of its pack.
    """

    num_fits = 1
    """F, the number of best epochs that are kept."""

    def __init__(self, config: Config, pack: Pack) -> None:
        self.config, self.pack = config, pack
        base, device, shard = pack.base, pack.accelerator.device, pack.shard
        dtype = torch.promote_types(base.dtype, torch.float32)
        self.bank = None
        """The tasks' rows outside of a step, where a step moves those of its batch alone."""
        self.row_log = RowLog(pack.corpus.num_tasks)
        """Where checkpoints have those rows."""
        kind = self.hierarchy_class()
        if config.update == "present" and config.tau < math.inf:
            self.bank = RowBank(shard.num_tasks, pack.layout.num_parameters, config.train.bank, device, dtype)
            kind = partial(PresentHierarchy, bank=self.bank)
        if config.has_group_level:
            groups = {"group_K": torch.as_tensor(pack.corpus.group_K), "num_groups": len(pack.corpus.groups)}
            kind = partial(GroupedHierarchy, **groups, tau_2=config.tau_2)
        initial_P = pack.layout.initial(base, config.train.seed, dtype).to(device)
        self.group_names = group_names(config.prior, pack.layout, pack.corpus.tasks)
        scale_G = [config.prior.group_scales.get(name, 1.0) for name in self.group_names]
        self.hierarchy = kind(
            initial_P,
            num_tasks=pack.corpus.num_tasks,
            tau=config.tau,
            parametrization=config.prior.parametrization,
            precision=group_precisions(config.tau, scale_G, config.prior.groups, pack.layout, shard.tasks, initial_P),
            global_update=config.global_update,
            holds_mean=config.method == "add" and config.is_separate,
            num_local_tasks=shard.num_tasks,
            sum_over_tasks=shard.sum_over_tasks,
        )
        pack.protocol.initialise_(self.hierarchy, shard.tasks)
        self.weight_K = torch.from_numpy(task_weights(config, pack.corpus)[shard.tasks]).to(device, dtype)
        optimizer = self.make_optimizer()
        self.scheduler = make_scheduler(config, pack.corpus, optimizer)
        # All of it is in its place; Accelerate would move the count of steps, which the host reads, to the device.
        self.optimizer = pack.accelerator.prepare(optimizer, device_placement=[False])
        self.present = None
        if isinstance(self.hierarchy, PresentHierarchy):
            self.present = PresentTasks(self.hierarchy, self.optimizer)
        self.state = State(
            best_epochs=[0] * self.num_fits,
            best_nll_nats=[math.inf] * self.num_fits,
            best_scores=[-math.inf] * self.num_fits,
        )
        self.best = self.parameters()

    def hierarchy_class(self) -> Callable[..., Hierarchy]:
        """What makes Theta and the tasks, with the arguments of `Hierarchy`."""
        return self.pack.protocol.hierarchy_class(self.pack.layout)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the banks, with its moments."""
        mean_P = self.hierarchy.mean_P
        return make_optimizer(
            self.hierarchy,
            self.config.learning_rate,
            self.config.solver,
            self.prior_tokens,
            rate=learning_rate_factors(self.config, self.pack.layout).to(mean_P.device, mean_P.dtype),
            kind=self.pack.protocol.optimizer,
        )

    @property
    def prior_tokens(self) -> int | Tensor:
        """The tokens by which the prior is divided: N; of separate fits those of each task's fit, shape (K, 1)."""
        num_tokens = self.pack.protocol.objective_tokens
        return num_tokens / self.weight_K[:, None] if self.config.is_separate else num_tokens

    def note_fewer_rows(self, reason: str, before: int, rows: int) -> None:
        """Note that forward passes hold `rows` documents from now on, and held `before`.

        Args:
            reason: Why, such as "out of memory".
            before: Documents.
            rows: Documents.
        """
        self.state.micro_batch_size = rows
        self.state.notes.append(f"{reason} with {before} documents in a forward pass; went on with {rows}")

    @property
    def stopped_by(self) -> str | None:
        """Why the fit has ended; None while a further epoch is due."""
        if self.config.method in UNTRAINED or (self.config.method == "add" and math.isinf(self.config.tau)):
            return self.config.method
        if self.state.diverged is not None:
            return "divergence"
        if self.state.stopped is not None:
            return self.state.stopped
        if not self.has_patience(self.state.epoch + 1).any():
            return "patience"
        return "max_epochs" if self.state.epoch >= self.config.train.max_epochs else None

    def has_patience(self, epoch: int) -> np.ndarray:
        """Whether the patience of each fit reaches as far as this epoch, shape F."""
        return epoch - np.array(self.state.best_epochs) <= self.config.train.patience

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The documents of each step of an epoch, the same for all fits of a pack."""
        return self.pack.protocol.training_batches(epoch)

    def begin_epoch(self, batches: Sequence[np.ndarray]) -> None:
        """Called before the steps of an epoch, with the sequences of each."""
        if self.present is not None:
            self.present.begin_epoch([self.pack.shard.tasks_of(sequence_B) for sequence_B in batches])

    def begin_step(self, sequence_B: np.ndarray, following_B: np.ndarray | None = None) -> None:
        """Called before the forward passes of a step, with its sequences and those of the next one, if it is known."""
        if self.present is not None:
            tasks_of = self.pack.shard.tasks_of
            self.present.begin_step(tasks_of(sequence_B), None if following_B is None else tasks_of(following_B))

    def restored(self) -> None:
        """Called when the state of a checkpoint has been taken up."""

    def descend(self, nll_nats: float) -> None:
        """One optimiser step from the likelihood's gradient in the banks; none where the nats are not finite."""
        if not math.isfinite(nll_nats):
            self._diverge(f"the loss is {nll_nats} at step {self.state.step + 1} (epoch {self.state.epoch + 1})")
            return
        self.pack.shard.sum_gradients_(self.hierarchy)
        self.pack.accelerator.unscale_gradients(self.optimizer)
        work = partial(
            map_step,
            self.hierarchy,
            self.optimizer,
            self.config.solver,
            self.prior_tokens,
            max_norm=self.config.train.max_grad_norm,
            global_update=self.config.global_update,
        )
        explain_oom(self.pack, self.config, "in the optimiser's step", work)
        if self.bank is not None:
            self.bank.note_step()
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()
        self.state.step += 1

    def end_epoch(self) -> None:
        """Close an epoch of training, and record its sums over the training split."""
        if self.config.global_update == "alternating":
            self.hierarchy.recenter_()
        nats, num_tokens, seconds = self.state.nats, self.state.num_tokens, self.state.seconds
        self.state.end_epoch()
        self._record("train", nats, num_tokens, seconds)

    def update_best(self, nll_N: np.ndarray, seconds: float, score_F: np.ndarray | None = None) -> None:
        """Keep the parameters where validation is the best so far.

        Args:
            nll_N: Nats of each validation document at this epoch.
            seconds: What scoring took.
            score_F: The mean of `metric.early_stopping` for each fit; None: perplexity chooses.
        """
        protocol = self.pack.protocol
        self._record("validation", float(nll_N.sum()), protocol.num_validation_tokens, seconds)
        nll_F = protocol.selection_nats(self.state, nll_N, self.sum_of_fits(nll_N))
        if nll_F is None:
            return
        if not np.isfinite(nll_F).any():
            self._diverge(f"the validation loss is {nll_N.sum()} at step {self.state.step} (epoch {self.state.epoch})")
            return
        is_better_F = nll_F < np.array(self.state.best_nll_nats)
        if score_F is not None:
            best_F = np.array(self.state.best_scores)
            is_better_F = np.isfinite(nll_F) & ((score_F > best_F) | ((score_F == best_F) & is_better_F))
        better_F = self.has_patience(self.state.epoch) & is_better_F
        for index in np.flatnonzero(better_F).tolist():
            if score_F is not None:
                self.state.best_scores[index] = float(score_F[index])
            self.state.best_nll_nats[index], self.state.best_epochs[index] = float(nll_F[index]), self.state.epoch
        if better_F.any():
            self.keep(better_F)

    def sum_of_fits(self, nll_N: np.ndarray) -> np.ndarray:
        """Nats of the validation split for each fit, shape F."""
        return nll_N.sum(keepdims=True)

    def mean_of_fits(self, task_N: np.ndarray, score_N: np.ndarray) -> np.ndarray:  # noqa: ARG002, see SeparateTrainer
        """The mean score of validation documents for each fit, shape F.

        Args:
            task_N: The task of each document.
            score_N: Its score.
        """
        return score_N.mean(keepdims=True)

    def keep(self, better_F: np.ndarray) -> None:  # noqa: ARG002, a single fit is better or is not
        """Keep the parameters of the fits that are better."""
        self.best = self.parameters()
        if self.bank is not None:
            self.bank.keep_best()

    def begin_at(self, mean_P: Tensor, theta_KP: Tensor, theta_GP: Tensor | None = None) -> None:
        """Begin at this Theta and these adapters of this process's tasks and groups, which are the best ones so far."""
        self.hierarchy.set_adapters_(mean_P, theta_KP, *(() if theta_GP is None else (theta_GP,)))
        self.best = self.parameters()
        if self.bank is not None:
            self.bank.keep_best()

    def return_to_best(self) -> None:
        """Load the parameters of the best epoch."""
        with torch.no_grad():
            for name, parameter in self.whole_parameters():
                parameter.copy_(self.best[name])
        if self.bank is not None:
            self.bank.return_to_best()

    def std_KP(self) -> Tensor | None:
        """The posterior standard deviations of the tasks at the best epoch, where the method gives them."""
        return None

    def parameters(self) -> dict[str, Tensor]:
        """A copy of Theta, and of the tasks' bank if that is on the device, on the host."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.whole_parameters()}

    def whole_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Theta, and the tasks' bank unless a `RowBank` has its rows."""
        named = self.hierarchy.named_parameters()
        return [(name, parameter) for name, parameter in named if self.bank is None or name != "task_KP"]

    def _diverge(self, what: str) -> None:
        tau, rate = self.config.tau, self.config.learning_rate
        taus = f"tau={tau:g}" + (f", tau_2={self.config.tau_2:g}" if self.config.has_group_level else "")
        self.state.diverged = f"{what} with {taus} and learning rate {rate:g}; lower the learning rate"

    def _record(self, split: str, nll_nats: float, num_tokens: int, seconds: float) -> None:
        self.state.curve.append(
            {
                "epoch": self.state.epoch,
                "step": self.state.step,
                "split": split,
                "nll_nats": nll_nats,
                "num_tokens": num_tokens,
                "learnt_tau": self.state.tau,
                "log_prior": self.hierarchy.log_prior().item(),
                "learning_rate": self.scheduler.get_last_lr()[0],
                "seconds": seconds,
            }
        )
