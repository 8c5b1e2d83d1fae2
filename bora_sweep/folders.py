"""A trial's adapters as folders that others load: PEFT adapters or full models, each with its model card."""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bora_sweep.errors import InputError
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.model.full import write_full
from bora_sweep.model.interchange import GLOBAL, TASKS, folder_names, write_adapter
from bora_sweep.paths import local_path
from bora_sweep.report.card import Exported, card
from bora_sweep.storage import Folder, folder_at
from bora_sweep.trained import Trained, read_trained


def export(
    run: str | Folder,
    out: str | Path,
    trial: str = "best",
    tasks: Sequence[str] | None = None,
    *,
    merge: bool = False,
) -> dict[str, str]:
    """Write Theta and the tasks' adapters of a trial below `out`, each in a folder of its own with a README.md.

    Args:
        run: The run's folder; also `s3://…` and `gs://…`.
        out: The folder; new or empty.
        trial: The ID of a finished one; `best`: the MAP fit of the lowest validation perplexity.
        tasks: Names; left out: all.
        merge: Full models, the base with the adapter in its weights, and the tokenizer.

    Returns:
        The folder of each task, as in `tasks.json`, which is written last: what has one is whole.

    Raises:
        InputError: There is no such trial or task, `out` holds something or is an address, or the base cannot be
            loaded or merged.
    """
    out = Path(local_path(str(out)))
    trained = read_trained(folder_at(run), trial)
    trained.refuse_unknown(tasks or ())
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already and not empty; give a new folder")
    names = {
        task: name for task, name in folder_names(list(trained.theta_of)).items() if tasks is None or task in tasks
    }
    model, data = trained.config.model, trained.config.data
    full = (load_base(model, data), load_tokenizer(model, data)) if merge else None
    for task, name in [(None, GLOBAL), *names.items()]:
        _write(out / name, trained, task, full)
    (out / TASKS).write_text(json.dumps(names, ensure_ascii=False, indent=2), encoding="utf-8")
    return names


def _write(
    folder: Path, trained: Trained, task: str | None, full: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None
) -> None:
    """One folder: a task's, or Theta's; with `full`, the base and its tokenizer, a model of its own."""
    theta_P = trained.mean_P if task is None else trained.theta_of[task]
    model, data = trained.config.model, trained.config.data
    if full is None:
        write_adapter(folder, trained.layout, theta_P, trained.lora, model.name)
    else:
        base, tokenizer = full
        write_full(folder, base, trained.layout, theta_P)
        tokenizer.save_pretrained(folder)
    corpus = "the embedded corpus" if data.path is None else Path(data.path).name
    about = Exported(trained.row, task, folder.name, corpus, model.name, is_full=full is not None)
    (folder / "README.md").write_text(card(about, trained.results), encoding="utf-8")
