"""`bora-sweep groups`."""

import argparse
import shlex
from typing import TYPE_CHECKING

from rich.markup import escape

from bora_sweep.commands.common import DONE, add_trial, err, out
from bora_sweep.errors import InputError, plural, visible
from bora_sweep.runs.places import is_place
from bora_sweep.runs.storage import folder_at

if TYPE_CHECKING:
    from bora_sweep.task_groups import TaskGroups

TEXT = """Who is like whom: similarities of a run's tasks, and the groups that they fall into, if they do.

By gradients of the training documents, with the noise taken off; it costs about an epoch. The similarities go into the
run, and its report shows them when it is written again. Groups go to OUT.csv. Where tasks differ without falling into
groups, the command says so, and writes no file."""
MOST_MEMBERS = 12
"""Members of a group that are named."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_trial(parser)
    text = (
        "a file for the columns task and group, default: RUN/report/groups.csv; beside it where the base and the "
        "documents are now, if they have moved: model.name=…, data.path=…"
    )
    parser.add_argument("settings", nargs="*", default=[], metavar="OUT.csv|KEY=PLACE", help=text)


def run(parsed: argparse.Namespace) -> int:
    """Find out who is like whom, and say which groups there are."""
    from bora_sweep.task_groups import groups

    places = [word for word in parsed.settings if is_place(word)]
    target, *more = [word for word in parsed.settings if not is_place(word)] or [None]
    if more:
        raise InputError(f"{more[0]}: {target} names the file already; give one")
    found = groups(parsed.run, target, parsed.trial, settings=places, console=err)
    out.print(escape(f"{found.sentence}; trial {found.trial_id}"))
    if found.path is not None:
        _show_groups(found)
        out.print(escape(f"groups: {found.path}"))
        out.print(
            escape(f"next, with three levels: bora-sweep sweep … data.groups_path={shlex.quote(str(found.path))}")
        )
    out.print(escape(f"report with all similarities: bora-sweep report {shlex.quote(str(folder_at(parsed.run)))}"))
    return DONE


def _show_groups(found: "TaskGroups") -> None:
    """Each group with its members, those that are most clearly in it first."""
    for name, members in found.groups.groupby("group"):
        ordered = members.sort_values("silhouette", ascending=False)
        names = [visible(str(task)) + ("?" if sure <= 0 else "") for task, sure in
                 zip(ordered["task"], ordered["silhouette"], strict=True)]  # fmt: skip
        shown = ", ".join(names[:MOST_MEMBERS]) + (
            f" and {len(names) - MOST_MEMBERS} more" * (len(names) > MOST_MEMBERS)
        )
        sure = members["silhouette"].mean()
        out.print(escape(f"• {name} ({plural(len(names), 'task')}, silhouette {sure:.2f}): {shown}"))
    if (found.groups["silhouette"].to_numpy() <= 0).any():
        out.print("?: a task that is about as like to another group")
