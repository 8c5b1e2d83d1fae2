"""What the documentation shows runs: its Python as it stands, its commands as far as the parser and the keys."""

import re
import shlex
from pathlib import Path

import pytest

from bora_sweep.cli import _parser
from bora_sweep.config import load_config
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.tokens import tokenize
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.report import write_report
from bora_sweep.runs.folder import create_run
from bora_sweep.serve.export import export
from bora_sweep.trials.trial import Trial, run_trial

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)

NOT_RUN = {
    "s3://YOUR-BUCKET": "needs a bucket; tests/test_storage.py reads results from an S3 server",
    "base_model_folder(config, progress=True)": "trains the embedded model for a minute; tests/test_embedded.py scores",
}
SMALLER = {
    'search={"num_trials": 12}': 'search={"num_trials": 1}',
    "facebook/opt-350m": "model",
    '"A"': '"000"',
    '"B"': '"001"',
}
SMALL = """
data: {path: speeches.parquet}
model: {name: model, max_tokens: 16}
lora: {rank: 2}
train: {max_epochs: 1, device: cpu, learning_rate: 0.02}
"""


def blocks(page: Path, *languages: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    found = [(indent, body) for indent, language, body in BLOCK.findall(text) if language in languages]
    return [re.sub(f"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


def python_of(page: Path) -> list[str]:
    """Its blocks of Python, and what it gives to `python -c` in a block of its own."""
    quoted = [re.fullmatch(r'python -c "\n?(.*)"\n', body, re.DOTALL) for body in blocks(page, "sh")]
    found = [*blocks(page, "python"), *(match[1] for match in quoted if match)]
    return [body for body in found if not any(name in body for name in NOT_RUN)]


@pytest.fixture(scope="module")
def place(tmp_path_factory, corpus_file, model_folder) -> Path:
    """A folder in which there is all that the documentation names: a run, its export, a model, configurations."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "conf").mkdir()
    (folder / "conf" / "embedded.yaml").write_text(SMALL)
    (folder / "speeches.parquet").symlink_to(corpus_file)
    (folder / "model").symlink_to(model_folder)
    run = folder / "RUN"
    config = load_config(
        [str(folder / "conf" / "embedded.yaml"), f"data.path={corpus_file}", f"model.name={model_folder}"]
    )
    corpus = tokenize(load_corpus(config.data), load_tokenizer(config.model, config.data), config.model.max_tokens)
    base = load_base(config.model, config.data)
    create_run(config, run)
    for number, tau in enumerate((0, float("inf"), 10)):
        own = load_config([f"prior.tau={tau}"], base=config)
        run_trial(Trial(f"{number:03d}", own), corpus, lambda: base, run)
    write_report(run)
    export(run, folder / "OUT")
    (folder / "runs").mkdir()
    (folder / "runs" / "…").symlink_to(run)
    return folder


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.ray] if page.name == "python.md" else [])
        for page in PAGES
        if python_of(page)
    ],
)
def test_python_runs_as_it_stands(page, place, monkeypatch, request):
    """The blocks of a page one after the other, in which a later one may use what an earlier one made."""
    if page.name == "python.md":
        request.getfixturevalue("ray_here")
    monkeypatch.chdir(place)
    names: dict = {}
    for number, body in enumerate(python_of(page), start=1):
        for shown, smaller in SMALLER.items():
            body = body.replace(shown, smaller)
        exec(compile(body, f"{page.name}, block {number}", "exec"), names)


def commands(page: Path) -> list[str]:
    """Each command of ours in it, in blocks and in its text, without comments and what stands before it."""
    found = []
    for body in blocks(page, "", "sh", "bash"):
        lines = body.replace("\\\n", " ").splitlines()
        found += [line for line in lines if re.search(r"(bora-sweep|bora_sweep\.cli) \w+ ", line)]
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    spans = re.findall(r"`(bora-sweep \w+ [^`]*)`", text)
    found += [span for span in spans if "COMMAND" not in span and "--help" not in span]
    ours = [re.split(r"bora-sweep |bora_sweep\.cli ", " ".join(line.split()), maxsplit=1)[1] for line in found]
    return [re.split(r" #|\"$", line)[0] for line in ours]


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES if commands(page)])
def test_commands_parse_and_their_keys_are_known(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        parsed = _parser().parse_args([word for word in shlex.split(command) if word not in ("…", "FILE.yaml")])
        settings = [re.sub(r"^\S*/bora_sweep/", "", word) for word in getattr(parsed, "settings", [])]
        load_config([word for word in settings if "=" in word or word.endswith(".yaml")])
