"""Each example runs as it stands and prints what it says, on a base model that is smaller still."""

import runpy
from functools import partial
from pathlib import Path

import pytest

from bora_sweep.model import embedded

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TINY = embedded.Pretraining(num_steps=3, batch_size=4, width=16, num_heads=2, ffn_width=32)


@pytest.fixture
def run_example(tmp_path, monkeypatch, capsys):
    """Run an example in an empty folder; returns the lines that it prints."""

    def run(name: str) -> list[str]:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    monkeypatch.setenv("BORA_SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "base_model_folder", partial(embedded.base_model_folder, pretraining=TINY))
    monkeypatch.chdir(tmp_path)
    return run


def test_exported_adapters_generate_with_peft(run_example):
    *_, overall, ada, bruno = run_example("export_to_peft.py")
    assert overall.startswith("_global: the brave")
    assert ada.startswith("Ada: the brave")
    assert bruno.startswith("Bruno: the brave")


@pytest.mark.slow
def test_two_runs_are_one_table(run_example):
    lines = run_example("compare_runs.py")
    assert sum("-fit " in line for line in lines) == 2
    assert sum(line.startswith("Ada ") for line in lines) == 1
    assert [line.split()[0] for line in lines[-3:-1]] == ["2", "8"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_a_csv_file_gives_a_tau_and_a_report(run_example):
    lines = run_example("own_text.py")
    assert "test perplexity" in lines[0]
    assert Path(lines[-1].removeprefix("The report: ")).exists()


def test_the_overview_names_every_example():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in text for path in EXAMPLES.glob("*.py"))
