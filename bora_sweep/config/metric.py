"""`metrics` and its section `metric`: what is scored beside perplexity."""

import re
from dataclasses import dataclass

from bora_sweep.config.bounds import Count, check_bounds
from bora_sweep.errors import require

PERPLEXITY = "perplexity"
"""What is scored always. It is none of the metrics."""
ACCURACY = "accuracy"
METRICS = (ACCURACY, "exact_match", "rouge_l")
"""The metrics that have a name. Any other is a function of the user's own."""
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True, kw_only=True)
class MetricConfig:
    """How metrics are scored."""

    normalize: bool = False
    """Whether `accuracy` divides the log likelihood of a candidate answer by its number of tokens. Without it long
    answers seldom win."""
    max_new_tokens: Count = 64
    """Most tokens that are generated for an answer, for all metrics but `accuracy`."""
    early_stopping: str = PERPLEXITY
    """What validation chooses a fit's epoch by: `perplexity`, or one of `metrics`, of which the highest mean over
    documents is best, and of equal ones that with the lower perplexity. A metric is then scored after each epoch."""

    def __post_init__(self) -> None:
        check_bounds(self, "metric")


def check_metric_names(metrics: list[str]) -> None:
    """Refuse a metric that has no name and is no function, and one that is named twice.

    Raises:
        InputError: There is one.
    """
    for place, name in enumerate(metrics):
        require(
            name in METRICS or _FUNCTION.fullmatch(name) is not None,
            f"metrics={metrics}: {name!r} is no metric; they are {', '.join(METRICS)}, or my_module:score for a "
            "function of your own",
        )
        require(name not in metrics[:place], f"metrics={metrics}: {name!r} is named twice; keep one")
