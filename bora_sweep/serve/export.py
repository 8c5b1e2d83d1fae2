"""A trial's adapters as folders that others load: PEFT adapters or full models, each with its model card."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bora_sweep.config.paths import local_path
from bora_sweep.data.corpus import Corpus
from bora_sweep.data.encode import fill, until_text
from bora_sweep.data.known_documents import DOCUMENTS
from bora_sweep.data.tokens import tokenize_for
from bora_sweep.errors import InputError
from bora_sweep.model.base import empty_base, load_base, load_tokenizer
from bora_sweep.model.full_model import write_full
from bora_sweep.model.peft_check import refuse_unlike, sites_by_weight
from bora_sweep.model.peft_io import GLOBAL, TASKS, folder_names, write_adapter
from bora_sweep.runs.storage import Folder, exists, folder_at, read_bytes
from bora_sweep.serve.load import LoadedTrial, load_trial
from bora_sweep.serve.model_card import Exported, Framed, card
from bora_sweep.trials.fingerprints import check_base_model


def export(
    run: str | Folder,
    out: str | Path,
    trial: str = "best",
    tasks: Sequence[str] | None = None,
    *,
    merge: bool = False,
) -> dict[str, str]:
    """Write Theta and the tasks' adapters of a trial below `out`, each in a folder of its own with a README.md.

    Beside them the fingerprints of the run's documents, all of them, for what goes on from here to know its splits.

    Args:
        run: The run's folder; also `s3://…` and `gs://…`.
        out: The folder; new or empty.
        trial: The ID of a finished one; `best`: the MAP fit of the lowest validation perplexity.
        tasks: Names; left out: all.
        merge: Full models, the base with the adapter in its weights, and the tokenizer.

    Returns:
        The folder of each task, as in `tasks.json`, which is written last: what has one is whole.

    Raises:
        InputError: There is no such trial or task, `out` holds something or is an address, the base cannot be loaded or
            merged or is another than the run's, or what is written does not load as what was fitted; nothing is left
            of it then.
    """
    run, out = folder_at(run), Path(local_path(str(out)))
    trained = load_trial(run, trial)
    trained.refuse_unknown(tasks or ())
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already and not empty; give a new folder")
    names = {
        task: name for task, name in folder_names(list(trained.theta_of)).items() if tasks is None or task in tasks
    }
    check_base_model(run, trained.config.model, trained.config.data)
    tokenizer = load_tokenizer(trained.config.model, trained.config.data)
    write = _full_models(trained, tokenizer) if merge else _adapters(trained)
    record = read_bytes(run / DOCUMENTS) if exists(run / DOCUMENTS) else None
    try:
        for task, name in [(None, GLOBAL), *names.items()]:
            rounded_away = write(out / name, trained.mean_P if task is None else trained.theta_of[task])
            about = _card(trained, task, name, _framed(trained, task, tokenizer), rounded_away)
            (out / name / "README.md").write_text(about, encoding="utf-8")
            if merge and record is not None:  # a full model goes its own ways
                (out / name / DOCUMENTS).write_bytes(record)
    except BaseException:
        for name in (GLOBAL, *names.values()):
            shutil.rmtree(out / name, ignore_errors=True)
        raise
    if record is not None:
        (out / DOCUMENTS).write_bytes(record)
    (out / TASKS).write_text(json.dumps(names, ensure_ascii=False, indent=2), encoding="utf-8")
    return names


def _adapters(trained: LoadedTrial) -> Callable[[Path, Tensor], None]:
    """What writes an adapter into a folder, and tries whether PEFT loads it from there as it is.

    Raises:
        InputError: PEFT would not load this run's adapters.
    """
    model, layout, lora = trained.config.model, trained.layout, trained.lora
    if lora.variant == "mora":  # PEFT has none
        return lambda folder, theta_P: write_adapter(folder, layout, theta_P, lora, model.name)
    base = empty_base(model, trained.config.data)
    try:
        by_weight = sites_by_weight(base, layout, lora)
    except InputError as error:
        raise InputError(f"{error}; --merge writes full models of this run as it is") from None

    def write(folder: Path, theta_P: Tensor) -> None:
        write_adapter(folder, layout, theta_P, lora, model.name, by_weight)
        refuse_unlike(base, folder, layout, theta_P)

    return write


def _full_models(trained: LoadedTrial, tokenizer: PreTrainedTokenizerBase) -> Callable[[Path, Tensor], float]:
    """What writes a full model and the tokenizer into a folder; it tells what rounding took of the adapter."""
    base = load_base(trained.config.model, trained.config.data)

    def write(folder: Path, theta_P: Tensor) -> float:
        rounded_away = write_full(folder, base, trained.layout, theta_P)
        tokenizer.save_pretrained(folder)
        return rounded_away

    return write


def _card(trained: LoadedTrial, task: str | None, folder: str, framed: Framed, rounded_away: float | None) -> str:
    data = trained.config.data
    corpus = "the embedded corpus" if data.path is None else Path(data.path).name
    return card(Exported(trained.row, task, folder, corpus, trained.config, framed, rounded_away), trained.results)


def _framed(trained: LoadedTrial, task: str | None, tokenizer: PreTrainedTokenizerBase) -> Framed:
    """What stands around a text of the task, as fits had it; for Theta, of the first task."""
    data, task = trained.config.data, task or next(iter(trained.theta_of))
    row = {"task": task, "text": "", "document_id": "0", "split": "test", "floor_nll_nats": math.nan}
    bare = tokenize_for(trained.config, Corpus("", (task,), pd.DataFrame([row]), ()), tokenizer)
    start = bare.tokens[: len(bare.tokens) - bare.num_tokens("test")].tolist()
    until = until_text(data.template)
    before, after = fill(until, {"task": task, "text": ""}), fill(data.template[len(until) :], {"task": task})
    by_task = "{task}" in f"{data.prompt}{data.template}"
    return Framed(task, by_task, start, before, after, str(tokenizer.convert_ids_to_tokens(bare.padding)))
