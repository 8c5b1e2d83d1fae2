"""What is published: one version everywhere, a whole wheel and source archive, and the wheel at work on its own."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from sweeps import outside

import bora_sweep

ROOT = Path(__file__).resolve().parents[1]
DATA = ["py.typed", "config/protocol/*.yaml", "report/html/assets/*", "report/paper/published/*"]


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert citation["version"] == newest[1] == bora_sweep.__version__


def test_the_api_page_documents_every_public_name():
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    public = {f"bora_sweep.{name}" for name in bora_sweep.__all__ if name != "__version__"}
    assert {name for name in names if name.count(".") == 1} == public
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel and the source archive of the tracked files."""
    folder = tmp_path_factory.mktemp("build")
    for name in tracked():
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "copy" / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "copy")]
    subprocess.run(command, check=True, capture_output=True, timeout=500)
    [wheel], [source] = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, source


def tracked(*patterns: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def package_files() -> set[str]:
    data = {str(path.relative_to(ROOT)) for pattern in DATA for path in (ROOT / "bora_sweep").glob(pattern)}
    return data | set(tracked("bora_sweep/*.py"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_licence_alone(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        names = set(wheel.namelist())
        [about] = (wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {name for name in names if not name.startswith(f"bora_sweep-{bora_sweep.__version__}.dist-info/")} == (
        package_files()
    )
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in about


@pytest.mark.slow
def test_the_source_archive_holds_what_a_reader_needs_and_no_tests(archives):
    with tarfile.open(archives[1]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    beside = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "constraints.txt", "pyproject.toml"}
    assert names >= package_files() | beside | set(tracked("conf/*.yaml", "examples/*"))
    made = {"MANIFEST.in", "PKG-INFO", "setup.cfg"}
    tops = {name.partition("/")[0] for name in names}
    assert tops == beside | made | {"bora_sweep", "bora_sweep.egg-info", "conf", "examples"}
    assert not [name for name in names if name.endswith((".pyc", ".parquet", ".safetensors"))]


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory) -> Path:
    """The folder of programs of an environment that has the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(archives[0])], check=True, capture_output=True, timeout=300)
    [packages] = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file names comes after the environment's own, and its .pth files, an editable install's among
    # them, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


@pytest.fixture
def run_installed(installed, tmp_path, tmp_path_factory):
    """Run a program of that environment in an empty folder, without this one's variables; returns what it printed."""
    environment = {name: value for name, value in outside().items() if not name.startswith("PYTHON")}
    environment |= {"BORA_SWEEP_CACHE": str(installed.parent / "cache"), "HOME": str(tmp_path_factory.mktemp("home"))}

    def run(program: str, *arguments: str) -> str:
        command = [str(installed / program), *arguments]
        environment["PATH"] = f"{installed}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_installed_wheel_fits_sweeps_and_reports_in_an_empty_folder(run_installed, installed, tmp_path):
    """Not marked `ray`: nothing in it has a deadline, so it may run beside the tests that start Ray."""
    where = run_installed("python", "-c", "import bora_sweep; print(bora_sweep.__file__)")
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert run_installed("bora-sweep", "--version").strip() == f"bora-sweep {bora_sweep.__version__}"
    run_installed("bora-sweep", "fit", "prior.tau=100", "train.max_epochs=1", "protocol=paper", "output=fit")
    assert len(bora_sweep.read_results(tmp_path / "fit").trials) == 1
    run_installed("bora-sweep", "sweep", "train.max_epochs=1", "search.num_trials=1", "output=sweep")
    assert (tmp_path / "sweep" / "report" / "index.html").exists()
    assert set(bora_sweep.read_results(tmp_path / "sweep").trials["status"]) == {"finished"}
