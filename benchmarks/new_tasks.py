"""What a run's prior is worth to tasks that come later, with 0 to 32 documents each, and when to stop their fits.

    python benchmarks/new_tasks.py
    python benchmarks/new_tasks.py data.path=… model.name=…

A third of the tasks is held out of a shared fit at a good tau. Each of them is then fitted alone
under N(Theta, I / tau) with its first n documents, Theta held, and compared on its test documents with Theta itself,
with fits without a prior from Theta and from scratch, and with a refit of all tasks. The rules that end a fit are
evaluated on the same curves. The first command takes the embedded corpus. What is done is kept in `runs/new_tasks/`, so
that a second start goes on where the first was cut off. Written to `benchmarks/results/new_tasks.md` and `.json`.
"""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache

from arguments import start
from new_tasks_cells import FITS, Cell, Work, read
from new_tasks_tables import Results, write_tables
from task_curves import Curve, part_of


def compute(settings: Sequence[str], cell: Cell) -> str:
    """Compute one cell in a process of the pool, which keeps the corpus and the model."""
    _work_of(tuple(settings)).compute(cell)
    return cell.name


_work_of = cache(Work)


def run(settings: list[str]) -> None:
    """Compute what is missing, then write the tables."""
    work = Work(settings)
    work.folder.mkdir(parents=True, exist_ok=True)
    stages = work.plan.runs(), work.plan.others(len(work.new))
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for stage in stages:
            missing = [cell for cell in stage if not (work.folder / cell.name).exists()]
            for future in as_completed([pool.submit(compute, settings, cell) for cell in missing]):
                print(future.result(), flush=True)
    both = [*stages[0], *stages[1]]
    write_tables(
        Results(
            corpus=work.corpus.name,
            documents=part_of(work.corpus, work.tests()).documents,
            curves={cell: Curve.load(work.folder / cell.name) for cell in both if cell.kind not in FITS},
            fits={cell: read(work.folder / cell.name) for cell in both if cell.kind in FITS},
            tau=work.config.tau,
            plan=work.plan,
        ),
        about(work),
    )


def about(work: Work) -> str:
    """The corpus, its run and the held-out tasks, in words."""
    config, tests = work.config, work.tests()
    fitted = f"A run of {len(work.run)} tasks at tau = {config.tau:g}, rank {config.lora.rank}"
    rate = f"learning rate {config.train.learning_rate:g}, {config.model.max_tokens} tokens"
    return (
        f"{fitted}, {rate}; {len(work.new)} tasks ({', '.join(work.new)}) with {len(tests)} test documents come later."
    )


if __name__ == "__main__":
    start(run, __doc__, "key=value")
