"""Groups of new tasks: each joins the group that a run has, tied to its Theta_g as the run's own tasks are.

Theta, Theta_g, tau and tau_2 are held. A group that the run has not is known by Theta alone, and Theta_g has not been
fitted. Integrated out, its tasks have the prior theta_d ~ N(Theta, (1/tau + 1/tau_2) I), each by itself.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bora_sweep.config import Config, Setting, explicit_settings, flatten
from bora_sweep.errors import InputError, and_more, plural
from bora_sweep.runs.storage import Folder

if TYPE_CHECKING:
    from torch import Tensor

    from bora_sweep.data.tokens import TokenizedCorpus
    from bora_sweep.serve.load import LoadedTrial

GROUPS = ("data.group_column", "data.groups_path")
"""Keys that say which group a task is in."""


def check_groups(run: Folder, loaded: "LoadedTrial", settings: Sequence[Setting]) -> None:
    """Refuse groups of new tasks where the trial's tasks are tied to Theta alone."""
    given = flatten(explicit_settings(settings))
    for key in GROUPS:
        if given.get(key) is not None and not loaded.config.has_group_level:
            raise InputError(
                f"{key}={given[key]}: trial {loaded.row['trial_id']} of {run} ties its tasks to Theta alone, and knows "
                "of no groups; drop it"
            )


def groups_to_add(loaded: "LoadedTrial", settings: Sequence[Setting]) -> dict[str, str | None]:
    """Where the groups of new tasks are: where the settings say, else where the trial's are; nowhere without groups."""
    if not loaded.config.has_group_level:
        return {"group_column": None}
    given = flatten(explicit_settings(settings))
    is_given = any(given.get(key) is not None for key in GROUPS)
    found = {key.removeprefix("data."): given.get(key) for key in GROUPS}
    return found if is_given else {name: getattr(loaded.config.data, name) for name in found}


def tau_2_and_scales(config: Config) -> dict[str, Any]:
    """Of section `prior`: tau_2 as a number, as tau = inf is fitted beside tau; no tau of tasks that the trial has."""
    changed: dict[str, Any] = {"tau_2": config.tau_2 if config.has_group_level else None}
    return changed | ({"groups": "all", "group_scales": {}} if config.prior.groups == "task" else {})


def own_precisions(
    run: Folder, loaded: "LoadedTrial", corpus: "TokenizedCorpus", refreshed: Sequence[str]
) -> dict[str, Any]:
    """Section `prior` where tasks have a tau of their own: those that are fitted anew the one of the trial.

    Raises:
        InputError: Nothing passes between groups (tau_2 = 0), and a task is of a group that the trial has not.
    """
    tau, tau_2, prior = loaded.config.tau, loaded.config.tau_2, loaded.config.prior
    own = prior.group_scales if prior.groups == "task" and not loaded.config.has_group_level else {}
    scales = {task: own[task] for task in refreshed if task in own}
    unknown = _of_unknown_groups(loaded, corpus)
    if unknown and tau_2 == 0:
        task, group = next(iter(unknown.items()))
        raise InputError(
            f"task {task!r}{and_more([*unknown])}: is of group {group!r}, which {run} has not, and at tau_2 = 0 "
            "nothing passes between groups; fit the group by a run of its own, or leave it out by data.exclude_tasks"
        )
    if not math.isinf(tau):
        scales |= dict.fromkeys(unknown, tau_2 / (tau + tau_2))
    return {"groups": "task", "group_scales": scales} if scales else {}


def _of_unknown_groups(loaded: "LoadedTrial", corpus: "TokenizedCorpus") -> dict[str, str]:
    """The group of each task whose group the trial does not know."""
    known = known_groups(loaded)
    return {task: group for task, group in corpus.group_of.items() if group not in known}


def known_groups(loaded: "LoadedTrial") -> dict[str, "Tensor"]:
    """The adapters of the trial's groups; one that equals Theta has learnt nothing, as that of an earlier `add`."""
    return {group: theta_P for group, theta_P in loaded.theta_g.items() if not theta_P.equal(loaded.mean_P)}


def group_notes(run: Folder, loaded: "LoadedTrial", corpus: "TokenizedCorpus") -> list[str]:
    """Which groups the new tasks join, and what holds for those whose group the trial has not."""
    if not loaded.config.has_group_level:
        return []
    notes, unknown = [], _of_unknown_groups(loaded, corpus)
    joined = {group for task, group in corpus.group_of.items() if task not in unknown}
    if joined:
        number = corpus.num_tasks - len(unknown)
        notes.append(f"{plural(number, 'task')} of {plural(len(joined), 'group')} of {run}: tied to Theta_g, held")
    if unknown:
        groups = sorted(set(unknown.values()))
        named = f"{groups[0]!r}{f' and {len(groups) - 1} more' if len(groups) > 1 else ''}"
        notes.append(
            f"{plural(len(unknown), 'task')} of {plural(len(groups), 'group')} that {run} has not ({named}): tied to "
            "Theta, with the precision 1 / (1/tau + 1/tau_2)"
        )
    moved = [task for task, group in corpus.group_of.items() if loaded.group_of.get(task, group) != group]
    if moved:
        task = moved[0]
        notes.append(
            f"task {task!r}{and_more(moved)} was of group {loaded.group_of[task]!r}, and is of group "
            f"{corpus.group_of[task]!r} now"
        )
    return notes
