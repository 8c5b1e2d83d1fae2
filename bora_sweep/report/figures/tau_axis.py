"""Places on the axis of tau: log10 between the ends, tau = 0 and tau = inf each beyond a break."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from bora_sweep.report.text.formats import tau_text

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class TauAxis:
    """The axis for ascending values of tau, at least one."""

    taus: list[float]

    @cached_property
    def finite(self) -> list[float]:
        """log10 of the values between 0 and inf; of 1 where there are none."""
        return [math.log10(tau) for tau in self.taus if 0 < tau < math.inf] or [0.0]

    @property
    def gap(self) -> float:
        """How far tau = 0 and tau = inf lie from the nearest finite value."""
        return max(0.4, 0.16 * (self.finite[-1] - self.finite[0]))

    @cached_property
    def x(self) -> np.ndarray:
        """The place of each tau."""
        low, high = self.finite[0] - self.gap, self.finite[-1] + self.gap
        return np.array([low if tau == 0 else high if tau == math.inf else math.log10(tau) for tau in self.taus])

    @property
    def limits(self) -> tuple[float, float]:
        """Where the axis begins and ends."""
        low, high = min(self.x[0], self.finite[0]), max(self.x[-1], self.finite[-1])
        return low - 0.4 * self.gap, high + 0.4 * self.gap

    @property
    def ticks(self) -> pd.DataFrame:
        """Columns `x`, `text`, and `exponent` of a power of ten (NaN for others)."""
        low, high = self.finite[0], self.finite[-1]
        decades = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        inner = [(float(k), f"10{str(k).translate(_SUPERSCRIPTS)}", k) for k in decades[:: 1 + len(decades) // 9]]
        if len(inner) < 2:
            inner = [(math.log10(tau), tau_text(tau), math.nan) for tau in self.taus if 0 < tau < math.inf]
        ends = [(x, tau_text(tau), math.nan) for tau, x in zip(self.taus, self.x, strict=True) if tau in (0, math.inf)]
        return pd.DataFrame([*ends, *inner], columns=["x", "text", "exponent"])

    @property
    def breaks(self) -> list[float]:
        """Places of the breaks, beside tau = 0 and tau = inf."""
        sides = [(tau, x) for tau, x in zip(self.taus, self.x, strict=True) if tau in (0, math.inf)]
        return [x + (0.55 if tau == 0 else -0.55) * self.gap for tau, x in sides]

    def parts(self) -> Iterator[tuple[slice, bool]]:
        """Stretches of a line over tau; True where a stretch crosses a break, which is drawn dotted."""
        first = 1 if self.taus[0] == 0 else 0
        last = len(self.taus) - (1 if self.taus[-1] == math.inf else 0)
        if first >= last:
            yield slice(0, len(self.taus)), True
            return
        yield slice(first, last), False
        if first:
            yield slice(0, 2), True
        if last < len(self.taus):
            yield slice(last - 1, len(self.taus)), True
