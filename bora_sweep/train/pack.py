"""What the fits of a pack share: the adapted base model, the corpus, the device, and how batches are made."""

from types import TracebackType

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedModel

from bora_sweep.config import Config
from bora_sweep.data.batches import TaskBatch
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.model.adapted import AdaptedModel
from bora_sweep.model.base import refuse_mismatch
from bora_sweep.model.layout import make_layout
from bora_sweep.model.lengths import length_limits
from bora_sweep.model.placement import placed
from bora_sweep.train.device import PASS_TOKENS
from bora_sweep.train.distributed.shard import Shard
from bora_sweep.train.methods.published import PublishedCode, differs_from_default
from bora_sweep.train.protocol import Protocol


class Pack:
    """What fits that share their forward passes have in common. A single fit is a pack of one.

    The base model has hooks while the pack is open: a context manager, or `close`.

    Args:
        config: Of one of the fits. The others have the same adapters, batches and precision.
        corpus: The tokenised text.
        base: The base model; it is frozen, and given back as it came.
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
        self.adapted = AdaptedModel(placed(base, accelerator.device), self.layout, compiled=config.train.compile)
        try:
            self.length_limits = length_limits(self.adapted.base, corpus.shortest, corpus.longest)
            self.protocol.check_lengths(self.length_limits)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Pack":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off the base model."""
        self.adapted.remove_hooks()

    @property
    def rows(self) -> int:
        """Documents of a training forward pass, at most."""
        train = self.config.train
        return self.memory_rows or train.micro_batch_size or train.batch_size

    @property
    def scoring_rows(self) -> int:
        """Documents of a scoring forward pass: twice as many, as no gradients are held, until memory has run out."""
        return self.memory_rows or 2 * self.rows

    def forward_batches(self, document_B: np.ndarray) -> list[TaskBatch]:
        """The batches of a step's forward passes on this process, of the documents of the whole step."""
        pass_tokens = PASS_TOKENS.get(self.accelerator.device.type)
        local_B = self.shard.documents(document_B)
        return self.protocol.forward_batches(local_B, self.rows, pass_tokens, self.length_limits)
