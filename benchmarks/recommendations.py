"""What the report recommends for five kinds of data, each from a real sweep of the embedded corpus with its dials.

    python benchmarks/recommendations.py [NAME …]

Five sweeps below `runs/recommendations/`, each of a few minutes on two cores, one fit at a time. A sweep that is there
is read, not made again. All five texts go to `benchmarks/results/recommendations.md`.
"""

import os
import subprocess
import sys
from pathlib import Path

from provenance import RESULTS, provenance

from bora_sweep.report.write import write_report

RUNS = Path("runs") / "recommendations"
FIXED = [
    "search.num_trials=0", "search.estimate_tau=false", "ray.max_concurrent=1", "train.device=cpu",
]  # fmt: skip
SHAPES = {
    "own": ["data.synthetic.num_tasks=8", "search.taus=[30,300,3000]"],
    "one": ["data.synthetic.similarity=1", "data.synthetic.num_tasks=6", "search.taus=[30,3000]"],
    "alone": [
        "data.synthetic.similarity=0", "data.synthetic.num_tasks=3", "data.synthetic.min_documents=200",
        "data.synthetic.max_documents=200", "search.taus=[100]",
    ],
    "base": ["data.synthetic.shift=0", "data.synthetic.num_tasks=6", "search.taus=[100]"],
    "more_data": [
        "data.synthetic.num_tasks=3", "data.synthetic.min_documents=6", "data.synthetic.max_documents=8",
        "search.taus=[100]",
    ],
}  # fmt: skip
"""By what is recommended: the corpus's dials. Related tasks; tasks that are all alike; unrelated tasks with much text;
tasks that are what the base knows; tasks with hardly any text."""


def sweep(name: str) -> Path:
    """The run of a shape, made if it is not there."""
    run = RUNS / name
    if not (run / "report" / "report.md").exists():
        command = [sys.executable, "-m", "bora_sweep.cli", "sweep", "conf/embedded.yaml", *FIXED, *SHAPES[name]]
        subprocess.run([*command, f"output={run}"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return run


def section(name: str) -> str:
    """The shape's dials, and how its report begins."""
    text = str(write_report(sweep(name)))
    first = Path(text).read_text(encoding="utf-8").split("\n\n")[1]
    return f"## {name}\n\n`{' '.join(SHAPES[name])}`\n\n> {first}"


def main() -> None:
    """Make the sweeps that are named, or all; print the texts, and write them where all are made."""
    names = sys.argv[1:] or list(SHAPES)
    if unknown := set(names) - set(SHAPES):
        sys.exit(f"{', '.join(sorted(unknown))}: no such shape; there are {', '.join(SHAPES)}")
    sections = [section(name) for name in names]
    print("\n\n".join(sections))
    if names == list(SHAPES):
        text = "\n\n".join(["# What the report recommends for five kinds of data", *sections, provenance()])
        (RESULTS / "recommendations.md").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
