"""An export is uploaded by the hub's own client, and what the hub would refuse is refused before anything is written.

The client is replaced by one with the same signatures: no test asks a network.
"""

from types import SimpleNamespace
from unittest.mock import create_autospec

import httpx2
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from tiny import make_base, make_frame, make_tokenizer

from bora_sweep.cli import main
from bora_sweep.serve import hub

TOKEN = "hf_notShownAnywhere1234"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    make_base("opt", dtype=torch.float32).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    make_frame({"ann": 16, "bob": 14}).to_parquet(folder / "speeches.parquet")
    own = ["lora.rank=2", "train.max_epochs=1", "train.learning_rate=0.03", "model.max_tokens=12", "train.device=cpu"]
    settings = [f"data.path={folder / 'speeches.parquet'}", f"model.name={folder / 'base'}", *own]
    assert main(["fit", *settings, f"output={folder / 'run'}"]) == 0
    return folder / "run"


def refusal(kind: type, text: str) -> HfHubHTTPError:
    request = httpx2.Request("GET", "https://hub.invalid")
    return kind(text, response=httpx2.Response(404, request=request))


@pytest.fixture
def api(monkeypatch):
    """The hub's client: logged in, and the repository is not there yet."""
    client = create_autospec(HfApi, instance=True)
    client.model_info.side_effect = refusal(RepositoryNotFoundError, "none")
    monkeypatch.setattr(hub, "HfApi", lambda: client)
    monkeypatch.setattr(hub, "get_token", lambda: TOKEN)
    return client


@pytest.mark.parametrize("form", [[], ["--bank"], ["--merge"]])
@pytest.mark.parametrize("public", [False, True])
def test_an_export_becomes_a_new_repository_without_the_documents(form, public, run, api, tmp_path, capsys):
    out = tmp_path / "out"
    seen: list[set[str]] = []
    api.upload_folder.side_effect = lambda **given: seen.append({path.name for path in out.iterdir()})
    more = ["--public"] if public else []
    assert main(["export", str(run), str(out), "--push", "me/adapters", *form, *more]) == 0
    api.create_repo.assert_called_once_with("me/adapters", private=not public, exist_ok=True)
    given = api.upload_folder.call_args.kwargs
    assert (given["repo_id"], given["folder_path"]) == ("me/adapters", out)
    assert given["ignore_patterns"] == ["documents.parquet", "*/documents.parquet"]
    assert {"README.md", "tasks.json", "_global"} <= seen[0]  # the export was complete then
    assert "uploaded to me/adapters" in capsys.readouterr().out
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    if form != ["--bank"]:
        assert "ann" not in card
        assert f"library_name: {'transformers' if form else 'peft'}" in card


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adapters", "need OWNER/NAME"),
        ("a/b/c", "need OWNER/NAME"),
        ("me/a--b", "need OWNER/NAME"),
        ("me/a b", "need OWNER/NAME"),
        ("https://hub/me", "need OWNER/NAME"),
    ],
)
def test_a_name_of_another_form_is_refused_before_anything_is_written(name, says, run, api, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "out"), "--push", name]) == 2
    assert says in capsys.readouterr().err
    assert not api.method_calls
    assert not (tmp_path / "out").exists()


def found(private: bool, *files: str) -> SimpleNamespace:
    return SimpleNamespace(private=private, siblings=[SimpleNamespace(rfilename=name) for name in files])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda api: api.whoami.configure_mock(side_effect=refusal(HfHubHTTPError, f"no {TOKEN}")), "does not take it"),
        (lambda api: api.whoami.configure_mock(side_effect=OfflineModeIsEnabled("offline")), "offline"),
        (lambda api: api.whoami.configure_mock(side_effect=httpx2.ConnectError("no route")), "no route"),
        (
            lambda api: api.model_info.configure_mock(side_effect=None, return_value=found(False, ".gitattributes")),
            "is there already and public; give a new name, or --public",
        ),
        (
            lambda api: api.model_info.configure_mock(side_effect=None, return_value=found(True, "README.md")),
            "is there already and not empty",
        ),
    ],
)
def test_what_the_hub_would_refuse_is_told_in_one_line_before_anything_is_written(
    change, says, run, api, tmp_path, capsys
):
    change(api)
    assert main(["export", str(run), str(tmp_path / "out"), "--push", "me/adapters"]) == 2
    told = capsys.readouterr()
    assert says in " ".join(told.err.split())
    assert TOKEN not in told.err + told.out
    assert not (tmp_path / "out").exists()
    api.create_repo.assert_not_called()


def test_without_a_login_nothing_is_written(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert main(["export", str(run), str(tmp_path / "out"), "--push", "me/adapters"]) == 2
    assert "nobody is logged in to the hub; run `hf auth login`" in " ".join(capsys.readouterr().err.split())
    assert main(["export", str(run), str(tmp_path / "out"), "--public"]) == 2
    assert not (tmp_path / "out").exists()


def test_an_empty_private_repository_is_filled(run, api, tmp_path):
    api.model_info.configure_mock(side_effect=None, return_value=found(True, ".gitattributes"))
    assert main(["export", str(run), str(tmp_path / "out"), "--push", "me/adapters"]) == 0
    api.upload_folder.assert_called_once()


def test_an_export_stays_where_its_upload_fails(run, api, tmp_path, capsys):
    api.upload_folder.side_effect = refusal(HfHubHTTPError, f"no room for {TOKEN}")
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--push", "me/adapters"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"{out} is written; upload it by `hf upload me/adapters {out} ." in told
    assert "--private" in told
    assert TOKEN not in told
    assert (out / "tasks.json").exists()
