"""Which trainer makes a fit."""

from collections.abc import Sequence

from bora_sweep.config import Config, Method
from bora_sweep.train.distributed.process_group import sync_errors
from bora_sweep.train.methods.add import AddTrainer
from bora_sweep.train.methods.fedsa import FedsaTrainer
from bora_sweep.train.methods.learn_tau import LearnTauTrainer
from bora_sweep.train.methods.separate import SeparateTrainer
from bora_sweep.train.methods.variational import VariationalTrainer
from bora_sweep.train.methods.wide import WideTrainer
from bora_sweep.train.out_of_memory import as_torch_oom, explain_oom
from bora_sweep.train.pack import Pack
from bora_sweep.train.trainer import Trainer

TRAINER_OF: dict[Method, type[Trainer]] = {"vi": VariationalTrainer, "fedsa": FedsaTrainer, "shared_wide": WideTrainer}
"""Trainers of methods that have one of their own at any tau."""


def make_trainer(config: Config, pack: Pack) -> Trainer:
    """The trainer of `config.method` at `config.tau`.

    Raises:
        InputError: The method does not go with the prior.
    """
    if config.method in TRAINER_OF:
        return TRAINER_OF[config.method](config, pack)
    if config.learns_tau:
        return LearnTauTrainer(config, pack)
    separate = AddTrainer if config.method == "add" else SeparateTrainer
    return (separate if config.is_separate else Trainer)(config, pack)


def make_trainers(configs: Sequence[Config], pack: Pack) -> list[Trainer]:
    """The trainers of a pack's fits, on all processes or on none.

    Args:
        configs: Of the fits.
        pack: What they share.

    Raises:
        InputError: As for `make_trainer`.
        torch.OutOfMemoryError: A process has no memory for the fits' parameters and moments.
    """

    def make() -> list[Trainer]:
        return [make_trainer(config, pack) for config in configs]

    largest = min(configs, key=lambda config: (config.tau, config.tau_2))
    return explain_oom(pack, largest, "at the start of a fit", lambda: sync_errors(lambda: as_torch_oom(make)))
