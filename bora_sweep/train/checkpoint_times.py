"""When a fit writes a checkpoint: so seldom that it takes a fiftieth of the time, so often that little is lost.

A checkpoint's seconds are all that it takes: the copy to the host, the other processes' rows, the file and its
checksum, the storage.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bora_sweep.train.distributed.process_group import from_rank_zero

SPACING = 50.0
"""Seconds between the end of a checkpoint and the next one, for each second that it took: writing takes 2% at most."""
FIRST_SECONDS = 1.0
"""Seconds of a fit before its first checkpoint, whose cost nobody knows. A fit that is lost again and again then still
gets on, by an epoch each time; one of less than a second is sooner made again than saved."""


class CheckpointTimes:
    """When the next checkpoint of a fit is due. All processes of the fit agree: the first one's clock decides.

    Args:
        longest: Seconds after which one is due whatever it costs.
    """

    def __init__(self, longest: float) -> None:
        self.longest, self.ended_at, self.wait = longest, time.monotonic(), FIRST_SECONDS

    def is_due(self, *, within_epoch: bool) -> bool:
        """Whether to write one now.

        Args:
            within_epoch: Between two steps. One is due there only after `longest`, and at the end of an epoch also once
                the last one is paid for.
        """
        wait = self.longest if within_epoch else min(self.wait, self.longest)
        return from_rank_zero(lambda: time.monotonic() - self.ended_at >= wait)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Within, a checkpoint is written."""
        started = time.monotonic()
        yield
        self.ended_at = time.monotonic()
        self.wait = SPACING * (self.ended_at - started)
