"""What each baseline of a sweep needs of the other settings."""

from typing import TYPE_CHECKING

from bora_sweep.config.template import check_template
from bora_sweep.errors import require

if TYPE_CHECKING:
    from bora_sweep.config.config import Config

WITH_A_AND_B = ("lora", "rslora", "lora_plus")
"""Variants of adapters that are a product B A and nothing else."""


def check_baselines(config: "Config") -> None:
    """Refuse settings that `fedsa`, `shared_wide` or `task_prompt` could not have, where one of them is fitted.

    Raises:
        InputError: There is such a setting.
    """
    made = {config.method, *config.search.baselines}
    if "fedsa" in made:
        _check_fedsa(config)
    if "shared_wide" in made:
        require(
            config.lora.variant != "mora",
            "lora.variant=mora: its square matrix has no rank that grows as shared_wide needs it; set another, or drop "
            "shared_wide",
        )
    if "task_prompt" in made:
        _check_task_prompt(config)


def _check_fedsa(config: "Config") -> None:
    """Refuse adapters without A and B, and settings that would set the tasks' A apart, or their steps."""
    variant, train = config.lora.variant, config.train
    require(
        variant in WITH_A_AND_B,
        f"lora.variant={variant}: fedsa shares A and has a B for each task, which are in {', '.join(WITH_A_AND_B)}; "
        "set one of them, or drop fedsa",
    )
    apart = {
        f"train.initial_noise={train.initial_noise}": train.initial_noise > 0,
        f"train.independent={train.independent}": train.independent == "joint",
    }
    for setting, is_set in apart.items():
        require(not is_set, f"{setting}: is of adapters that share nothing, and fedsa shares A; drop one of the two")


def _check_task_prompt(config: "Config") -> None:
    """Refuse texts that the task's name cannot be put before, or not alone."""
    data, model = config.data, config.model
    reasons = {
        f"data.prompt={data.prompt!r}": (data.prompt is not None, "gives a prompt of its own"),
        f"data.template={data.template!r}": ("task" in check_template(data.template, "data.template"), "names it too"),
        f"model.long_documents={model.long_documents}": (model.long_documents == "chunk", "reads texts in pieces"),
        f"metrics={config.metrics}": (bool(config.metrics), "scores answers without it"),
        f"train.padding={config.train.padding}": (config.train.padding == "scored", "scores padding of other lengths"),
    }
    for setting, (is_set, reason) in reasons.items():
        require(
            not is_set,
            f"{setting}: the baseline task_prompt puts the task's name before each text, and this {reason}; drop one "
            "of the two",
        )
