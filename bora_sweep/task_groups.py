"""Who is like whom in a run: similarities of its tasks, and the groups that they fall into, if they do.

Shapes: K tasks, P parameters of one adapter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import Progress

from bora_sweep.config import Setting
from bora_sweep.data.corpus import load_corpus
from bora_sweep.data.groups import is_groups_file, write_groups
from bora_sweep.data.known_documents import DOCUMENTS, record_folders
from bora_sweep.data.tokens import TokenizedCorpus, tokenize_for
from bora_sweep.errors import InputError
from bora_sweep.model.base import load_base, load_tokenizer
from bora_sweep.model.layout import Part
from bora_sweep.runs.folder import ADD, command_of, refuse_half_forgotten
from bora_sweep.runs.places import given_places
from bora_sweep.runs.results import refuse_no_run, write_table
from bora_sweep.runs.run_lock import run_lock
from bora_sweep.runs.storage import Folder, exists, folder_at
from bora_sweep.serve.load import LoadedTrial, load_trial
from bora_sweep.similarity.adapters import deviation_cosines, product_gram
from bora_sweep.similarity.clusters import FEWEST_TASKS, LEVEL, Clusters, find_clusters
from bora_sweep.similarity.cosines import Cosines, cosines
from bora_sweep.train.methods.task_gradients import fold_sums
from bora_sweep.trials.fingerprints import check_base_model, check_documents
from bora_sweep.tune.watchdog import StopCheck

ALL_PAIRS = 1000
"""Tasks up to which the table `similarity` has every pair."""
NEAREST = 50
"""Of more tasks, the pairs of each task with so many that are most like it."""


@dataclass(frozen=True, repr=False)
class TaskGroups:
    """What `groups` found."""

    groups: pd.DataFrame
    """A row for each task, in the order of the tree: the table `groups`."""
    similarity: pd.DataFrame
    """A row for each pair: the table `similarity`."""
    trial_id: str
    """Whose Theta the gradients were taken at."""
    path: Folder | None
    """The CSV file with `task` and `group`; None where the tasks do not fall into groups."""

    @property
    def found(self) -> bool:
        """Whether the tasks fall into groups."""
        return bool(self.groups["group"].notna().any())

    def __repr__(self) -> str:
        return f"TaskGroups({self.sentence})"

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        p_value, number = float(self.groups["p_value"].iloc[0]), len(self.groups)
        if not self.found:
            if number < FEWEST_TASKS:
                return f"no structure: {number} tasks are too few to tell groups from chance"
            return (
                f"no structure: tasks differ, but not in groups (p = {p_value:.3f} that they have none; groups are "
                f"proposed up to {LEVEL})"
            )
        return (
            f"{number} tasks fall into {self.groups['group'].nunique()} groups (p = {p_value:.3f} that they have none)"
        )


def groups(
    run: str | Folder,
    out: str | Path | None = None,
    trial: str = "best",
    *,
    settings: Sequence[Setting] = (),
    console: Console | None = None,
) -> TaskGroups:
    """Who is like whom, by gradients of the training documents at Theta; and groups, where the tasks have them.

        found = bora_sweep.groups("runs/mine")
        found.sentence, found.groups, found.similarity

    The tables `similarity` and `groups` of the run are written, which the report shows. Costs about an epoch, during
    which no other process may work on the run.

    Args:
        run: The run's folder; also `s3://…` and `gs://…`.
        out: Where a CSV file with the columns task and group goes, if there are groups; None: `RUN/report/groups.csv`.
            An earlier file of groups is replaced.
        trial: The ID of a finished trial; `best`: the MAP fit that is best on validation.
        settings: Where the base and the documents are now, if they have moved, such as `data.path=…`.
        console: Shows progress; None: nothing is shown.

    Raises:
        InputError: There is no such trial, another process works on the run, `out` is no name of a CSV file, is in no
            folder or is another file, or the base or the documents cannot be read or are not the run's.
        Interrupted: `bora_sweep.stop` asked for it; nothing was written.
    """
    folder, places = folder_at(run), given_places(settings, "groups")
    target = folder / "report" / "groups.csv" if out is None else _checked(folder_at(out))
    refuse_no_run(folder)
    with run_lock(folder, command_of(folder) or "sweep"):  # as `status` names it
        refuse_half_forgotten(folder)
        return _groups(folder, target, load_trial(folder, trial, places), console or Console(quiet=True))


def _checked(out: Folder) -> Folder:
    """Where the groups are to go, if they can."""
    if not out.name.endswith(".csv") or out.is_dir() or (isinstance(out, Path) and not out.absolute().parent.is_dir()):
        raise InputError(f"{out}: need a file's name that ends with .csv, in a folder that exists, for the groups")
    if exists(out) and not is_groups_file(out):
        raise InputError(f"{out}: is there already, and is no file of groups; give another name, or remove it")
    return out


def _groups(folder: Folder, target: Folder, loaded: LoadedTrial, console: Console) -> TaskGroups:
    corpus = _corpus(folder, loaded)
    if corpus.num_tasks < 2:
        raise InputError(f"{folder}: has one task; likeness takes two")
    found = _similarities(loaded, corpus, console, StopCheck(folder))
    clusters = find_clusters(found.cosine_KK, found.error_KK, found.weight_K, loaded.config.train.seed)
    trial_id, tasks = loaded.row["trial_id"], list(corpus.tasks)
    grouped = _group_rows(clusters, tasks)
    pairs = _pair_rows(found, adapter_cosines(loaded, tasks), tasks)
    write_table(folder, "similarity", trial_id, pairs)
    write_table(folder, "groups", trial_id, grouped)
    if clusters.label_K is not None:
        write_groups(target, grouped)
    return TaskGroups(grouped, pairs, trial_id, None if clusters.label_K is None else target)


def adapter_cosines(loaded: LoadedTrial, tasks: Sequence[str]) -> np.ndarray:
    """Cosines of what tasks' adapters add to the weights beyond Theta, (K, K); NaN where that is nothing, or no B A."""
    unknown_KK = np.full((len(tasks), len(tasks)), np.nan)
    if loaded.is_shared or loaded.lora.variant != "lora":
        return unknown_KK
    adapters = [*(loaded.theta_of[task] for task in tasks), loaded.mean_P]
    offset, place_of = 0, dict[str, dict[str, tuple[slice, Part]]]()
    for part, size in zip(loaded.layout.parts, loaded.layout.sizes, strict=True):
        place_of.setdefault(part.site.name, {})[part.kind] = slice(offset, offset + size), part
        offset += size
    gram_KK = np.zeros((len(adapters), len(adapters)))
    for places in place_of.values():  # a site at a time: of thousands of tasks all sites are gigabytes
        A_KRI, B_KOR = (
            torch.stack([theta_P[where].view(part.shape) for theta_P in adapters]).numpy()
            for where, part in (places["A"], places["B"])
        )
        gram_KK += product_gram(A_KRI, B_KOR)
    return deviation_cosines(gram_KK)


def _corpus(run: Folder, loaded: LoadedTrial) -> TokenizedCorpus:
    """The run's documents and their tokens, which must be what they were."""
    config = loaded.config
    check_base_model(run, config.model, config.data)
    is_recorded = exists(run / DOCUMENTS)
    known = [run] if is_recorded else record_folders(config)
    is_alone = config.method == ADD or len(loaded.theta_of) == 1
    corpus = load_corpus(config.data, known, resumed=is_recorded, separate=is_alone)
    check_documents(run, corpus)
    return tokenize_for(config, corpus, load_tokenizer(config.model, config.data))


def _similarities(
    loaded: LoadedTrial, corpus: TokenizedCorpus, console: Console, check_stop: Callable[[], None]
) -> Cosines:
    base = load_base(loaded.config.model, loaded.config.data)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        passed = bar.add_task("gradients", total=len(corpus.sequences("train")))

        def after_pass(rows: int) -> None:
            bar.advance(passed, rows)
            check_stop()

        sums = fold_sums(loaded.config, corpus, base, loaded.layout, loaded.mean_P, after_pass)
    return cosines(sums.score_KFQ, sums.tokens_KF)


def _group_rows(clusters: Clusters, tasks: list[str]) -> pd.DataFrame:
    """The table `groups`, in the order of the tree."""
    label_K = clusters.label_K
    names = [None] * len(tasks) if label_K is None else [f"group {label + 1}" for label in label_K]
    place_K = np.argsort(clusters.order_K)
    rows = {"task": tasks, "group": names, "place": place_K, "silhouette": clusters.silhouette_K}
    frame = pd.DataFrame(rows).assign(p_value=clusters.p_value)
    return frame.sort_values("place", ignore_index=True)


def _pair_rows(found: Cosines, adapter_KK: np.ndarray, tasks: list[str]) -> pd.DataFrame:
    """The table `similarity`: each pair once, of many tasks those of the `NEAREST` alone."""
    K = len(tasks)
    is_shown_KK = np.ones((K, K), dtype=bool)
    if K > ALL_PAIRS:
        nearest_KN = np.argpartition(-found.cosine_KK, NEAREST, axis=1)[:, : NEAREST + 1]
        is_shown_KK[:] = False
        np.put_along_axis(is_shown_KK, nearest_KN, values=True, axis=1)
        is_shown_KK |= is_shown_KK.T
    one, other = np.nonzero(np.triu(is_shown_KK, 1))
    names = np.array(tasks, dtype=object)
    values = {"similarity": found.cosine_KK, "low": found.low_KK, "high": found.high_KK}
    values |= {"adapter_similarity": adapter_KK}
    return pd.DataFrame({"task": names[one], "other": names[other]} | {k: v[one, other] for k, v in values.items()})
