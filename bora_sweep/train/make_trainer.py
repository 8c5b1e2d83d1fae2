"""Which trainer makes a fit."""

from accelerate import Accelerator
from transformers import PreTrainedModel

from bora_sweep.config import Config
from bora_sweep.data.tokens import TokenizedCorpus
from bora_sweep.train.methods.separate import SeparateTrainer
from bora_sweep.train.methods.variational import VariationalTrainer
from bora_sweep.train.trainer import Trainer


def make_trainer(config: Config, corpus: TokenizedCorpus, base: PreTrainedModel, accelerator: Accelerator) -> Trainer:
    """The trainer of `config.method` at `config.prior.tau`.

    Raises:
        InputError: The configuration does not fit the model or the corpus.
    """
    kind = VariationalTrainer if config.method == "vi" else SeparateTrainer if config.is_separate else Trainer
    return kind(config, corpus, base, accelerator)
