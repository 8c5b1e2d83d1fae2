"""The progress of one fit: a bar with tokens per second and time left, and a line per epoch."""

import math
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from bora_sweep.console import NotebookOutput, log
from bora_sweep.train.state import State, StepReport


class FitProgress:
    """A context manager that shows a bar, in a terminal or a notebook. `on_step` and `on_epoch` report the fit to it.

    A terminal and a log get a line for each epoch too; a notebook shows the last one beside its bar.
    """

    def __init__(self, max_epochs: int, console: Console) -> None:
        self.max_epochs, self.console = max_epochs, console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("at most"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("starting", total=None, speed="")
        self.tokens = 0
        self.notebook = NotebookOutput() if console.is_jupyter and not console.quiet else None
        self.last_epoch = ""

    def __enter__(self) -> "FitProgress":
        self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()
        self._show_in_notebook(at_once=True)

    def on_step(self, report: StepReport) -> None:
        """Advance the bar by a step."""
        self.tokens += report.num_tokens
        done = (report.epoch - 1) * report.num_batches + report.batch
        elapsed = self.bar.tasks[self.task].elapsed or math.inf
        self.bar.update(
            self.task,
            description=f"epoch {report.epoch}",
            completed=done,
            total=self.max_epochs * report.num_batches,
            speed=f"{self.tokens / elapsed:,.0f} tokens/s",
        )
        self._show_in_notebook()

    def on_epoch(self, state: State) -> None:
        """Print the perplexities of the epoch."""
        train, validation = state.curve[-2:]
        learnt = "" if state.tau is None else f", tau {state.tau:,.4g}"
        learnt += "" if state.tau_2 is None else f", tau_2 {state.tau_2:,.4g}"
        held_out = ""
        if validation["num_tokens"]:
            best = " (best)" if state.best_epoch == state.epoch else ""
            held_out = f", {math.exp(validation['nll_nats'] / validation['num_tokens']):.2f} on validation{best}"
        line = (
            f"epoch {state.epoch}: perplexity {math.exp(train['nll_nats'] / train['num_tokens']):.2f} in training"
            f"{held_out}{learnt}, {train['seconds']:.1f} s"
        )
        if self.notebook is None:
            self.console.print(line, highlight=False)
            return
        log(line)
        self.last_epoch = line
        self._show_in_notebook(at_once=True)

    def _show_in_notebook(self, *, at_once: bool = False) -> None:
        if self.notebook is None:
            return
        task = self.bar.tasks[self.task]
        doing = f"{task.description} of at most {self.max_epochs}, {task.fields['speed']}" if task.total else "starting"
        bar = f'<progress value="{task.completed:g}" max="{task.total or 1:g}"></progress>'
        last = f"<br>{self.last_epoch}" if self.last_epoch else ""
        self.notebook.show(f"{bar} {doing}{last}", f"{doing}. {self.last_epoch}", at_once=at_once)
