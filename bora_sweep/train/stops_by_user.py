"""Fits that another terminal asks to end: by a file in the trial's folder, which rank 0 looks for between steps."""

from collections.abc import Mapping, Sequence

from bora_sweep.runs.requests import STOP_TRIAL_FILE, TRIAL_POLL_REMOTE_SECONDS, USER, Poll, is_there
from bora_sweep.runs.storage import Folder
from bora_sweep.train.distributed.process_group import any_of, is_rank_zero
from bora_sweep.train.trainer import Trainer


class StopsByUser:
    """Ends the fits of a pack that are asked to, each at its best epoch so far; the others go on.

    Args:
        folder_of: The folder of each fit's trial; None: it has none.
    """

    def __init__(self, folder_of: Mapping[Trainer, Folder | None]) -> None:
        self.folder_of = {fit: folder for fit, folder in folder_of.items() if folder is not None}
        self.poll_of = {fit: Poll(folder, TRIAL_POLL_REMOTE_SECONDS) for fit, folder in self.folder_of.items()}

    def __call__(self, fits: Sequence[Trainer]) -> None:
        """Set `State.stopped` of the fits that are to end, on all processes alike."""
        fits = [fit for fit in fits if fit in self.folder_of]
        if not fits:
            return
        for fit, is_asked in zip(fits, any_of([self._is_asked(fit) for fit in fits]), strict=True):
            if is_asked:
                fit.state.stopped = USER
                fit.state.notes.append(f"stopped by the user in epoch {fit.state.epoch + 1}, which does not count")

    def _is_asked(self, fit: Trainer) -> bool:
        if not (is_rank_zero() and self.poll_of[fit].is_due()):
            return False
        return is_there(self.folder_of[fit] / STOP_TRIAL_FILE)
