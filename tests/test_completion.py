"""Completion: what is answered for the words of a line, and what the shells that are here make of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bora_sweep.cli import COMMANDS, main
from bora_sweep.config.help import all_keys

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with documents, a run with two trials, and a folder that is none."""
    monkeypatch.chdir(tmp_path)
    for name in ("speeches.parquet", "speakers.csv", "with blank.csv", "a.yaml"):
        Path(name).touch()
    trials = tmp_path / "runs" / "2026-01-01T00-00-00-sweep" / "results" / "trials"
    trials.mkdir(parents=True)
    for trial in ("000", "tau-1"):
        (trials / f"{trial}.parquet").touch()
    (tmp_path / "runs" / "2026-01-01T00-00-00-sweep" / "config.yaml").touch()
    (tmp_path / "other").mkdir()
    return tmp_path


def answers(capsys, *words: str) -> list[str]:
    assert main(["completion", "answer", "--", *words]) == 0
    return capsys.readouterr().out.splitlines()


RUN = "runs/2026-01-01T00-00-00-sweep"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sw"], ["sweep "]),
        (["da"], ["data "]),
        (["data", ""], ["describe "]),
        (["sweep", "--res"], ["--resume "]),
        (["sweep", "train.max_e"], ["train.max_epochs="]),
        (["fit", "speeches.parquet", "prior.pen"], ["prior.penalty="]),
        (
            ["sweep", "lora.variant="],
            [f"lora.variant={each} " for each in ("lora", "rslora", "lora_plus", "dora", "mora")],
        ),
        (["sweep", "lora.variant=do"], ["lora.variant=dora "]),
        (["sweep", "train.compile="], ["train.compile=true ", "train.compile=false "]),
        (["sweep", "search.baselines=[shared,ti"], ["search.baselines=[shared,ties"]),
        (["sweep", "search.baselines=[indep"], ["search.baselines=[independent"]),
        (["sweep", "data.path=spee"], ["data.path=speeches.parquet "]),
        (["sweep", "data.path=./spee"], ["data.path=./speeches.parquet "]),
        (["sweep", "train.seed=sp"], []),  # files are no values of it
        (["sweep", "sp"], ["speakers.csv ", "speeches.parquet "]),
        (["sweep", "wi"], []),  # with a blank: not offered
        (["sweep", "run"], ["runs/"]),
        (["report", ""], [f"{RUN} ", "other/", "runs/"]),
        (["report", "runs/"], [f"{RUN} "]),
        (["report", RUN, ""], []),
        (["export", RUN, "o"], ["other/"]),
        (["export", RUN, "--trial", ""], ["best ", "000 ", "tau-1 "]),
        (["export", RUN, "--trial", "tau"], ["tau-1 "]),
        (["report", "--against", ""], ["paper "]),
        (["plan", "--card", "a10"], ["a10g ", "a100-40 ", "a100-80 "]),
        (["add", RUN, "sp"], ["speakers.csv ", "speeches.parquet "]),
        (["keys", "search.p"], ["search.pack ", "search.path_patience "]),
        (["completion", ""], ["bash ", "zsh ", "fish "]),
        (["nonsense", "x"], []),
    ],
)  # fmt: skip
def test_the_last_word_is_completed(words, expected, capsys):
    assert answers(capsys, *words) == expected


def test_all_commands_and_all_keys_of_a_sweep_are_offered(capsys):
    assert {word.strip() for word in answers(capsys)} == {*COMMANDS, "data"}
    offered = answers(capsys, "sweep", "")
    assert {key.name for key in all_keys()} <= {word.rstrip("=") for word in offered}


@pytest.mark.parametrize("command", [*COMMANDS])
def test_every_command_has_answers(command, capsys):
    assert "--help " in answers(capsys, command, "--h")
    answers(capsys, command, "")


def test_no_heavy_package_is_imported():
    code = (
        "import sys\nfrom bora_sweep.cli import main\n"
        "main(['completion', 'answer', '--', 'sweep', 'lora.variant='])\n"
        "assert not {'torch', 'pandas', 'numpy', 'ray', 'pyarrow', 'transformers'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT, capture_output=True)


def program(folder: Path) -> str:
    """A folder for PATH with `bora-sweep` of this tree."""
    place = folder / "other" / "bora-sweep"
    place.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m bora_sweep.cli "$@"\n')
    place.chmod(0o755)
    return f"{place.parent}:/usr/bin:/bin"


BASH = """
source <(bora-sweep completion bash)
COMP_LINE=$1 COMP_POINT=${2:-${#1}}
read -r -a COMP_WORDS <<< "$(sed -E 's/([=:])/ \\1 /g' <<< "$COMP_LINE")"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_bora_sweep
printf '%s|' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("bora-sweep sw", "sweep |"),
        ("bora-sweep sweep train.max_e", "train.max_epochs=|"),
        ("bora-sweep sweep lora.variant=do", "dora |"),  # bash keeps what is before its = and :
        ("bora-sweep sweep lora.variant=", "lora |rslora |lora_plus |dora |mora |"),
        ("bora-sweep sweep a.yaml data.path=speec", "speeches.parquet |"),
        ("bora-sweep export runs/20", f"{RUN} |"),
        ("bora-sweep fit prior.pen", "prior.penalty=|"),
    ],
)
def test_bash(line, replies, folder):
    done = subprocess.run(
        ["bash", "-c", BASH, "bash", line], env={"PATH": program(folder)}, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    assert done.stdout == replies


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish(folder):
    ask = "bora-sweep completion fish | source; complete --do-complete "
    for line, replies in [("bora-sweep sw", "sweep\n"), ("bora-sweep sweep lora.variant=do", "lora.variant=dora\n")]:
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"{ask} '{line}'"], env={"PATH": program(folder), "HOME": str(folder)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.stdout == replies


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_reads_its_script(folder):
    code = 'autoload -U compinit; compinit -D; eval "$(bora-sweep completion zsh)"; print ${_comps[bora-sweep]}'
    done = subprocess.run(
        ["zsh", "-f", "-c", code], env={"PATH": program(folder)}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "_bora_sweep\n"
