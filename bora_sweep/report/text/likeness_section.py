"""The section on who is like whom: the groups of tasks, or that there are none."""

from bora_sweep.errors import plural
from bora_sweep.report.stats.likeness import Likeness
from bora_sweep.report.text.formats import Table, markdown_table, markdown_text

CLOSEST = 10
"""Pairs that are listed."""
MEMBERS = 12
"""Tasks of a group that are named."""


def likeness_sentence(found: Likeness) -> str:
    """What was found, in one sentence."""
    number, chance = len(found.tasks), f"p = {found.p_value:.3f}"
    if not found.found:
        return f"**No structure**: the {number} tasks differ, but not in groups ({chance} that they have none)."
    groups = len(set(found.group))
    return f"The {number} tasks fall into **{plural(groups, 'group')}** ({chance} that they have none)."


def group_table(found: Likeness) -> Table:
    """A row for each group: how many tasks, how sure, which."""
    rows = []
    for name in sorted({group for group in found.group if group is not None}):
        at = [place for place, group in enumerate(found.group) if group == name]
        at.sort(key=lambda place: -found.silhouette_K[place])
        names = ", ".join(found.tasks[place] for place in at[:MEMBERS])
        more = f" and {len(at) - MEMBERS} more" if len(at) > MEMBERS else ""
        rows.append([name, f"{len(at)}", f"{found.silhouette_K[at].mean():.2f}", names + more])
    return Table(["group", "tasks", "silhouette", "the clearest first"], rows)


def pair_table(found: Likeness) -> Table:
    """The pairs that are surest to be alike, by the lower end of their interval."""
    pairs = found.pairs.nlargest(CLOSEST, "low")
    rows = [
        [task, other, f"{value:.2f}", f"{low:.2f} to {high:.2f}"]
        for task, other, value, low, high in pairs[["task", "other", "similarity", "low", "high"]].to_numpy().tolist()
    ]
    return Table(["task", "other", "similarity", "95% interval"], rows)


def likeness_section(found: Likeness | None, figure: str = "") -> str:
    """The section; empty where `bora-sweep groups` was not asked.

    Args:
        found: The similarities.
        figure: The map as Markdown.
    """
    if found is None:
        return ""
    parts = ["## Who is like whom", likeness_sentence(found)]
    if found.found:
        parts.append(markdown_table(group_table(found), limit=400, right=False))
    parts += [figure, about_likeness(found), markdown_table(pair_table(found))]
    return "\n\n".join(part for part in parts if part)


def about_likeness(found: Likeness) -> str:
    """What similarities are, and how groups are found."""
    shown = "" if found.similarity_KK is not None else "Of so many tasks no map is drawn. "
    return (
        "*Similarity* is the cosine of what two tasks' training documents ask of the shared adapter beyond what all "
        f"ask (gradients at the Θ of trial {markdown_text(found.trial_id)}, whitened, with the noise of the documents "
        "taken off): 1 the same, 0 nothing in common beyond the rest, negative opposite. Groups are proposed where "
        "clusters stand out from those of simulated tasks without groups. *Silhouette*: how much liker tasks are to "
        f"their own group than to the next, from -1 to 1. {shown}The pairs that are surest to be alike:"
    )
