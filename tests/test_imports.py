"""Imports go one way, and heavy or optional packages stay where they belong."""

import ast
import gc
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from bora_sweep.process import gc_paused

PACKAGE = Path(__file__).resolve().parents[1] / "bora_sweep"
LAYER = {
    "errors": 0, "process": 0, "config": 1, "runs": 2, "data": 3, "report": 3, "model": 4, "train": 5, "trials": 6,
    "progress": 6, "tune": 7, "serve": 7, "prepare": 8, "launch": 9, "api": 10, "commands": 10, "cli": 11,
}  # fmt: skip
ONLY_IN = {
    "ray": {"tune"},
    "optuna": {"tune"},
    "matplotlib": {"report"},
    "vl_convert": {"report"},
}


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return set(names) | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_layer_or_below(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "bora_sweep" and rest:
            assert rest[0] == own or LAYER[rest[0]] < LAYER[own], f"{own} imports {name}"
        assert own in ONLY_IN.get(top, {own}), f"{own} imports {name}"


def test_training_runs_where_ray_and_optuna_are_not_installed():
    code = (
        "import sys\n"
        "for name in ('ray', 'optuna', 'datasets', 'matplotlib', 'upath'): sys.modules[name] = None\n"
        "import bora_sweep.trials.trial, bora_sweep.model.base, bora_sweep.data.corpus, bora_sweep.model.embedded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("was_enabled", [True, False])
def test_garbage_is_looked_for_after_large_imports_if_it_was_before(was_enabled):
    (gc.enable if was_enabled else gc.disable)()
    try:
        with suppress(ImportError), gc_paused():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()
