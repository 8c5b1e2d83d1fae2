"""Graphics cards by the memory that they have, and how much of it a fit may use."""

import re
from dataclasses import dataclass

from bora_sweep.errors import InputError

GIGABYTE = 10**9
USABLE = 0.9
"""Share of a card that tensors may fill; the rest is for CUDA's context, the libraries' scratch and fragmentation."""
CONTEXT_BYTES = GIGABYTE // 2
"""What each further process on a card needs for a CUDA context and libraries of its own."""
GIGABYTES_OF = {
    "t4": 16, "l4": 24, "a10g": 24, "rtx-4090": 24, "a100-40": 40, "l40s": 48, "a100-80": 80, "h100": 80, "h200": 141,
    "b200": 180,
}  # fmt: skip
"""Memory of well-known cards."""


@dataclass(frozen=True)
class Card:
    """A card of so many gigabytes, of 10^9 bytes each."""

    gigabytes: float

    @property
    def usable_bytes(self) -> int:
        """What tensors may fill."""
        return round(USABLE * self.gigabytes * GIGABYTE)

    def processes(self, peak_bytes: int) -> int:
        """How many processes fit at once, each with such a peak and a CUDA context of its own."""
        return (self.usable_bytes + CONTEXT_BYTES) // (peak_bytes + CONTEXT_BYTES)


def read_card(text: str) -> Card:
    """The card of a size such as `24GB`, or of a name such as `l4`.

    Raises:
        InputError: It is neither.
    """
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?gb", text.lower())
    gigabytes = float(size[1]) if size else GIGABYTES_OF.get(text.lower(), 0.0)
    if gigabytes <= 0:
        near = [name for name in GIGABYTES_OF if name.startswith(text.lower())] or GIGABYTES_OF
        raise InputError(f"--card {text}: need a size such as 24GB, or one of {', '.join(near)}")
    return Card(gigabytes)
