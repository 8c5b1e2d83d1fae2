"""`method=shared_wide`: one adapter for all tasks, with as many parameters as the adapters of all of them together.

Many tasks that share one adapter of a higher rank are a baseline that is easily forgotten (Liu et al. 2025, arXiv
2508.05078): what looks like a gain by an adapter for each task may be a gain by more parameters.
"""

from bora_sweep.config import Config
from bora_sweep.model.wide_rank import largest_useful_rank
from bora_sweep.train.pack import Pack
from bora_sweep.train.trainer import Trainer


class WideTrainer(Trainer):
    """A shared fit, which notes where its rank could not be higher."""

    def __init__(self, config: Config, pack: Pack) -> None:
        super().__init__(config, pack)
        if config.lora.rank >= largest_useful_rank(pack.layout.sites):
            self.state.notes.append(
                f"rank {config.lora.rank} is full at each adapted module, so that a higher one would add nothing: the "
                "adapters of all tasks together may have more parameters"
            )
