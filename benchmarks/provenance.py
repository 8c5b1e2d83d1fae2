"""Where a figure comes from: the command, the commit, the machine, the versions; and where figures are kept."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
OUT = Path(os.environ.get("OUT", "/tmp/first_gpu_run"))
"""Where benchmarks/first_gpu_run.py writes its findings."""
FINDINGS = OUT / "first_gpu_run.jsonl"
PACKAGES = ("torch", "transformers", "peft", "ray", "optuna")


def say(**found: object) -> None:
    """Print a line of JSON, and keep it in `FINDINGS` at once."""
    line = json.dumps(found, default=str)
    print(line, flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    with FINDINGS.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def origin() -> dict[str, str]:
    """What a figure made now comes from; packages that are not installed are left out."""
    return {
        "command": f"python {shlex.join([f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]])}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": _commit(),
        "machine": _machine(),
        "versions": ", ".join([f"Python {platform.python_version()}", *filter(None, map(_version, PACKAGES))]),
    }


def provenance(made: dict[str, str] | None = None) -> str:
    """One paragraph of Markdown."""
    made = origin() if made is None else made
    made_by = f"Made by `{made['command']}` on {made['date']}, commit {made['commit']}"
    return f"{made_by}; {made['machine']}; {made['versions']}."


def record(name: str, title: str, section: str, rows: Sequence[dict], notes: Sequence[str] = ()) -> None:
    """Print a table and put it as `section` into `results/NAME.json` and `.md`, beside the sections already there.

    Args:
        name: Of the files.
        title: The Markdown's.
        section: The table's heading; a section of this name is replaced.
        rows: Columns by heading; numbers are shown in four figures.
        notes: Sentences below the table.
    """
    path = RESULTS / f"{name}.json"
    sections = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    sections[section] = {"rows": list(rows), "notes": list(notes), "origin": origin()}
    path.write_text(json.dumps(sections, indent=1) + "\n", encoding="utf-8")
    texts = {heading: "\n\n".join([f"## {heading}", _table(s["rows"]), *s["notes"]]) for heading, s in sections.items()}
    print(f"\n{texts[section]}", flush=True)
    body = [f"{text}\n\n{provenance(sections[heading]['origin'])}" for heading, text in texts.items()]
    (RESULTS / f"{name}.md").write_text("\n\n".join([f"# {title}", *body]) + "\n", encoding="utf-8")


def _table(rows: Sequence[dict]) -> str:
    lines = [
        list(rows[0]),
        ["---", *["---:"] * (len(rows[0]) - 1)],
        *([_say(cell) for cell in r.values()] for r in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _say(cell: object) -> str:
    if not isinstance(cell, float):
        return "" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    if named := os.environ.get("BENCHMARK_COMMIT"):  # where the tree is a copy without its history
        return named
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS, check=False
    )
    return found.stdout.strip() or "unknown"


def _machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {_cpu()}, {os.cpu_count()} cores, {platform.system()}"
    return f"{_cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} used, {platform.system()}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
