"""What a running sweep is asked to do from another terminal: to stop, or to fit a value next."""

from collections.abc import Callable

from bora_sweep.runs.requests import STOP_FILE, Poll, asked_to_try, is_there
from bora_sweep.runs.storage import Folder, remove
from bora_sweep.tune.numbering import Numbering, write_numbering
from bora_sweep.tune.search import TauSearch


class Inbox:
    """Reads the requests in a run's folder before the search chooses what is fitted next.

    Args:
        run: The run's folder.
        stop: Called where the run is to stop.
        on_numbering: Called with the new numbering where a value was added to the sweep.
    """

    def __init__(self, run: Folder, stop: Callable[[], None], on_numbering: Callable[[Numbering], None]) -> None:
        self.run, self.poll, self.stop, self.on_numbering = run, Poll(run), stop, on_numbering

    def __call__(self, search: TauSearch) -> None:
        """Do what is asked, if it is time to look for it."""
        if search.is_stopping or not self.poll.is_due():
            return
        if is_there(self.run / STOP_FILE):
            self.stop()
            return
        for file, tau in asked_to_try(self.run):
            if search.insert(tau):  # recorded first: a sweep that is cut off here finds the value there already
                write_numbering(self.run, search.numbering)
                self.on_numbering(search.numbering)
            remove(file)
