"""Imports go one way, and heavy or optional packages stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bora_sweep"
LAYER = {
    "errors": 0, "process": 0, "cards": 1, "config": 1, "console": 1, "kernels": 1, "machine": 2, "runs": 2,
    "similarity": 2, "data": 3, "report": 3, "model": 4, "train": 5, "trials": 6, "progress": 6, "tune": 7, "serve": 7,
    "run_results": 8, "groups_to_add": 8, "prepare": 8, "plan": 8, "first_run": 8, "launch": 9, "in_memory": 9,
    "prepare_add": 9, "forgetting": 10, "packing": 10, "steering": 10, "task_groups": 10, "views": 10, "api": 11,
    "commands": 11, "cli": 12,
}  # fmt: skip
ONLY_IN = {
    "ray": {"tune"},
    "optuna": {"tune"},
    "matplotlib": {"report"},
    "vl_convert": {"report"},
    "triton": {"kernels"},
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


def test_training_is_imported_where_ray_and_optuna_are_not_installed():
    code = (
        "import sys\n"
        "for name in ('ray', 'optuna', 'datasets', 'matplotlib', 'upath', 'triton'): sys.modules[name] = None\n"
        "import bora_sweep.trials.trial, bora_sweep.model.base, bora_sweep.data.corpus, bora_sweep.model.embedded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
