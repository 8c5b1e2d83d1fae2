"""What the fits of a pack share: the adapted base model, the corpus, the device, and how batches are made."""

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from bora_sweep.config import Config
from bora_sweep.data.batches import TaskBatch
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import refuse_mismatch
from bora_sweep.model.layout import make_layout
from bora_sweep.model.lengths import length_limits
from bora_sweep.train.device import PASS_TOKENS
from bora_sweep.train.distributed.equal_passes import EqualPasses
from bora_sweep.train.distributed.shard import Shard
from bora_sweep.train.distributed.sharded_base import place_base
from bora_sweep.train.methods.published import PublishedCode, differs_from_default
from bora_sweep.train.protocol import Protocol


class Pack:
    """What fits that share their forward passes have in common. A single fit is a pack of one.

    The base model has hooks while the pack is open: a context manager, or `close`.

    Args:
        config: Of one of the fits. The others have the same adapters, batches and precision.
        corpus: The tokenised text.
        base: The base model; it is frozen, and given back as it came, but stays sharded with `train.shard_base`.
        accelerator: Of the device.

    Raises:
        InputError: The configuration does not fit the model or the corpus.
    """

    def __init__(
        self, config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, accelerator: Accelerator
    ) -> None:
        refuse_mismatch(base, corpus.largest_token, corpus.longest)
        self.config, self.corpus, self.base, self.accelerator = config, corpus, base, accelerator
        kind = PublishedCode if differs_from_default(config) else Protocol
        self.shard, self.protocol = Shard(config, corpus), kind(config, corpus)
        self.layout = make_layout(base, config.lora)
        self.memory_rows: int | None = None
        """Documents that memory holds in a forward pass, once it has run out."""
        self.adapted = AdaptedModel(
            place_base(base, accelerator.device, shard=config.train.shard_base),
            self.layout,
            compiled=config.train.compile,
            checkpointed=config.train.gradient_checkpointing,
            longest=corpus.longest,
        )
        self.equal_passes: EqualPasses | None = None
        """For a sharded base, whose passes all processes must make together."""
        try:
            self.length_limits = length_limits(self.adapted.base, corpus.shortest, corpus.longest)
            self.protocol.check_lengths(self.length_limits)
            if config.train.shard_base:
                self.equal_passes = EqualPasses(self.adapted)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Pack":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off the base model."""
        if self.equal_passes is not None:
            self.equal_passes.close()
        self.adapted.remove_hooks()

    @property
    def dtype(self) -> str:
        """The type of the base's weights, such as `bfloat16`."""
        return str(self.base.dtype).removeprefix("torch.")

    @property
    def base_bytes(self) -> int:
        """Size of the base's weights in memory, on all devices together."""
        return sum(weight.numel() * weight.element_size() for weight in self.base.parameters())

    def autocast(self) -> AbstractContextManager:
        """Mixed precision where it is asked for; weights in bfloat16 are in that precision already."""
        is_narrow = self.base.dtype == torch.bfloat16 and self.config.train.precision == "bf16"
        return nullcontext() if is_narrow else self.accelerator.autocast()

    @property
    def rows(self) -> int:
        """Documents of a training forward pass, at most."""
        train = self.config.train
        return self.memory_rows or train.micro_batch_size or train.batch_size

    @property
    def scoring_rows(self) -> int:
        """Documents of a scoring forward pass: twice as many, as no gradients are held, until memory has run out."""
        return self.memory_rows or 2 * self.rows

    def forward_batches(self, sequence_B: np.ndarray) -> list[TaskBatch]:
        """The batches of a step's forward passes on this process, of the documents of the whole step."""
        asked = self.config.train.pass_tokens
        pass_tokens = asked if isinstance(asked, int) else PASS_TOKENS.get(self.accelerator.device.type)
        local_B = self.shard.sequences(sequence_B)
        return self.protocol.forward_batches(local_B, self.rows, pass_tokens, self.length_limits)
