"""The report's tables as DataFrames, which its CSV files and its page hold. Differences are fractions: 0.05 is 5%."""

import math
from collections import Counter
from dataclasses import astuple

import pandas as pd

from bora_sweep.report.stats.analysis import Analysis
from bora_sweep.report.stats.gains import Gain
from bora_sweep.report.stats.interval import Interval
from bora_sweep.report.stats.measure import Measure
from bora_sweep.report.stats.method_comparison import Method, reference_setting, training_cost
from bora_sweep.report.stats.smooth_curve import SmoothCurve
from bora_sweep.report.stats.summary import SPLITS, Setting
from bora_sweep.report.stats.trends import Trend
from bora_sweep.report.text.setting_names import method_name


def overall_frame(analysis: Analysis) -> pd.DataFrame:
    """Table 1: a row for each tau; levels and differences to the best, with 95% intervals."""
    summary, name, difference, rows = analysis.summary, analysis.measure.name, analysis.measure.difference_name, []
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
            f"validation_{name}": analysis.validation.level(m),
            f"test_{name}": analysis.bootstrap.level(m),
            f"test_macro_{name}": analysis.macro(m),
            f"{difference}_to_best": analysis.bootstrap.difference(m, summary.best),
            f"validation_{difference}_to_best": analysis.validation.difference(m, summary.best),
        }
        for column, interval in intervals.items():
            row |= {column: interval.estimate, f"{column}_low": interval.low, f"{column}_high": interval.high}
        rows.append(row if analysis.measure.is_metric else row | {"floor_test_perplexity": summary.floor})
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
    """The smooth curves over tau: of validation, where this measure chose tau, and of test, which Figure 2 shows."""
    curves = {"validation": analysis.choice.curve if analysis.chose_tau else None, "test": analysis.curve}
    columns = ["split", "tau", analysis.measure.name, "low", "high"]
    known = [(split, curve) for split, curve in curves.items() if curve is not None]
    parts = [curve_levels(curve, analysis.measure).assign(split=split) for split, curve in known]
    return pd.concat(parts).reindex(columns=columns) if parts else pd.DataFrame(columns=columns)


def curve_levels(curve: SmoothCurve, measure: Measure) -> pd.DataFrame:
    """Columns `tau`, the measure's name, and the band `low` and `high`."""
    low_G, high_G = measure.level_bounds(*curve.band)
    return pd.DataFrame({"tau": curve.tau_G, measure.name: measure.level(curve.value_G), "low": low_G, "high": high_G})


def method_frame(analysis: Analysis, methods: list[Method]) -> pd.DataFrame:
    """Methods compared: their level on test, its difference to the reference, and the cost of training."""
    summary, measure, rows = analysis.summary, analysis.measure, []
    for method in methods:
        setting, test = summary.settings[method.setting], analysis.bootstrap.level(method.setting)
        reference = reference_setting(summary)
        difference = analysis.bootstrap.difference(method.setting, reference)
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
                f"validation_{measure.name}": float(analysis.scores.validation_M[method.setting]),
                f"test_{measure.name}": test.estimate,
                "test_low": test.low,
                "test_high": test.high,
                "is_reference": method.setting == reference,
                f"{measure.difference_name}_to_reference": difference.estimate,
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
        ends = (gain.interval.estimate, gain.interval.low, gain.interval.high)
        rows.append((gain.task, *sizes, gain.reference, *ends, gain.p_value, *test))
    return pd.DataFrame(rows, columns=columns)


def pooling_frame(analysis: Analysis) -> pd.DataFrame:
    """Figure 6: a row for all tasks, whose `task` is missing, and one for each: pooling factor, and levels on test.

    The pooling factor is of perplexity, whatever measure the levels are by. Empty without fits at both ends and one
    between.
    """
    summary, found, name = analysis.summary, analysis.pooling, analysis.measure.name
    columns = ["of", "task", "train_documents", "tau", "pooling_factor", "pooling_low", "pooling_high"]
    columns += [f"no_pooling_{name}", f"partial_pooling_{name}", "low", "high", f"complete_pooling_{name}"]
    if found is None:
        return pd.DataFrame(columns=columns)
    no, partial, complete = (analysis.bootstrap.level(m) for m in found.settings)
    tau, sizes_D = summary.settings[found.partial].tau, summary.train_documents_D
    all_levels = no.estimate, *astuple(partial), complete.estimate
    rows: list[tuple] = [("all", None, int(sizes_D.sum()), tau, *astuple(found.overall), *all_levels)]
    no_D, partial_D, complete_D = (analysis.task_levels.levels(m) for m in found.settings)
    for d, task in enumerate(summary.tasks):
        levels = no_D[d].estimate, *astuple(partial_D[d]), complete_D[d].estimate
        rows.append(("task", task, int(sizes_D[d]), tau, *astuple(found.tasks[d]), *levels))
    return pd.DataFrame(rows, columns=columns)


def task_frame(analysis: Analysis) -> pd.DataFrame:
    """Table A.1: a row for each task, most training documents first; its level on test at each setting.

    A setting's columns are `tau=17.8`, and with ` low` and ` high` at the end its 95% interval.
    """
    summary = analysis.summary
    columns: dict[str, object] = {"task": summary.tasks}
    columns |= {f"{split}_documents": summary.num_documents_DL[:, i] for i, split in enumerate(SPLITS)}
    low_DM, high_DM = analysis.task_levels.level_bounds()
    tau_names = _tau_names({setting.tau for setting in summary.settings if not math.isnan(setting.tau)})
    for m, setting in enumerate(summary.settings):
        name, level_D = _column_name(setting, m in summary.others, tau_names), analysis.scores.test_DM[:, m]
        columns |= {name: level_D, f"{name} low": low_DM[:, m], f"{name} high": high_DM[:, m]}
    return pd.DataFrame(columns if analysis.measure.is_metric else columns | {"floor": summary.floor_D})


def _tau_names(taus: set[float], digits: int = 3) -> dict[float, str]:
    """`tau=0`, `tau=17.8`, `tau=5620`, `tau=inf`: three digits; those that these do not tell apart have more."""
    rounded = {tau: float(f"{tau:.{digits}g}") for tau in taus}
    count = Counter(rounded.values())
    alike = {tau for tau in taus if count[rounded[tau]] > 1}
    names = {tau: f"tau={_plain_number(rounded[tau])}" for tau in taus - alike}
    return names | (_tau_names(alike, digits + 1) if alike else {})


def _plain_number(value: float) -> str:
    """As `float` reads it: 5620, not 5620.0."""
    return f"{value:.0f}" if value.is_integer() and value < 1e15 else f"{value!r}"


def _column_name(setting: Setting, is_other: bool, tau_names: dict[float, str]) -> str:
    """`tau=100`; `pfedme tau=100 lora_rank=8 lora_variant=lora` for other settings than the fits over tau."""
    parts = [] if setting.method == "map" else [setting.method]
    parts += [] if math.isnan(setting.tau) else [tau_names[setting.tau]]
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
