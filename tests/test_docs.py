"""The documentation is right: its blocks run or parse, and the files, names, keys and links that it mentions exist.

A fence says what a block is: ```python and ```bash run here, with a small model and corpus in place of large ones;
```bash no-run and ```python no-run need a cluster, a network or minutes, and are only parsed; ```text is output.
"""

import ast
import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest
from tiny import make_frame

from bora_sweep.cli import _parse, main
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
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INFO = {"python", "python no-run", "bash", "bash no-run", "sql", "text", "mermaid"}

SMALLER = {
    'search={"num_trials": 12}': 'search={"num_trials": 1}',
    "facebook/opt-350m": "model",
    '"A"': '"000"',
    '"B"': '"001"',
    "progress=True": "pretraining=__import__('bora_sweep').model.embedded.Pretraining(num_steps=5)",
    "runs/ton": "RUN",
    "data.min_documents=60": "data.min_documents=10",
    "--max-new-tokens 32": "--max-new-tokens 2",
    'RUN --task romeo "I will"': 'RUN --task romeo --max-new-tokens 2 "I will"',
}
SMALL = """
data: {path: speeches.parquet}
model: {name: model, max_tokens: 16}
lora: {rank: 2}
train: {max_epochs: 1, device: cpu, learning_rate: 0.02}
"""
WRITTEN = "bora_sweep.yaml"
"""By `bora-sweep init`."""
SECTIONS = "data|model|lora|prior|train|search|ray"


def of_pages(pages: list[Path], marks_of: dict[str, list] | None = None) -> list:
    """Pages as parameters, with the marks of some."""
    return [pytest.param(page, id=page.name, marks=(marks_of or {}).get(page.name, [])) for page in pages]


def blocks(page: Path, *infos: str) -> list[str]:
    """The bodies of the page's blocks of these kinds."""
    text = page.read_text(encoding="utf-8")
    return [body for info, body in FENCE.findall(text) if info in infos]


def smaller(text: str) -> str:
    for shown, small in SMALLER.items():
        text = text.replace(shown, small)
    return text


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_folder) -> Path:
    """A folder with everything that the blocks name: corpora, a model, a configuration, a run and its export."""
    folder = tmp_path_factory.mktemp("docs")
    frame = make_frame({"romeo": 40, "juliet": 24, "nurse": 16, "mercutio": 12})
    frame = frame.assign(speaker=frame["task"])
    for name in ("speeches", "speakers"):
        frame.to_parquet(folder / f"{name}.parquet")
    (folder / "conf").mkdir()
    (folder / "conf" / "embedded.yaml").write_text(SMALL)
    (folder / "model").symlink_to(model_folder)
    run = folder / "RUN"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = load_config(
            ["conf/embedded.yaml", f"data.path={folder}/speeches.parquet", f"model.name={model_folder}"]
        )
        tokenizer = load_tokenizer(config.model, config.data)
        corpus = tokenize(load_corpus(config.data), tokenizer, config.model.max_tokens)
        base = load_base(config.model, config.data)
        create_run(config, run)
        for number, tau in enumerate((0, float("inf"), 10)):
            run_trial(Trial(f"{number:03d}", load_config([f"prior.tau={tau}"], base=config)), corpus, lambda: base, run)
        write_report(run)
        export(run, folder / "OUT")
    (folder / "runs").mkdir()
    (folder / "runs" / "…").symlink_to(run)
    return folder


@pytest.mark.parametrize("page", of_pages(PAGES))
def test_each_block_says_what_it_is(page):
    text = page.read_text(encoding="utf-8")
    assert {info for info, _ in FENCE.findall(text)} <= INFO
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(FENCE.findall(text)), "a fence that is not closed"


@pytest.mark.parametrize(
    "page",
    of_pages([page for page in PAGES if blocks(page, "python")], {"python.md": [pytest.mark.ray, pytest.mark.slow]}),
)
def test_python_runs_as_it_stands(page, place, tmp_path, monkeypatch, request):
    """The blocks of a page one after the other: a later one may use the names of an earlier one."""
    if page.name == "python.md":
        request.getfixturevalue("ray_here")
    else:
        monkeypatch.setenv("BORA_SWEEP_CACHE", str(tmp_path))
    monkeypatch.chdir(place)
    names: dict = {}
    for number, body in enumerate(blocks(page, "python"), start=1):
        exec(compile(smaller(body), f"{page.name}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", of_pages([page for page in PAGES if blocks(page, "bash")]))
def test_commands_run_as_they_stand(page, place, tmp_path, monkeypatch):
    """Each line is a command of ours, or Python given to `python -c`."""
    monkeypatch.chdir(place)
    for body in blocks(page, "bash"):
        if body.startswith("python -c"):
            _, _, code = shlex.split(body)
            exec(code, {})
            continue
        for line in body.splitlines():
            program, *arguments = shlex.split(smaller(line), comments=True)
            assert program == "bora-sweep"
            arguments = [str(tmp_path / "OUT") if argument == "OUT" else argument for argument in arguments]
            assert main(arguments) == 0, line


@pytest.mark.parametrize("page", of_pages([page for page in PAGES if blocks(page, "python no-run")]))
def test_python_that_does_not_run_here_imports_what_there_is(page):
    for body in blocks(page, "python no-run"):
        tree = ast.parse(body)
        imports: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, type_ignores=[]), page.name, "exec"), {})


def commands(page: Path) -> list[str]:
    """Each command of ours in it, in blocks and in its text, without comments and what stands before it."""
    lines = []
    for body in blocks(page, "bash", "bash no-run"):
        joined = body.replace("\\\n", " ").splitlines()
        lines += [line for line in joined if re.search(r"(bora-sweep|bora_sweep\.cli) \w+ ", line)]
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    spans = re.findall(r"`(bora-sweep \w+ [^`]*)`", text)
    lines += [span for span in spans if "COMMAND" not in span and "--help" not in span]
    ours = [re.split(r"bora-sweep |bora_sweep\.cli ", " ".join(line.split()), maxsplit=1)[1] for line in lines]
    ours = [line.removesuffix('"') if line.count('"') % 2 else line for line in ours]  # the end of `ray exec … "…"`
    return [line.split(" #")[0] for line in ours]


@pytest.mark.parametrize("page", of_pages([page for page in PAGES if commands(page)]))
def test_commands_parse_and_their_keys_are_known(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        parsed = _parse([word for word in shlex.split(command) if word not in ("…", "FILE.yaml")])
        settings = [re.sub(r"^\S*/bora_sweep/", "", word) for word in getattr(parsed, "settings", [])]
        load_config([word for word in settings if "=" in word or (word.endswith(".yaml") and word != WRITTEN)])


@pytest.mark.parametrize("page", of_pages(PAGES))
def test_keys_in_its_text_are_known(page):
    config = load_config([])
    for section, key in re.findall(rf"`({SECTIONS})\.([a-z]\w*)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        path = ROOT / "bora_sweep" / section / key
        if path.is_dir() or path.with_suffix(".py").exists():
            continue  # a package or a module: packages and sections share some names
        assert key in {field.name for field in dataclasses.fields(getattr(config, section))}, f"{section}.{key}"


@pytest.mark.parametrize("page", of_pages(PAGES))
def test_files_that_it_names_exist(page):
    """Tests, benchmarks, configurations and modules by their path, and targets of the Makefile."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.~])((?:tests|benchmarks|conf|docs|bora_sweep)/[\w/]+\.\w+)", text)
    assert [path for path in named if not (ROOT / path).exists()] == []
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)) <= targets


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", of_pages(PAGES))
def test_its_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


PACKAGES = {path.stem for path in (ROOT / "bora_sweep").iterdir() if path.is_dir() or path.suffix == ".py"}


def names_of_code(page: Path) -> list[str]:
    """Dotted names in backticks that begin with a package or a module of bora_sweep, or with the package itself."""
    spans = re.findall(r"`(?:bora_sweep\.)?([a-z_]+(?:\.\w+)+)`", page.read_text(encoding="utf-8"))
    return [span for span in spans if span.partition(".")[0] in PACKAGES]


@pytest.mark.parametrize("name", sorted(set(names_of_code(ROOT / "docs" / "architecture.md"))))
def test_the_map_of_the_code_names_what_there_is(name):
    parts = ["bora_sweep", *name.split(".")]
    if not (ROOT / "/".join(parts)).exists():
        assert resolve(parts) is not None


def test_other_pages_name_code_that_there_is():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in set(re.findall(r"`bora_sweep\.([\w.]+)`", pages.replace(WRITTEN, ""))):
        assert resolve(["bora_sweep", *name.split(".")]) is not None, name


def resolve(parts: list[str]) -> object:
    """The module, function, class or attribute of that name; a dataclass's field counts as there."""
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            fields = getattr(value, "__dataclass_fields__", {})
            assert hasattr(value, part) or part in fields, f"{'.'.join(parts)}: {value} has no {part}"
            value = getattr(value, part, fields.get(part))
        return value
    raise AssertionError(f"no module {'.'.join(parts)}")


EQUATIONS = {"add_low_rank": 3, "nll_nats": 4, "log_prior": 5, "map_objective": 6}


def test_the_readme_shows_where_the_equations_are():
    """Each link leads to the file that defines the function, and its docstring names the equation."""
    linked = dict(re.findall(r"\[`(\w+)`\]\((\S+\.py)\)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert linked.keys() == EQUATIONS.keys()
    for name, path in linked.items():
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert f"Eq. {EQUATIONS[name]}" in (ast.get_docstring(functions[name]) or ""), name
