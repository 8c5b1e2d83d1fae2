"""Which trainer makes a fit."""

from bora_sweep.config import Config
from bora_sweep.train.methods.separate import SeparateTrainer
from bora_sweep.train.methods.variational import VariationalTrainer
from bora_sweep.train.pack import Pack
from bora_sweep.train.trainer import Trainer


def make_trainer(config: Config, pack: Pack) -> Trainer:
    """The trainer of `config.method` at `config.prior.tau`.

    Raises:
        InputError: The method does not go with the prior.
    """
    kind = VariationalTrainer if config.method == "vi" else SeparateTrainer if config.is_separate else Trainer
    return kind(config, pack)
