"""The report's tables as DataFrames, which its CSV files and its page hold. Differences are fractions: 0.05 is 5%."""

import math
from dataclasses import astuple

import numpy as np
import pandas as pd

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.bootstrap import Bootstrap
from bora_sweep.report.stats.gains import Gain
from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.stats.method_comparison import Method, reference_setting, training_cost
from bora_sweep.report.stats.summary import SPLITS, Setting, Summary
from bora_sweep.report.stats.trends import Trend
from bora_sweep.report.text.setting_names import method_name


def overall_frame(analysis: Analysis) -> pd.DataFrame:
    """Table 1: a row for each tau; perplexities and differences to the best, with 95% intervals."""
    summary, rows = analysis.summary, []
    for m in (summary.zero_shot, *summary.fits):
        if m is None:
            continue
        setting = summary.settings[m]
        row: dict[str, object] = {
            "method": setting.method,
            "tau": setting.tau,
            "best": m == summary.best,
            "one_standard_error": m == analysis.choice.one_standard_error,
            "learning_rate": setting.learning_rate,
            "seeds": setting.seeds,
        }
        intervals = {
            "validation_perplexity": analysis.choice.bootstrap.perplexity(m),
            "test_perplexity": analysis.bootstrap.perplexity(m),
            "test_macro_perplexity": analysis.macro_perplexity(m),
            "relative_difference_to_best": analysis.bootstrap.relative_difference(m, summary.best),
            "validation_relative_difference_to_best": analysis.choice.bootstrap.relative_difference(m, summary.best),
        }
        for name, interval in intervals.items():
            row |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row | {"floor_test_perplexity": summary.floor})
    return pd.DataFrame(rows)


def choice_frame(analysis: Analysis) -> pd.DataFrame:
    """The choices of tau, and the intervals of the best tau."""
    choice, settings = analysis.choice, analysis.summary.settings
    intervals = {
        "lowest": Interval(settings[choice.minimum].tau, math.nan, math.nan),
        "one_standard_error": Interval(settings[choice.one_standard_error].tau, math.nan, math.nan),
        "lowest_point_bootstrap": choice.lowest_point,
        "as_good_as_the_best": None if choice.curve is None else choice.curve.as_good,
    }
    rows = [(name, *astuple(interval)) for name, interval in intervals.items() if interval is not None]
    return pd.DataFrame(rows, columns=["choice", "tau", "low", "high"])


def curve_frame(analysis: Analysis) -> pd.DataFrame:
    """The smooth curves over tau: of validation, which chooses, and of test, which Figure 2 shows."""
    parts = []
    for split, curve in (("validation", analysis.choice.curve), ("test", analysis.curve)):
        if curve is not None:
            low_G, high_G = curve.band
            nats = {"perplexity": curve.nats_per_token_G, "low": low_G, "high": high_G}
            perplexity = {name: np.exp(nats_G) for name, nats_G in nats.items()}
            parts.append(pd.DataFrame({"split": split, "tau": curve.tau_G, **perplexity}))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["split", "tau", "perplexity", "low", "high"])


def method_frame(summary: Summary, bootstrap: Bootstrap, methods: list[Method]) -> pd.DataFrame:
    """Methods compared: test perplexity, its difference to the reference, and the cost of training."""
    rows = []
    for method in methods:
        setting, test = summary.settings[method.setting], bootstrap.perplexity(method.setting)
        reference = reference_setting(summary)
        difference = bootstrap.relative_difference(method.setting, reference)
        cost = training_cost(summary.trials, setting.trials)
        candidate_trials = [key for m in method.candidates for key in summary.settings[m].candidate_trials]
        search_cost = training_cost(summary.trials, candidate_trials)
        rows.append(
            {
                "name": method_name(summary, method),
                "method": setting.method,
                "tau": setting.tau,
                **setting.structure._asdict(),
                "seeds": setting.seeds,
                "validation_perplexity": setting.validation_perplexity,
                "test_perplexity": test.estimate,
                "test_low": test.low,
                "test_high": test.high,
                "is_reference": method.setting == reference,
                "relative_difference_to_reference": difference.estimate,
                "low": difference.low,
                "high": difference.high,
                "train_tokens": cost.train_tokens,
                "train_seconds": cost.train_seconds,
                "search_train_tokens": search_cost.train_tokens,
                "search_train_seconds": search_cost.train_seconds,
            }
        )
    return pd.DataFrame(rows).astype({"lora_rank": "Int64"} if rows else {})


def gain_frame(gains: list[Gain]) -> pd.DataFrame:
    """Figure 3 and Table 2: each task's gain against each reference, with its p-values and verdict."""
    columns = ["task", "train_documents", "test_documents", "reference", "improvement", "low", "high"]
    columns += ["p_value", "holm_p_value", "verdict", "smallest_p_value"]
    rows = []
    for gain in gains:
        sizes, test = (gain.train_documents, gain.test_documents), (gain.adjusted_p, gain.verdict, gain.smallest_p)
        rows.append((gain.task, *sizes, gain.reference, *astuple(gain.interval), gain.p_value, *test))
    return pd.DataFrame(rows, columns=columns)


def task_frame(analysis: Analysis) -> pd.DataFrame:
    """Table A.1: a row for each task, most training documents first; test perplexity at each setting."""
    summary = analysis.summary
    columns: dict[str, object] = {"task": summary.tasks}
    columns |= {f"{split}_documents": summary.num_documents_DL[:, i] for i, split in enumerate(SPLITS)}
    low_DM, high_DM = analysis.task_levels.perplexity_bounds
    for m, setting in enumerate(summary.settings):
        name = _column_name(setting, m in summary.others)
        columns |= {name: summary.perplexity_DM[:, m], f"{name} low": low_DM[:, m], f"{name} high": high_DM[:, m]}
    return pd.DataFrame(columns | {"floor": summary.floor_D})


def _column_name(setting: Setting, is_other: bool) -> str:
    """`tau=100.0`; `pfedme tau=100.0 lora_rank=8 lora_variant=lora` for other settings than the fits over tau."""
    parts = [] if setting.method == "map" else [setting.method]
    parts += [] if math.isnan(setting.tau) else [f"tau={setting.tau!r}"]
    structure = setting.structure._asdict().items()
    return " ".join([*parts, *(f"{name}={value}" for name, value in structure if is_other and value is not None)])


def trend_frame(trends: dict[str, Trend]) -> pd.DataFrame:
    """The lines of Figures 3 to 5: change per doubling of the training documents."""
    columns = ["name", "tasks", "per_doubling", "low", "high", "of", "intercept", "coefficient_of_log2_documents"]
    rows = [
        (name, line.num_tasks, *astuple(line.slope), "logarithm" if line.is_log else "value", *line.coefficients)
        for name, line in trends.items()
    ]
    return pd.DataFrame(rows, columns=columns)
