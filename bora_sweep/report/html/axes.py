"""Axes of the page's charts: where they begin and end, their ticks, and the texts of these."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bora_sweep.report.figures.axes import needs_log
from bora_sweep.report.figures.data import Quantity
from bora_sweep.report.figures.tau_axis import TauAxis


@dataclass(frozen=True)
class Axis:
    """One axis; places are in the units of what is drawn."""

    title: str
    type: str
    """Vega's scale: `linear` or `log`."""
    low: float
    high: float
    ticks: list[float]
    texts: list[str]

    def to_json(self) -> dict[str, Any]:
        """As the page's scripts take it."""
        return {
            "title": self.title,
            "type": self.type,
            "domain": [self.low, self.high],
            "ticks": self.ticks,
            "texts": self.texts,
        }


def tau_axis(scale: TauAxis) -> dict[str, Any]:
    """The axis of tau, with the places of its breaks."""
    ticks, limits = scale.ticks, scale.limits
    axis = Axis("Precision τ", "linear", *limits, ticks["x"].tolist(), ticks["text"].tolist())
    return axis.to_json() | {"breaks": scale.breaks}


def quantity_axis(quantity: Quantity, *values: Iterable[float]) -> dict[str, Any]:
    """The axis of a quantity of the figures.

    Args:
        quantity: Whose values they are.
        values: Arrays; what is not finite is left out.
    """
    if quantity.unit == "number" and not quantity.is_change:
        return value_axis(quantity.title, *values, may_be_log=quantity.may_be_log)
    unit = 1.0 if quantity.unit != "number" else 100.0
    sign = "+" if quantity.is_change else ""
    return percent_axis(quantity.title, *values, unit=unit, sign=sign, suffix="%" if quantity.unit == "percent" else "")


def value_axis(title: str, *values: Iterable[float], pad: float = 0.06, may_be_log: bool = True) -> dict[str, Any]:
    """An axis that holds all finite values, on logarithms where they need it.

    Args:
        title: Of the axis.
        values: Arrays; what is not finite is left out.
        pad: Room at either side, as a fraction of the axis.
        may_be_log: Logarithms are used where values span much.
    """
    known, low, high = _range(values)
    if not (may_be_log and needs_log(known)):
        low, high = _widened(low, high, pad)
        ticks, digits = even_ticks(low, high)
        return Axis(title, "linear", low, high, ticks, [_signed(f"{tick:,.{digits}f}") for tick in ticks]).to_json()
    low, high = (10**end for end in _widened(math.log10(low), math.log10(high), pad))
    ticks = log_ticks(low, high)
    return Axis(title, "log", low, high, ticks, [f"{tick:,.10g}" for tick in ticks]).to_json()


def count_axis(title: str, most: float, pad: float = 0.0) -> dict[str, Any]:
    """A linear axis of counts that begins at 0, with ticks at whole numbers."""
    high = max(1.0, most) * (1 + pad)
    ticks, _ = even_ticks(0, high, least_step=1)
    return Axis(title, "linear", 0, high, ticks, [f"{tick:,.0f}" for tick in ticks]).to_json()


def document_axis(title: str, documents: Iterable[float]) -> dict[str, Any]:
    """An axis of numbers of documents, on logarithms where they span much, with ticks at whole numbers."""
    axis = value_axis(title, documents, pad=0.04)
    ticks, texts = axis["ticks"], axis["texts"]
    if axis["type"] == "linear":
        ticks, _ = even_ticks(*axis["domain"], least_step=1)
        texts = [f"{tick:,.0f}" for tick in ticks]
    whole = [(tick, text) for tick, text in zip(ticks, texts, strict=True) if tick == round(tick)]
    return axis | {"ticks": [tick for tick, _ in whole], "texts": [text for _, text in whole]}


def places_axis(title: str, places: dict[str, int]) -> dict[str, Any]:
    """An axis along which tasks stand one beside another, without ticks."""
    return Axis(title, "linear", 0.3, len(places) + 0.7, [], []).to_json()


def percent_axis(
    title: str, *values: Iterable[float], unit: float = 1.0, sign: str = "+", suffix: str = "%"
) -> dict[str, Any]:
    """A linear axis of percentages; a value of `unit` is 100%, `sign` is that of what is above 0."""
    _, low, high = _range(values)
    low, high = _widened(low, high, 0.06)
    ticks, digits = even_ticks(100 / unit * low, 100 / unit * high)
    texts = [_signed(f"{tick:{sign},.{digits}f}{suffix}") if tick else f"0{suffix}" for tick in ticks]
    return Axis(title, "linear", low, high, [tick * unit / 100 for tick in ticks], texts).to_json()


def even_ticks(low: float, high: float, least_step: float = 0.0) -> tuple[list[float], int]:
    """About six round ticks, and how many decimals tell them apart."""
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = max(least_step, power * min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * power / raw))))
    first, last = math.ceil(low / step), math.floor(high / step * (1 + 1e-12))
    return [k * step for k in range(first, last + 1)], max(0, -math.floor(math.log10(step) + 1e-9))


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten and multiples of them: more where the axis is short."""
    factors = (1, 1.5, 2, 3, 4, 5, 7) if high / low < 15 else (1, 2, 5) if high / low < 300 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    step = 1 + len(decades) // 12
    ticks = [factor * 10.0**k for k in decades[::step] for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def _range(values: Iterable[Iterable[float]]) -> tuple[np.ndarray, float, float]:
    known = np.concatenate([np.ravel(np.asarray(part, dtype=float)) for part in values])
    known = known[np.isfinite(known)]
    known = known if known.size else np.array([1.0, 2.0])
    return known, float(known.min()), float(known.max())


def _widened(low: float, high: float, pad: float) -> tuple[float, float]:
    room = (high - low or abs(low) or 1.0) * pad
    return low - room, high + room


def _signed(text: str) -> str:
    return text.replace("-", "−")
