"""The command `plan`: what it prints, and its exit codes."""

import json
import resource

import pandas as pd
import pytest
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from bora_sweep.cards import GIGABYTES_OF, read_card
from bora_sweep.cli import main
from bora_sweep.errors import InputError
from bora_sweep.plan import TASKS, make_plan

SMALL = ["model.max_tokens=16", "lora.rank=2", "train.micro_batch_size=8"]


def test_a_plan_needs_the_config_alone(model_folder, tmp_path, capsys):
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    assert main(["plan", f"model.name={tmp_path}", *SMALL, "--card", "24GB"]) == 0
    printed = capsys.readouterr().out
    assert f"{TASKS} tasks" in printed
    assert "fits on a card of 24 GB" in printed
    assert "21.60 GB are usable" in printed
    assert all(part in printed for part in ("base", "banks", "forward", "backward", "update", "scoring"))


def test_tasks_and_rows_are_those_of_the_corpus(corpus_file, model_folder):
    settings = [f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL]
    plan = make_plan(settings, "l4")
    assert (plan.tasks, plan.tokens, plan.rows) == (4, 13, 8)
    assert make_plan(settings, "l4", tasks=7).tasks == 7
    assert make_plan([*settings, "search.pack=4"], "l4").memory.peak > plan.memory.peak


def test_a_fit_that_does_not_fit_exits_with_1_and_says_what_it_needs(tmp_path, capsys):
    geometry = {"model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(geometry | heads | {"max_position_embeddings": 4096}))
    settings = [f"model.name={tmp_path}", "model.dtype=auto", "model.max_tokens=2048"]
    assert main(["plan", *settings, "--card", "24GB"]) == 1
    printed = capsys.readouterr().out
    assert "does not fit on a card of 24 GB" in printed
    needed = make_plan(settings, "24GB")
    assert f"it needs train.micro_batch_size={needed.most_rows}" in printed
    assert make_plan([*settings, f"train.micro_batch_size={needed.most_rows}"], "24GB").is_fitting
    assert not make_plan([*settings, f"train.micro_batch_size={needed.most_rows + 1}"], "24GB").is_fitting
    assert main(["plan", *settings, "--card", "4GB"]) == 1
    assert "a smaller base" in capsys.readouterr().out
    assert make_plan([*settings, "model.quantization=nf4"], "24GB").memory.base < needed.memory.base


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model.name={model}", "--card", "24"], ["--card 24:", "24GB", "l4"]),
        (["model.name={model}", "--card", "0GB"], ["--card 0GB:"]),
        (["model.name={model}", "--card", "voodoo"], ["--card voodoo:", "h100"]),
        (["--card", "l4"], ["model.name is not set"]),
        (["model.name={model}", "prior.tua=1", "--card", "l4"], ["'tau'"]),
        (["model.name={model}", "--card", "l4", "--tasks", "0"], ["--tasks 0"]),
        (["model.name={model}", "model.max_tokens=16", "method=vi", "--card", "l4"], ["method=vi"]),
        (["model.name={model}", "train.shard_base=true", "--card", "l4"], ["train.shard_base=true"]),
        (["model.name={model}", "model.max_tokens=9999", "--card", "l4"], ["model.max_tokens"]),
        (["model.name=./nowhere", "--card", "l4"], ["no such folder"]),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(arguments, says, model_folder, capsys):
    assert main(["plan", *(argument.format(model=model_folder) for argument in arguments)]) == 2
    printed = capsys.readouterr().err
    assert all(text in printed for text in says)
    assert printed.count("error:") == 1


@pytest.mark.parametrize("processes", [2, 4])
def test_a_fit_of_several_processes_is_planned_by_one_of_them(processes, tmp_path, capsys):
    """Each has a card, its part of the tasks and of a batch, and of a sharded base its part of the blocks."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=12, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    settings = [f"model.name={tmp_path}", "model.dtype=float32", "model.max_tokens=16", "lora.rank=2"]
    alone = make_plan(settings, "l4", tasks=26)
    workers = f"ray.workers_per_trial={processes}"
    shared = make_plan([*settings, workers], "l4", tasks=26)
    assert (shared.tasks, shared.batch_size) == (-(-26 // processes), 64)  # which may all be of one process's tasks
    by_document = make_plan([*settings, workers, "train.parallel=data"], "l4", tasks=26)
    assert (by_document.tasks, by_document.batch_size) == (26, 64 // processes)
    assert shared.memory.base == alone.memory.base
    assert shared.memory.banks == pytest.approx(alone.memory.banks / processes, rel=0.2)
    block = sum(weight.nbytes for weight in LlamaForCausalLM(config).model.layers[0].parameters())
    sharded = make_plan([*settings, workers, "train.shard_base=true"], "l4", tasks=26)
    assert alone.memory.base - sharded.memory.base == 12 * block - 12 * block // processes - 2 * block
    assert make_plan([*settings, workers, "prior.tau=inf"], "l4", tasks=26).tasks == 26
    assert main(["plan", *settings, workers, "--card", "l4"]) == 0
    printed = capsys.readouterr().out
    assert f"{TASKS} tasks" in printed
    assert f"{processes} processes" in printed
    assert "search.pack" not in printed


def test_groups_are_those_of_the_documents_or_as_said(corpus_file, model_folder, tmp_path):
    frame = pd.read_parquet(corpus_file)
    frame.assign(party=frame["task"].isin(["ann", "bob"]).map(str)).to_parquet(tmp_path / "parties.parquet")
    settings = [f"model.name={model_folder}", *SMALL, "data.group_column=party"]
    plan, two = make_plan([f"data.path={tmp_path / 'parties.parquet'}", *settings], "l4"), 2
    alone = make_plan([f"data.path={corpus_file}", f"model.name={model_folder}", *SMALL], "l4")
    assert plan.memory.banks - alone.memory.banks == two * 3 * 4 * plan.num_parameters
    with pytest.raises(InputError, match=r"data\.group_column: how many groups there are .*\.num_groups=…"):
        make_plan(settings, "l4")
    said = ["data.synthetic.num_groups=3", "data.synthetic.num_tasks=9"]
    plan, alone = make_plan([*settings, *said], "l4"), make_plan([*settings[:-1], *said], "l4")
    assert plan.tasks == alone.tasks == 9
    assert plan.memory.banks - alone.memory.banks == 3 * 3 * 4 * plan.num_parameters


def test_a_fit_that_learns_tau_is_planned_with_its_questions(model_folder):
    """They score with smaller deviations, and are no fits of a pack."""
    settings = [f"model.name={model_folder}", "model.max_tokens=4", "lora.rank=8", "lora.target_modules=all-linear"]
    learnt, given = (make_plan([*settings, f"prior.tau={tau}"], "l4") for tau in ("learn", "100"))
    assert learnt.memory.scoring > given.memory.scoring
    assert learnt.memory.banks == given.memory.banks
    assert (learnt.most_fits, given.most_fits > 0) == (0, True)


def test_what_the_fit_at_tau_0_needs_beside_is_noted_where_it_does_not_fit(model_folder):
    settings = [f"model.name={model_folder}", "model.dtype=float32", "model.max_tokens=16", "lora.rank=2"]
    settings.append("lora.target_modules=[q_proj,v_proj]")
    plan, apart = (make_plan([*settings, f"prior.tau={tau}"], "l4", tasks=500) for tau in ("100", "0"))
    assert not any("tau = 0" in note for note in plan.notes)
    between = (plan.memory.peak + apart.memory.peak) / 2
    assert plan.memory.peak < between < apart.memory.peak
    tight = make_plan(settings, f"{between / 0.9 / 1e9:.9f}GB", tasks=500)
    assert tight.is_fitting
    assert any("tau = 0, which a sweep fits too, needs about" in note for note in tight.notes)


def test_settings_may_follow_the_card_and_a_large_batch_takes_no_memory(model_folder, capsys):
    settings = [f"model.name={model_folder}", "model.max_tokens=16", "--card", "1GB", "train.batch_size=1000000"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["plan", *settings]) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kilobytes
    assert "does not fit" in capsys.readouterr().out


def test_a_base_of_which_nothing_is_packed_is_refused(tmp_path, capsys):
    GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=48).save_pretrained(tmp_path)
    assert main(["plan", f"model.name={tmp_path}", "model.quantization=fp8", "--card", "l4"]) == 2
    assert "model.quantization=fp8: packs no layer" in capsys.readouterr().err


def test_a_card_is_asked_for(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["plan", "model.name=x"])
    assert caught.value.code == 2
    assert "--card" in capsys.readouterr().err


def test_cards_have_sizes_and_names():
    assert read_card("24GB") == read_card("24 gb") == read_card("L4")
    assert all(read_card(name).gigabytes == size for name, size in GIGABYTES_OF.items())
    with pytest.raises(InputError, match="24GB"):
        read_card("24GiB")
    card = read_card("10GB")
    assert card.usable_bytes == 9 * 10**9
    assert [card.processes(peak) for peak in (9 * 10**9, 9 * 10**9 + 1, 4 * 10**9)] == [1, 0, 2]
