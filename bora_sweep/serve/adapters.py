"""A run's adapters around one base in memory, as a `PeftModel` that switches between them.

Shapes: P parameters of one adapter.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bora_sweep.config import Setting
from bora_sweep.errors import InputError
from bora_sweep.model.base import empty_base, load_base, load_tokenizer
from bora_sweep.model.peft_check import sites_by_weight
from bora_sweep.model.peft_config import IN_PEFT, peft_config, peft_key
from bora_sweep.model.peft_io import named_parts
from bora_sweep.model.placement import placed
from bora_sweep.runs.places import given_places
from bora_sweep.runs.storage import Folder
from bora_sweep.serve.load import LoadedTrial, load_trial
from bora_sweep.train.device import make_accelerator
from bora_sweep.trials.fingerprints import check_base_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RunAdapters:
    """The adapters of a run. The base is loaded once, with the first adapter; each adapter is put around it once.

    Args:
        run: The run's folder.
        settings: Where the base and the documents are now, as for `bora_sweep.serve.export.export`.

    Raises:
        InputError: A setting says something else.
    """

    def __init__(self, run: Folder, settings: Sequence[Setting] = ()) -> None:
        self.run, self.places = run, given_places(settings, "adapter")
        self._trials: dict[str, LoadedTrial] = {}
        self._model: PeftModel | None = None
        self._by_weight: dict[str, frozenset[str]] = {}
        self._name_of: dict[tuple[str, str], str] = {}

    def model(self, task: str, trial: str = "best") -> PeftModel:
        """The base with a task's adapter active; the same object for every task, which the call switches.

        Args:
            task: Its name; `_global` is Theta, `_group_NAME` the adapter of a group.
            trial: As in `load_trial`.

        Raises:
            InputError: There is no such trial or task; PEFT has no such adapters; or the base cannot be loaded, or is
                not the run's.
        """
        loaded = self._load(trial)
        loaded.refuse_unknown_tasks([] if loaded.knows(task) else [task], "task")
        key = loaded.row["trial_id"], task
        if key not in self._name_of:
            self._add(key, loaded, loaded.adapter(task))
        assert self._model is not None
        self._model.set_adapter(self._name_of[key])
        return self._model.eval().requires_grad_(False)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the run's base.

        Raises:
            InputError: It cannot be loaded.
        """
        config = self._load("best").config
        return load_tokenizer(config.model, config.data)

    def _load(self, trial: str) -> LoadedTrial:
        if trial not in self._trials:
            self._trials[trial] = load_trial(self.run, trial, self.places)
        return self._trials[trial]

    def _add(self, key: tuple[str, str], loaded: LoadedTrial, theta_P: Tensor) -> None:
        """Put an adapter around the base, under a name of its own: PEFT's names may hold no dot, those of tasks may."""
        config, lora = loaded.config, loaded.lora
        if lora.variant not in IN_PEFT:
            raise InputError(
                f"task={key[1]}: PEFT has no lora.variant={lora.variant}; use generate(), or export(merge=True)"
            )
        if key[0] not in self._by_weight:
            base = empty_base(config.model, config.data)
            self._by_weight[key[0]] = frozenset(sites_by_weight(base, loaded.layout, lora))
        by_weight = self._by_weight[key[0]]
        if by_weight and self._name_of:
            raise InputError(
                f"task={key[1]}: PEFT holds one adapter alone where it adapts weights such as {min(by_weight)}.weight; "
                "read the results again for another task"
            )
        described = peft_config(loaded.layout, lora, config.model.name, by_weight)
        name = f"adapter_{len(self._name_of)}"
        if self._model is None:
            check_base_model(self.run, config.model, config.data)
            base = placed(load_base(config.model, config.data), make_accelerator(config).device)
            self._model = _wrapped(base, described, name)
        else:
            self._model.add_adapter(name, described)
        named = {peft_key(part): matrix.clone() for part, matrix in named_parts(loaded.layout, theta_P)}
        set_peft_model_state_dict(self._model, named, adapter_name=name)
        self._name_of[key] = name


def _wrapped(base: "PreTrainedModel", described, name: str) -> PeftModel:
    model = get_peft_model(base, described, adapter_name=name)
    assert isinstance(model, PeftModel)
    return model
