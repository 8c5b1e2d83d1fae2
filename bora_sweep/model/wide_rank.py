"""The rank of one adapter that has as many parameters as the adapters of all tasks together (`shared_wide`)."""

from collections.abc import Sequence

from bora_sweep.model.lora import Site


def largest_useful_rank(sites: Sequence[Site]) -> int:
    """The rank beyond which B A is no further matrix at any site: the largest of their smaller sides."""
    return max(min(site.in_features, site.out_features) for site in sites)


def wide_rank(rank: int, num_tasks: int, sites: Sequence[Site]) -> int:
    """`num_tasks` times `rank`, or `largest_useful_rank` where that is lower.

    Args:
        rank: Of a task's adapter.
        num_tasks: D.
        sites: Where adapters are.
    """
    return min(num_tasks * rank, largest_useful_rank(sites))
