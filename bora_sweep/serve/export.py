"""Exports a trial's adapters as folders for other programs: PEFT adapters or full models, each with a model card."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bora_sweep.config import Setting
from bora_sweep.config.paths import local_path
from bora_sweep.data.chat import template_variables
from bora_sweep.data.encode import Encoder, fill, placeholders, until_text
from bora_sweep.data.known_documents import DOCUMENTS
from bora_sweep.data.task_prompt import name_tokens
from bora_sweep.data.tokens import given_tokens
from bora_sweep.errors import InputError, plural
from bora_sweep.model.base import dtype_of_files, empty_base, load_base, load_tokenizer, weights_dtype
from bora_sweep.model.full_model import Merge, write_full
from bora_sweep.model.peft_check import check_like, check_peft_folder, sites_by_weight
from bora_sweep.model.peft_config import IN_PEFT
from bora_sweep.model.peft_io import CARD, GLOBAL, GROUP_PREFIX, GROUPS, TASKS, folder_names, write_adapter
from bora_sweep.runs.places import given_places
from bora_sweep.runs.results import Results
from bora_sweep.runs.storage import Folder, exists, folder_at, give_usual_modes, read_bytes
from bora_sweep.serve.hub import open_repository
from bora_sweep.serve.index_card import index_card
from bora_sweep.serve.load import LoadedTrial, load_trial
from bora_sweep.serve.model_card import ExportedFolder, TextFormat, model_card
from bora_sweep.trials.fingerprints import check_base_model

LOGGER = logging.getLogger(__name__)
MergedDtype: TypeAlias = Literal["base", "float32", "bfloat16"]
LOST_BY_ROUNDING = 0.1
"""Of the adapter's effect on the logits; a user is warned of more. See docs/serving.md."""
CHAT_TEMPLATE = "chat_template.jinja"
"""The file that transformers reads a chat template from."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder_of: dict[str, str]
    """The folder name of each task, as in `tasks.json`."""
    notes: list[str]
    """What a user should know of it."""


def export(
    run: str | Folder,
    out: str | Path,
    trial: str = "best",
    tasks: Sequence[str] | None = None,
    *,
    merge: bool = False,
    settings: Sequence[Setting] = (),
    dtype: MergedDtype = "base",
    push: str | None = None,
    public: bool = False,
) -> dict[str, str]:
    """Write Theta and the tasks' adapters of a trial below `out`, each in its own folder with a model card.

    Where all tasks have one adapter, as at tau = inf, it is written once, as `_global`. The fingerprints of the run's
    documents are written too, so that later fits with these adapters know the splits. Notes, for example of what
    rounding loses, are warnings of the logger `bora_sweep`.

    Args:
        run: The run's folder; also `s3://…` and `gs://…`.
        out: A new or empty folder.
        trial: The ID of a finished trial; `best`: the MAP fit that is best on validation by `search.objective`.
        tasks: Names of tasks; None: all.
        merge: Write full models, the base with the adapter merged into its weights, with the tokenizer. A run with
            `model.quantization` has its adapters merged into the weights of `model.name`, which are not quantised.
        settings: Where the base and the documents are now, such as `model.name=/models/opt-350m`: the same ones, which
            are compared by their content. The cards name the base as it is given here.
        dtype: With `merge`: the type of the full models' weights, `float32` or `bfloat16`; `base`: that of the base's
            files.
        push: OWNER/NAME: also upload the folder to the Hugging Face hub, as a new private repository.
        public: With `push`: a repository that all can see.

    Returns:
        The folder name of each task, as in `tasks.json`. That file is written last: an export that has it is complete.

    Raises:
        InputError: There is no such trial or task; `out` is not empty, or is an address; the base cannot be loaded or
            merged, or is not the run's; or what was written does not load unchanged. Then nothing of it is left. Or the
            hub takes no such repository; `out` is kept if it was written before.
    """
    exported = write_export(
        run, out, trial, tasks, merge=merge, settings=settings, dtype=dtype, push=push, public=public
    )
    for note in exported.notes:
        LOGGER.warning("%s: %s", out, note)
    return exported.folder_of


def write_export(
    run: str | Folder,
    out: str | Path,
    trial: str = "best",
    tasks: Sequence[str] | None = None,
    *,
    merge: bool = False,
    settings: Sequence[Setting] = (),
    dtype: MergedDtype = "base",
    push: str | None = None,
    public: bool = False,
) -> Exported:
    """As `export`, with what a user should know of it."""
    if dtype not in get_args(MergedDtype):
        raise InputError(f"dtype={dtype}: need one of {', '.join(get_args(MergedDtype))}")
    if dtype != "base" and not merge:
        raise InputError(f"--dtype {dtype}: adapters are written as they were fitted; also give --merge, or drop it")
    repository = open_repository(push, public=public)
    begun = begin_export(run, out, trial, tasks, settings)
    loaded, out = begun.loaded, begun.out
    folder_of = folder_names(list(loaded.theta_of))
    names = {task: GLOBAL if loaded.is_shared else folder_of[task] for task in begun.tasks}
    own_names = {task: name for task, name in names.items() if name != GLOBAL}
    group_names = {group: f"{GROUP_PREFIX}{name}" for group, name in folder_names(list(loaded.theta_g)).items()}
    write = _full_model_writer(loaded, begun.encoder.tokenizer, dtype) if merge else adapter_writer(loaded)
    scores = loaded.results.task_scores
    scores_of = dict(iter(scores.loc[scores["task"].isin(own_names)].groupby("task")))  # no card searches all rows
    merges: dict[str, Merge] = {}
    try:
        for task, name in [(None, GLOBAL), *own_names.items()]:
            merged = write(out / name, loaded.mean_P if task is None else loaded.theta_of[task])
            own = loaded.results if task is None else replace(loaded.results, task_scores=scores_of[task])
            write_card(begun, out / name, own, task=task, merge=merged)
            if merged is not None:
                merges[name] = merged
                if begun.documents is not None:  # each full model is used on its own
                    (out / name / DOCUMENTS).write_bytes(begun.documents)
        for group, name in group_names.items():
            merged = write(out / name, loaded.theta_g[group])
            of_group = scores["task"].isin([task for task, own in loaded.group_of.items() if own == group])
            own = replace(loaded.results, task_scores=scores.loc[of_group])
            write_card(begun, out / name, own, task=None, group=group, merge=merged)
            if merged is not None:
                merges[name] = merged
                if begun.documents is not None:
                    (out / name / DOCUMENTS).write_bytes(begun.documents)
    except BaseException:
        for name in (GLOBAL, *own_names.values(), *group_names.values()):
            shutil.rmtree(out / name, ignore_errors=True)
        raise
    give_usual_modes(out)
    if begun.documents is not None:
        (out / DOCUMENTS).write_bytes(begun.documents)
    (out / CARD).write_text(index_card(loaded, merged=merge), encoding="utf-8")
    if group_names:
        of_tasks = {task: loaded.group_of[task] for task in begun.tasks}
        index = {"groups": group_names, "tasks": of_tasks}
        (out / GROUPS).write_text(json.dumps(index, ensure_ascii=False, indent=2), encoding="utf-8")
    (out / TASKS).write_text(json.dumps(names, ensure_ascii=False, indent=2), encoding="utf-8")
    if repository is not None:
        repository.upload(out)
    return Exported(names, _notes(loaded, merges))


def _notes(loaded: LoadedTrial, merges: Mapping[str, Merge]) -> list[str]:
    """What a user should know: that there is one adapter, and what rounding lost."""
    notes = []
    if loaded.row["method"] == "zero_shot":
        notes.append(f"trial {loaded.row['trial_id']} is the base model without training: its adapter changes nothing")
    if loaded.is_shared:
        notes.append(f"all tasks share one adapter, which is written once: {TASKS} gives each task {GLOBAL}")
    if loaded.config.method == "fedsa":
        notes.append(f"{GLOBAL} has the A of all tasks and B = 0, so that it is the base model")
    if loaded.config.method == "task_prompt":
        notes.append(
            f"it was trained with the task's name before each text; put {loaded.config.search.task_prompt!r} with the "
            "name between the start symbol and the text"
        )
    lost = {name: merge for name, merge in merges.items() if merge.rounding_error >= LOST_BY_ROUNDING}
    if lost:
        worst = max(lost, key=lambda name: lost[name].rounding_error)
        notes.append(
            f"merging rounds weights to {lost[worst].dtype}, which may lose the adapter in {plural(len(lost), 'model')}"
            f" of {len(merges)}: it changes logits by up to {lost[worst].rounding_error:.0%} of the adapter's effect "
            f"({worst}); --dtype float32 keeps it, and so do adapters without --merge"
        )
    return notes


@dataclass(frozen=True)
class Begun:
    """What is read and checked before anything is written."""

    loaded: LoadedTrial
    out: Path
    """New or empty."""
    tasks: list[str]
    """Those to export, in the order of the trial."""
    encoder: Encoder
    documents: bytes | None
    """The record of the run's documents; None where the run has none."""


def begin_export(
    run: str | Folder, out: str | Path, trial: str, tasks: Sequence[str] | None, settings: Sequence[Setting]
) -> Begun:
    """Read the trial, and refuse what cannot be exported; arguments and errors as those of `export`."""
    run, out = folder_at(run), Path(local_path(str(out)))
    loaded = load_trial(run, trial, given_places(settings, "export"))
    loaded.refuse_unknown_tasks(tasks or ())
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already and not empty; give a new folder")
    check_base_model(run, loaded.config.model, loaded.config.data)
    encoder = Encoder(load_tokenizer(loaded.config.model, loaded.config.data))
    documents = read_bytes(run / DOCUMENTS) if exists(run / DOCUMENTS) else None
    wanted = loaded.theta_of.keys() if tasks is None else set(tasks)
    return Begun(loaded, out, [task for task in loaded.theta_of if task in wanted], encoder, documents)


def adapter_writer(loaded: LoadedTrial) -> Callable[[Path, Tensor], Merge | None]:
    """A function that writes an adapter into a folder, and checks that PEFT loads it unchanged.

    PEFT itself loads the first. What it makes of the others depends on their description and on the names, shapes and
    values of their tensors, so these are compared.

    Raises:
        InputError: PEFT cannot load this run's adapters.
    """
    model, layout, lora = loaded.config.model, loaded.layout, loaded.lora
    if lora.variant not in IN_PEFT:
        return lambda folder, theta_P: write_adapter(
            folder, layout, theta_P, lora, model.name, quantization=model.quantization
        )
    base = empty_base(model, loaded.config.data)
    try:
        by_weight = sites_by_weight(base, layout, lora)
    except InputError as error:
        raise InputError(f"{error}; --merge writes full models of this run as it is") from None

    first: list[Path] = []

    def write(folder: Path, theta_P: Tensor) -> None:
        write_adapter(folder, layout, theta_P, lora, model.name, by_weight, model.quantization)
        if first:
            check_like(first[0], folder, layout, theta_P)
        else:
            check_peft_folder(base, folder, layout, theta_P)
            first.append(folder)

    return write


def _full_model_writer(
    loaded: LoadedTrial, tokenizer: PreTrainedTokenizerBase, dtype: MergedDtype
) -> Callable[[Path, Tensor], Merge]:
    """A function that writes a full model and the tokenizer into a folder; it returns what `write_full` does.

    The base is loaded in the type of its files, in which it loses nothing, unless the fit had it in a narrower one.
    """
    model, data = replace(loaded.config.model, quantization=None, device_map=None), loaded.config.data
    in_files, in_fit = dtype_of_files(model, data), weights_dtype(model)
    base = load_base(model, data, in_files if torch.promote_types(in_files, in_fit) == in_fit else in_fit)
    wanted = base.dtype if dtype == "base" else getattr(torch, dtype)

    def write(folder: Path, theta_P: Tensor) -> Merge:
        merge = write_full(folder, base, loaded.layout, theta_P, wanted)
        tokenizer.save_pretrained(folder)
        return merge

    return write


def write_card(
    begun: Begun,
    folder: Path,
    results: Results,
    *,
    task: str | None,
    group: str | None = None,
    merge: Merge | None = None,
    bank: Sequence[str] = (),
) -> None:
    """Write the model card of an exported folder, and the run's own chat template where it has one.

    Args:
        begun: The export.
        folder: The folder.
        results: Of the run; for a task its own rows of `task_scores` are enough, and for a group only its tasks'.
        task: None: Theta, a group's adapter, or a bank.
        group: Of a group's adapter.
        merge: Of a full model.
        bank: The tasks of a bank; empty for a single adapter.
    """
    loaded, data = begun.loaded, begun.loaded.config.data
    example = bank[0] if bank else task or next((task for task, own in loaded.group_of.items() if own == group), None)
    exported = ExportedFolder(
        row=loaded.row,
        task=task,
        folder=folder.resolve().name,
        corpus="the embedded corpus" if data.path is None else Path(data.path).name,
        config=loaded.config,
        text_format=_text_format(loaded, example, begun.encoder),
        merge=merge,
        group=group,
        is_shared=loaded.is_shared and not bank,
        bank_tasks=len(bank),
    )
    (folder / CARD).write_text(model_card(exported, results), encoding="utf-8")
    if data.chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(data.chat_template, encoding="utf-8")


def _text_format(loaded: LoadedTrial, task: str | None, encoder: Encoder) -> TextFormat:
    """How fits score a text of the task; for Theta, of the first task."""
    data, task = loaded.config.data, task or next(iter(loaded.theta_of))
    until = until_text(data.template, data.scored_names)
    columns = placeholders(f"{data.prompt}{data.template}") - data.scored_names - {"task"}
    shown = {name: f"…{name}…" for name in columns} | {"task": task}
    starts = given_tokens(encoder, data, [{"task": task}]) if loaded.form == "text" else [encoder.prepended]
    (name,) = name_tokens(loaded.config, encoder, (task,))
    return TextFormat(
        form=loaded.form,
        task=task,
        depends_on_task=bool(name) or "{task}" in f"{data.prompt}{data.template}",
        start_tokens=[*starts[0], *name],
        prompt=fill(data.prompt if data.prompt is not None else "{prompt}", {**shown, "prompt": "…"}),
        before=fill(until, {**shown, **dict.fromkeys(data.scored_names, "")}),
        after=fill(data.template[len(until) :], shown),
        end_token=str(encoder.tokenizer.convert_ids_to_tokens(encoder.end)),
        has_own_template=data.chat_template is not None,
        template_variables=template_variables(data),
    )
