"""One training step, four times: ours; the paper's published algorithm, and its code's; one PEFT adapter for all rows.

Each loop holds a base model of its own and has `step(batch) -> nats`, a whole optimiser step with the loss read off the
device, as a training loop does to log it.

Shapes: B rows, T tokens, K adapters (one per task), P parameters of one adapter.
"""

import warnings
from importlib.util import find_spec
from typing import Any

import torch
from geometry import Batch, Geometry
from torch import Tensor, nn
from torch.nn import functional as F

from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.hierarchy import Hierarchy
from bora_sweep.model.layout import Layout, make_layout
from bora_sweep.model.likelihood import IGNORED, Likelihood
from bora_sweep.train.optim import make_optimizer, map_step

HAS_PEFT = find_spec("peft") is not None
TAU, NUM_TOKENS, LEARNING_RATE, MAX_GRAD_NORM = 100.0, 100_000, 1e-3, 1.0
GLOBAL = "global"


def num_scored(batch: Batch) -> int:
    """Scored tokens of a batch."""
    return len(batch[1])


class Ours:
    """One forward for all tasks, noncentered coordinates, the proximal step: what `bora_sweep.train` does in a step."""

    def __init__(self, geometry: Geometry, device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> None:
        base = geometry.base(device, dtype)
        self.layout = make_layout(base, geometry.lora)
        initial_P = self.layout.initial(base, 0, torch.promote_types(dtype, torch.float32)).to(device)
        self.hierarchy = Hierarchy(initial_P, num_tasks=geometry.num_tasks, tau=TAU, parametrization="noncentered")
        self.weight_K = torch.ones(geometry.num_tasks, device=device)
        self.adapted = AdaptedModel(base, self.layout, compiled=compiled, longest=geometry.tokens)
        self.likelihood = Likelihood(self.adapted, [self.hierarchy])
        self.optimizer = make_optimizer(self.hierarchy, LEARNING_RATE, "proximal", NUM_TOKENS)

    def backward(self, batch: Batch) -> float:
        """The batch's nats, their gradient per token of the batch in the banks."""
        (nll_B,) = self.likelihood(*batch)
        ((self.weight_K[batch[2]] * nll_B).sum() / num_scored(batch)).backward()
        return nll_B.sum().item()

    def step(self, batch: Batch) -> float:
        """See the module."""
        nats = self.backward(batch)
        map_step(self.hierarchy, self.optimizer, "proximal", NUM_TOKENS, max_norm=MAX_GRAD_NORM)
        return nats

    def gradients(self, batch: Batch) -> tuple[float, Tensor, Tensor]:
        """Nats, and the gradients of `map_objective` in Theta and theta_1..K, the paper's coordinates, per token."""
        nats = self.backward(batch)
        self.hierarchy.add_prior_gradient_(NUM_TOKENS)
        assert self.hierarchy.task_KP is not None
        gradient_P, gradient_KP = self.hierarchy.mean_P.grad, self.hierarchy.task_KP.grad
        assert gradient_P is not None
        assert gradient_KP is not None
        return nats, gradient_P - gradient_KP.sum(0), gradient_KP


class Published:
    """The algorithm of the paper and of its published code, written anew: a forward pass for each task of a batch.

    PEFT's `set_adapter` switches between them; the prior is a loop over the parameters of all tasks, in the form of
    Eq. 5; one backward pass, AdamW. The loss is Transformers' but in float64, which that rounds to float32. Norms that
    the published code computes for its log are left out; `PublishedStep` has them.
    """

    def __init__(self, geometry: Geometry, device: torch.device, dtype: torch.dtype) -> None:
        self.tasks = [f"task{k}" for k in range(geometry.num_tasks)]
        self.model = with_adapters(geometry, [GLOBAL, *self.tasks], device, dtype)
        self.model.base_model.set_adapter([GLOBAL, *self.tasks])
        self.mean = {name: bank for name, bank in self.model.named_parameters() if f".{GLOBAL}." in name}
        for name, bank in self.mean.items():
            for task in self.tasks:
                self._of(name, task).data.copy_(bank)
        trained = [bank for bank in self.model.parameters() if bank.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)

    def _of(self, name: str, task: str) -> nn.Parameter:
        return self.model.get_parameter(name.replace(f".{GLOBAL}.", f".{task}."))

    def backward(self, batch: Batch) -> float:
        """The batch's nats, the gradient of Eq. 6 per token in the adapters."""
        tokens_BT, task_of_row = batch[0], batch[2].tolist()
        nats = []
        for k, task in enumerate(self.tasks):
            own = [row for row, of_row in enumerate(task_of_row) if of_row == k]
            if not own:
                continue
            self.model.base_model.set_adapter(task)
            logits_BTV = self.model(input_ids=tokens_BT[own]).logits
            next_BT = F.pad(tokens_BT[own][:, 1:], (0, 1), value=IGNORED)
            logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
            nats.append(F.cross_entropy(logits_BTV.flatten(0, 1), next_BT.flatten(), reduction="sum"))
        self.model.base_model.set_adapter([GLOBAL, *self.tasks])
        nll = torch.stack(nats).sum()
        (nll / num_scored(batch) + TAU / 2 / NUM_TOKENS * self.squared_distance()).backward()
        return nll.item()

    def squared_distance(self) -> Tensor:
        """sum_d ||theta_d - Theta||^2."""
        total = torch.zeros((), device=self.model.device)
        for name, bank in self.mean.items():
            for task in self.tasks:
                total = total + (self._of(name, task) - bank).square().sum()
        return total

    def step(self, batch: Batch) -> float:
        """See the module."""
        nats = self.backward(batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return nats

    def load_(self, mean_P: Tensor, theta_KP: Tensor, layout: Layout) -> None:
        """Put Theta and theta_1..K where ours are."""
        for adapter, theta_P in zip([GLOBAL, *self.tasks], [mean_P, *theta_KP], strict=True):
            for bank, values in zip(peft_parts(self.model, layout, adapter), theta_P.split(layout.sizes), strict=True):
                bank.data.copy_(values.view_as(bank))

    def gradients(self, batch: Batch, layout: Layout) -> tuple[float, Tensor, Tensor]:
        """As of `Ours`."""
        nats = self.backward(batch)
        flat = [
            torch.cat([(torch.zeros_like(b) if b.grad is None else b.grad).flatten() for b in parts])
            for parts in (peft_parts(self.model, layout, adapter) for adapter in (GLOBAL, *self.tasks))
        ]
        return nats, flat[0], torch.stack(flat[1:])


class PublishedStep(Published):
    """The same with all that the published code does in a step: in each it takes the norm of every task's tensors."""

    def step(self, batch: Batch) -> float:
        """See the module."""
        self.norm_of_task = {
            task: sum(torch.linalg.vector_norm(self._of(name, task)) for name in self.mean) for task in self.tasks
        }
        return super().step(batch)


class OneAdapter:
    """PEFT with one adapter that all rows share, the loss of Transformers and AdamW: what training one task costs."""

    def __init__(self, geometry: Geometry, device: torch.device, dtype: torch.dtype) -> None:
        self.model = with_adapters(geometry, ["default"], device, dtype)
        trained = [bank for bank in self.model.parameters() if bank.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)

    def step(self, batch: Batch) -> float:
        """See the module."""
        loss = self.model(input_ids=batch[0], labels=batch[0]).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item() * num_scored(batch)


def with_adapters(geometry: Geometry, names: list[str], device: torch.device, dtype: torch.dtype) -> Any:
    """A PEFT model with these adapters, all in the base's precision, which spares it casts that ours makes."""
    from peft import LoraConfig, get_peft_model

    rank, targets = geometry.rank, geometry.lora.target_modules
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = geometry.base(device, dtype)
        model = get_peft_model(base, config, adapter_name=names[0], autocast_adapter_dtype=False)
        for name in names[1:]:
            model.add_adapter(name, config, autocast_adapter_dtype=False)
    return model.to(device, dtype).eval()


def peft_parts(model: nn.Module, layout: Layout, adapter: str) -> list[nn.Parameter]:
    """An adapter's parameters in the order of theta_P."""
    path = "base_model.model.{part.site.name}.lora_{part.kind}.{adapter}.weight"
    return [model.get_parameter(path.format(part=part, adapter=adapter)) for part in layout.parts]
