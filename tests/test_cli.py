"""The commands that need no Ray: what they print, what they write, and their exit codes."""

import pytest

from bora_sweep.cli import main
from bora_sweep.runs.results import read_results, trial_rows
from bora_sweep.train.checkpoint import load_adapters

SMALL = ["model.max_tokens=16", "lora.rank=2", "train.max_epochs=2", "train.device=cpu", "train.learning_rate=0.02"]


def test_fit_writes_scores_and_adapters(corpus_file, model_folder, tmp_path, capsys):
    run = tmp_path / "run"
    code = main(["fit", f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, f"output={run}"])
    assert code == 0
    printed = capsys.readouterr()
    assert "test perplexity" in printed.out
    assert "epoch 2" in printed.err
    results = read_results(run)
    assert results.trials["status"].tolist() == ["finished"]
    assert results.curves["epoch"].max() == 2
    assert set(results.document_scores["split"]) == {"validation", "test"}
    tensors, about = load_adapters(run / "trials" / "fit")
    assert about["tasks"] == ["ann", "bob", "cid", "dot"]
    assert tensors["theta_KP"].shape[0] == 4


def test_an_interrupted_fit_goes_on_with_resume(corpus_file, model_folder, tmp_path, capsys, monkeypatch):
    from bora_sweep.progress import FitProgress

    arguments = [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL]
    assert main(["fit", *arguments, f"output={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patch:

        def press_ctrl_c(*_) -> None:
            raise KeyboardInterrupt

        patch.setattr(FitProgress, "on_epoch", press_ctrl_c)
        assert main(["fit", *arguments, f"output={tmp_path / 'cut'}"]) == 130
    assert f"--resume output={tmp_path / 'cut'}" in capsys.readouterr().err
    assert trial_rows(tmp_path / "cut")[0]["status"] == "interrupted"
    assert main(["fit", "--resume", f"output={tmp_path / 'cut'}"]) == 0
    whole, cut = (read_results(tmp_path / name).document_scores for name in ("whole", "cut"))
    assert whole["nll_nats"].tolist() == cut["nll_nats"].tolist()
    finished = trial_rows(tmp_path / "cut")
    assert main(["fit", "--resume", f"output={tmp_path / 'cut'}"]) == 0
    assert trial_rows(tmp_path / "cut") == finished


def test_no_secret_of_the_environment_is_in_a_run_or_on_the_screen(
    corpus_file, model_folder, tmp_path, capsys, monkeypatch
):
    """Neither of a fit that ends well, nor of one whose error repeats them."""
    secrets = {"HF_TOKEN": "hf_planted_1", "AWS_SECRET_ACCESS_KEY": "planted/2+3", "WANDB_API_KEY": "planted-4-5-6"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    arguments = [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL]
    assert main(["fit", *arguments, f"output={tmp_path / 'well'}"]) == 0
    assert main(["report", str(tmp_path / "well")]) == 0

    def fail(*_, **__) -> None:
        raise RuntimeError(f"401 for {secrets['HF_TOKEN']} at https://me:{secrets['WANDB_API_KEY']}@host/")

    monkeypatch.setattr("bora_sweep.train.fit.make_trainers", fail)
    assert main(["fit", *arguments, f"output={tmp_path / 'ill'}"]) == 1
    printed = capsys.readouterr()
    texts = [printed.out, printed.err, *(path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*.*"))]
    texts += [str(trial_rows(tmp_path / run)) for run in ("well", "ill")]  # Parquet is compressed
    assert "401 for ***" in texts[-1]
    assert not any(value in text for value in secrets.values() for text in texts)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prior.tua=1"], "'tau'"),
        (["data.path=nowhere.parquet", "model.name=x"], "nowhere.parquet"),
        (["data.path={corpus}"], "model.name is not set"),
        (["data.path={corpus}", "model.name=no/such-model"], "no/such-model"),
        (["data.path={corpus}", "model.name=./nowhere"], "no such folder"),
        (["data.path={corpus}", "model.name={model}", "data.text_column=txt"], "txt"),
        (["data.path={corpus}", "model.name={model}", "lora.target_modules=[nope]"], "nope"),
        (["prior.tau=-1"], "prior.tau=-1"),
        (["prior.tau=nan"], "prior.tau=nan"),
        (["prior.group_scales={{A: 2}}"], "prior.groups=matrix, layer or task"),
        (["data.path={corpus}", "model.name={model}", "prior.groups=matrix", "prior.group_scales={{C: 2}}"], "A, B"),
        (["data.path={corpus}", "model.name={model}", "method=average"], "search.baselines"),
        (["search.mode=path", "search.taus=[3]"], "a path chooses its own values"),
        (["search.mode=path", "search.baselines=[independent,shared,vi]"], "best tau of separate fits"),
        (["data.path={corpus}", "model.name={model}", "model.max_tokens=1000"], None),
        (["--resume", "output=nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(arguments, says, corpus_file, model_folder, tmp_path, capsys):
    filled = [argument.format(corpus=corpus_file, model=model_folder) for argument in arguments]
    own = [] if "--resume" in filled else [f"output={tmp_path / 'run'}", "train.max_epochs=1"]
    code = main(["fit", *filled, *own])
    printed = capsys.readouterr()
    if says is None:  # long documents are no error: the longest that are there have 13 tokens
        assert code == 0
        return
    assert code == 2
    assert says in printed.err
    assert "Traceback" not in printed.err
    errors = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "bora-sweep: the following arguments are required: COMMAND; see bora-sweep --help"),
        (["nonsense"], "bora-sweep: argument COMMAND: invalid choice: 'nonsense'"),
        (["export", "run"], "bora-sweep export: the following arguments are required: OUT; see bora-sweep exp"),
        (["status", "a", "b\nc"], "bora-sweep status: unrecognized arguments: b c; see bora-sweep status --h"),
        (["generate", "r", "p", "--seed", "[x]"], "bora-sweep generate: argument --seed: invalid int value: '[x]'"),
        (["data", "describe", "--no"], "bora-sweep data describe: unrecognized arguments: --no; see bora-sweep "),
        (["completion", "csh"], "bora-sweep completion: argument bash|zsh|fish: 'csh': no such shell; give one"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.err.startswith(f"error: {says}")
    assert printed.err.count("\n") == 1
    assert "answer" not in printed.err
    assert not printed.out


def test_a_run_is_not_overwritten(corpus_file, model_folder, tmp_path, capsys):
    arguments = ["fit", f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, f"output={tmp_path / 'run'}"]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["fit", "--resume", "prior.tau=3", f"output={tmp_path / 'run'}"]) == 2
    assert "prior.tau=3" in capsys.readouterr().err


def test_a_run_that_another_release_began_is_gone_on_with_or_refused_by_name(
    corpus_file, model_folder, tmp_path, capsys
):
    run = tmp_path / "run"
    assert main(["fit", f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL, f"output={run}"]) == 0
    asked = (run / "config.yaml").read_text()
    assert "\n  checkpoint_minutes:" in asked
    older = "".join(line for line in asked.splitlines(True) if "checkpoint_minutes" not in line)
    (run / "config.yaml").write_text(older)
    assert main(["fit", "--resume", f"output={run}"]) == 0
    assert (run / "config.yaml").read_text() == asked
    (run / "config.yaml").write_text(asked.replace("checkpoint_minutes", "checkpoint_minuets"))
    capsys.readouterr()
    assert main(["fit", "--resume", f"output={run}"]) == 2
    said = capsys.readouterr().err
    assert "config.yaml: " in said
    assert "checkpoint_minuets" in said


def test_describe_shows_tasks_splits_and_tokens(corpus_file, model_folder, capsys):
    assert main(["data", "describe", str(corpus_file), f"model.name={model_folder}"]) == 0
    printed = capsys.readouterr().out
    assert all(task in printed for task in ("ann", "bob", "cid", "dot"))
    assert "92" in printed


@pytest.mark.parametrize("command", [[], ["fit"], ["sweep"], ["plan"], ["report"], ["data", "describe"]])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: bora-sweep" in printed
    assert len(printed.splitlines()) < 60
    if command and command[0] in ("fit", "sweep"):
        assert "data.path=null" in printed
