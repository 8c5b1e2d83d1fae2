"""`bora-sweep groups`: a run's similarities and groups, from its files to its report."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tensor_memory import LargestTensor
from tiny import WORDS, make_base, make_tokenizer

import bora_sweep
from bora_sweep import task_groups
from bora_sweep.cli import main
from bora_sweep.config import load_config
from bora_sweep.errors import InputError
from bora_sweep.model.layout import make_layout
from bora_sweep.report import write_report
from bora_sweep.runs.folder import FORGETTING
from bora_sweep.runs.run_lock import DRIVER_FILE, run_lock
from bora_sweep.steering import stop
from bora_sweep.task_groups import TaskGroups, adapter_cosines

TASKS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fit of tasks that speak with one half of the words or with the other."""
    folder = tmp_path_factory.mktemp("groups")
    make_base("opt").save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    rng, rows = np.random.default_rng(0), []
    for number in range(TASKS):
        words = WORDS[:8] if number % 2 else WORDS[20:28]
        rows += [(f"task {number}", " ".join(rng.choice(words, 12))) for _ in range(30)]
    pd.DataFrame(rows, columns=["task", "text"]).to_parquet(folder / "data.parquet")
    bora_sweep.fit(
        f"data.path={folder / 'data.parquet'}", f"model.name={folder / 'base'}", "model.max_tokens=24", "lora.rank=2",
        "prior.tau=10", "train.max_epochs=1", "train.device=cpu", output=str(folder / "run"),
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def found(run) -> TaskGroups:
    return bora_sweep.groups(run)


def test_tasks_with_the_same_words_are_alike(run, found):
    pairs = found.similarity
    assert len(pairs) == TASKS * (TASKS - 1) // 2
    same = pairs["task"].str[-1].astype(int) % 2 == pairs["other"].str[-1].astype(int) % 2
    assert pairs.loc[same, "similarity"].mean() > pairs.loc[~same, "similarity"].mean() + 0.8
    assert (pairs["low"] <= pairs["similarity"]).all()
    assert pairs["adapter_similarity"].between(-1, 1).all()
    results = bora_sweep.read_results(run)
    pd.testing.assert_frame_equal(
        results.similarity[["task", "other", "similarity"]], pairs[["task", "other", "similarity"]], check_dtype=False,
        atol=1e-6,
    )  # fmt: skip
    assert results.groups["task"].tolist() == found.groups["task"].tolist()


def test_the_report_and_the_page_show_what_was_found(run, found):
    report = write_report(run)
    text = report.read_text()
    assert "## Who is like whom" in text
    assert (report.parent / "figures" / "similarity.png").exists()
    assert ("**No structure**" in text) == (not found.found)
    assert (report.parent / "groups.csv").exists() == found.found
    assert '"alike":' in (report.parent / "index.html").read_text()


def test_the_command_says_what_it_found(run, capsys, tmp_path):
    assert main(["groups", str(run), str(tmp_path / "out.csv")]) == 0
    told = capsys.readouterr().out
    assert "no structure" in told or "data.groups_path=" in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"trial": "none"}, "no such finished trial"),
        ({"out": "nowhere/out.csv"}, "nowhere"),
        ({"out": "groups.txt"}, "ends with .csv"),
        ({"settings": ["prior.tau=3"]}, "prior.tau"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(run, arguments, says):
    with pytest.raises(InputError, match=says):
        bora_sweep.groups(run, **arguments)


def test_documents_that_have_changed_are_refused(run):
    path = run.parent / "data.parquet"
    before = path.read_bytes()
    frame = pd.read_parquet(path)
    frame.loc[0, "text"] = "w1 w2 w3"
    frame.to_parquet(path)
    try:
        with pytest.raises(InputError, match="task 0"):
            bora_sweep.groups(run)
    finally:
        path.write_bytes(before)


def tables(run) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_a_run_on_which_another_process_works_is_refused(run, found, capsys):  # noqa: ARG001
    before = tables(run)
    with run_lock(run, "fit"):
        assert main(["groups", str(run)]) == 2
    assert "works on it" in " ".join(capsys.readouterr().err.split())
    (run / FORGETTING).write_text("{}")
    try:
        assert main(["groups", str(run)]) == 2
    finally:
        (run / FORGETTING).unlink()
    assert "first run bora-sweep forget" in " ".join(capsys.readouterr().err.split())
    assert tables(run) == before


def test_no_other_process_may_work_on_it_meanwhile_and_it_can_be_stopped(run, monkeypatch, capsys):
    """The lock is held while gradients are taken; `stop` ends that, and then nothing was written."""
    before, seen, sums = tables(run), [], task_groups.fold_sums

    def stopped(*arguments):
        with pytest.raises(InputError, match="works on it"):
            bora_sweep.forget(run, "task 0")
        seen.append((run / DRIVER_FILE).exists())
        stop(run)
        return sums(*arguments)

    monkeypatch.setattr(task_groups, "fold_sums", stopped)
    monkeypatch.setattr("bora_sweep.runs.requests.POLL_SECONDS", 0)
    assert main(["groups", str(run)]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert seen == [True]
    left = tables(run)
    assert left.pop("stop", b"") == b""
    assert left == before
    monkeypatch.undo()
    assert bora_sweep.groups(run).similarity is not None


def test_no_file_but_one_of_groups_is_replaced(run, tmp_path):
    (tmp_path / "speeches.csv").write_text("task,text\nann,hello\n")
    with pytest.raises(InputError, match="is no file of groups"):
        bora_sweep.groups(run, tmp_path / "speeches.csv")
    assert (tmp_path / "speeches.csv").read_text() == "task,text\nann,hello\n"
    (tmp_path / "groups.csv").write_text("task,group\nann,x\n")
    bora_sweep.groups(run, tmp_path / "groups.csv")


def test_the_adapters_of_all_tasks_are_not_copied_as_a_whole():
    """Beside the cosines of the matrices B A, which are formed here."""
    base, config = make_base("opt"), load_config(["lora.rank=2", "lora.target_modules=all-linear"])
    layout, tasks = make_layout(base, config.lora), ["a", "b", "c"]
    bank_KP = torch.randn(4, layout.num_parameters)
    theta_of = dict(zip(tasks, bank_KP, strict=False))
    loaded = SimpleNamespace(
        is_shared=False, lora=config.lora, layout=layout, theta_of=theta_of, mean_P=bank_KP[3]
    )  # fmt: skip
    largest = LargestTensor()
    with largest:
        found_KK = adapter_cosines(loaded, tasks)  # type: ignore[arg-type]
    assert largest.numbers < bank_KP.numel() / 4
    whole = []
    for theta_P in bank_KP:
        matrices = {}
        for part, flat_P in zip(layout.parts, theta_P.double().split(layout.sizes), strict=True):
            matrices.setdefault(part.site.name, {})[part.kind] = flat_P.view(part.shape)
        whole.append(torch.cat([(site["B"] @ site["A"]).flatten() for site in matrices.values()]))
    delta_KX = torch.stack(whole[:3]) - whole[3]
    delta_KX /= delta_KX.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(found_KK, (delta_KX @ delta_KX.T).numpy(), atol=1e-6)
