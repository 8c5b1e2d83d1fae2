"""The same number of passes on all processes of a fit whose base is sharded (`train.shard_base`).

Each pass gathers the weights of every block from all processes. A process that makes fewer passes than another would
leave it waiting. So all processes say before each pass that they begin one. A process that has none left makes empty
passes until all have ended: one row whose result, and whose gradient, are dropped.

Shapes: T tokens, P parameters of one adapter.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from bora_sweep.errors import one_line
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.trial_logits import made_up_tokens
from bora_sweep.process import Interrupted
from bora_sweep.train.distributed import process_group
from bora_sweep.train.distributed.sharded_base import root_of

T = TypeVar("T")
EMPTY_TOKENS = 2
"""Length of the row of an empty pass."""


class _ToldToStopError(Interrupted):
    """Another process was asked to stop, and all have agreed on it."""


class EqualPasses:
    """Agrees with the other processes on each pass of the base within `run`.

    Args:
        adapted: The sharded base with its adapters.
    """

    def __init__(self, adapted: AdaptedModel) -> None:
        self.adapted, self.is_running = adapted, False
        self.tokens_1T = made_up_tokens(adapted.base, 1, EMPTY_TOKENS)
        self.hook = root_of(adapted.base).register_forward_pre_hook(self._before_pass, prepend=True)

    def close(self) -> None:
        """Let the base run without agreement."""
        self.hook.remove()

    def run(self, work: Callable[[], T], rows: int) -> T:
        """Run `work`, whose passes may differ in number between processes, then empty passes until all have ended.

        If one process is asked to stop, all raise that before their next pass. If one runs out of memory within a pass,
        the others wait in it, and none can go on: the error ends that process, and its end the others.

        Args:
            work: Passes of the base; each pass with gradients is followed by its backward pass.
            rows: Documents of a training pass at most, for the message.

        Raises:
            Interrupted: `work` raised it, on any process.
            torch.OutOfMemoryError: `work` raised it, on this process.
        """
        result, stop = None, False
        self.is_running = True
        try:
            result = work()
        except _ToldToStopError:
            raise
        except Interrupted:
            stop = True
        except torch.OutOfMemoryError as error:
            fewer = f"train.micro_batch_size below {rows}, or " if rows > 1 else ""
            raise torch.OutOfMemoryError(
                "train.shard_base=true: out of memory in a pass, in which the other processes wait for this one, so "
                f"that none can go on; set {fewer}more ray.workers_per_trial ({one_line(error, limit=200)})"
            ) from error
        finally:
            self.is_running = False
        while True:
            begins, with_gradient = self._agree(stop=stop)
            if not begins:
                return result  # type: ignore[return-value]
            self._empty_pass(with_gradient)

    def _before_pass(self, *_: Any) -> None:
        if self.is_running:
            self._agree(begins=True)

    def _agree(self, *, begins: bool = False, stop: bool = False) -> tuple[bool, bool]:
        """Whether any process begins a pass, and whether one with gradients."""
        own = torch.tensor([begins, begins and torch.is_grad_enabled(), stop], dtype=torch.long)
        passes, with_gradient, stops = process_group.sum_(own).tolist()
        if stops:
            raise _ToldToStopError(f"in {stops} of {process_group.count()} processes")
        return passes > 0, with_gradient > 0

    def _empty_pass(self, with_gradient: bool) -> None:
        base, layout = self.adapted.base, self.adapted.layout
        dtype = torch.promote_types(base.dtype, torch.float32)
        run = self.adapted if self.adapted.head is None else self.adapted.last_hidden_state
        with torch.set_grad_enabled(with_gradient):
            theta_1P = torch.zeros(1, layout.num_parameters, dtype=dtype, device=base.device)
            output = run(self.tokens_1T, theta_1P.requires_grad_(with_gradient))
            if with_gradient:
                output.sum().backward()
