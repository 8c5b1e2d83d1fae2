"""What a run of many tasks costs around its fits: data, results, report, page and export.

    python benchmarks/many_tasks.py [TASKS]

TASKS (10,000 if left out) tasks have four short documents each. Their words, their scores under five fits (tau = 0, 10,
1,000, 100,000 and inf) and their adapters of 16,384 parameters are drawn at random; nothing is trained. Each part is
then made by the functions that a sweep, `bora-sweep report` and `bora-sweep export` call. Of the folders of an export
100 are written, and their time is scaled to all tasks. Needs the `dev` extra, a Chromium on the path, and 4 GB on disk.
Written to `benchmarks/results/many_tasks.md` and `.json`.
"""

import math
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from io import StringIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from arguments import start
from opening import opened_ms
from provenance import record
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from bora_sweep.config import Config, load_config
from bora_sweep.data.batches import separate_batches
from bora_sweep.data.corpus import Corpus, load_corpus
from bora_sweep.data.describe import describe
from bora_sweep.data.known_documents import write_documents
from bora_sweep.data.tokens import TokenizedCorpus, token_notes, tokenize_for
from bora_sweep.model.base import load_tokenizer
from bora_sweep.model.layout import Layout, make_layout
from bora_sweep.report import write_report
from bora_sweep.runs.results import objective, read_results, trial_rows, write_table
from bora_sweep.serve.bank import export_bank
from bora_sweep.serve.export import export
from bora_sweep.serve.load import load_trial
from bora_sweep.train.state import Fit, State
from bora_sweep.trials.fingerprints import fingerprints_of, write_fingerprints
from bora_sweep.trials.outcome import result_of, write_result
from bora_sweep.trials.rows import initial_row
from bora_sweep.tune.status import render, run_status

Made = TypeVar("Made")
TASKS, DOCUMENTS, WINDOW, FOLDERS = 10_000, 4, (1280, 900), 100
TAUS = (0.0, 10.0, 1_000.0, 100_000.0, math.inf)
BEST = TAUS.index(1_000.0)
WORDS = [f"w{i}" for i in range(400)]


class Parts:
    """The rows of the table: seconds, those of this process on a CPU, and bytes of each part."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def add(self, part: str, work: Callable[[], Made], files: Iterable[Path] = ()) -> Made:
        """Do `work`, and keep its seconds and the bytes of the `files` that it writes.

        Args:
            part: What it is.
            work: What is timed.
            files: Files, or folders.
        """
        started, cpu = time.perf_counter(), time.process_time()
        made = work()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        written = sum(path.stat().st_size for root in files for path in (root, *root.rglob("*")) if path.is_file())
        self.put(part, seconds, cpu_seconds, written / 1e6 if written else None)
        print(self.rows[-1], flush=True)
        return made

    def put(
        self, part: str, seconds: float | None = None, cpu_seconds: float | None = None, megabytes: float | None = None
    ) -> None:
        """A row."""
        self.rows.append({"part": part, "seconds": seconds, "CPU seconds": cpu_seconds, "MB": megabytes})


def write_source(folder: Path, num_tasks: int) -> None:
    """A Parquet file of random words, and a base model of 16,384 parameters an adapter of rank 8."""
    rng = np.random.default_rng(0)
    rows = [
        (f"customer {d:05d}, northern branch", " ".join(rng.choice(WORDS, rng.integers(12, 40))))
        for d in range(num_tasks)
        for _ in range(DOCUMENTS)
    ]
    pd.DataFrame(rows, columns=["task", "text"]).to_parquet(folder / "texts.parquet")
    words = {"<unk>": 0, "<pad>": 1, "</s>": 2, **{word: 3 + i for i, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="</s>", eos_token="</s>"
    )
    fast.save_pretrained(folder / "base")
    base = OPTForCausalLM(
        OPTConfig(
            vocab_size=len(words), hidden_size=128, word_embed_proj_dim=128, ffn_dim=128, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=64, pad_token_id=1,
        )
    )  # fmt: skip
    base.save_pretrained(folder / "base")


def settings(folder: Path) -> list[str]:
    """Of the fits."""
    own = ["lora.rank=8", "lora.target_modules=[q_proj,v_proj]", "model.max_tokens=64", "model.dtype=float32"]
    return [f"data.path={folder / 'texts.parquet'}", f"model.name={folder / 'base'}", *own]


def fit_of(corpus: TokenizedCorpus, layout: Layout, tau: float, bank_KP: torch.Tensor) -> Fit:
    """Scores that are lowest at tau = 1,000; documents and tasks vary far more than fits do."""
    rng, of_fit = np.random.default_rng(1), np.random.default_rng([2, TAUS.index(tau)])
    above = {0.0: 0.15, math.inf: 0.05}.get(tau) or 0.015 * (math.log10(tau) - 3) ** 2
    level_K = rng.normal(4, 0.3, corpus.num_tasks)
    nats = {}
    for split in ("validation", "test"):
        rows = corpus.documents.iloc[corpus.split(split)]
        noise_N = rng.normal(0, 0.3, len(rows)) + of_fit.normal(0, 0.03, len(rows))
        nats[split] = rows["num_tokens"].to_numpy() * (level_K[rows["task"]] + above + noise_N)
    counts = {split: corpus.num_tokens(split) for split in ("train", "validation")}
    curve = [
        {"epoch": epoch, "step": 10 * epoch, "split": split, "nll_nats": 4.0 * count, "num_tokens": count}
        for epoch in range(30)
        for split, count in counts.items()
    ]
    state = State(epoch=30, best_epochs=[25], best_nll_nats=[float(nats["validation"].sum())], curve=curve)
    state.train_seconds = 600.0
    return Fit(
        state=state, stopped_by="patience", nll_nats=nats, mean_P=torch.zeros(layout.num_parameters), theta_KP=bank_KP,
        layout=layout, peak_memory_bytes=2**30, device="cpu: made up", dtype="float32",
    )  # fmt: skip


def read_data(parts: Parts, folder: Path, config: Config) -> tuple[Corpus, TokenizedCorpus]:
    """The way of the text until a fit begins, and into the folder of the run."""
    run = folder / "run"
    corpus = parts.add("read, filter, split", lambda: load_corpus(config.data), [folder / "texts.parquet"])
    tokenizer = load_tokenizer(config.model, config.data)
    tokenized = parts.add("tokenise", lambda: tokenize_for(config, corpus, tokenizer))
    parts.add("notes on tokens", lambda: token_notes(tokenized))
    console = Console(file=StringIO(), width=120)

    def describe_it() -> None:
        for part in describe(corpus, tokenized.table()):
            console.print(part)

    parts.add("`data describe`, its table", describe_it)
    made = parts.add("fingerprints", lambda: fingerprints_of(config, corpus, tokenized))
    run.mkdir()
    parts.add("record of documents", lambda: write_documents(run, corpus.record), [run / "documents.parquet"])
    write_fingerprints(run, made)
    known = load_config([config, f"data.split_from={run}"])
    parts.add("read again with known splits", lambda: load_corpus(known.data))
    parts.add("batches of separate fits", lambda: separate_batches(tokenized, 64, 0, 1, np.arange(tokenized.num_tasks)))
    return corpus, tokenized


def write_run(parts: Parts, folder: Path, config: Config, tokenized: TokenizedCorpus) -> None:
    """The tables of five fits, and the adapters of the best."""
    run, base = folder / "run", OPTForCausalLM.from_pretrained(folder / "base")
    (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    layout = make_layout(base, config.lora)
    bank_KP = torch.randn(tokenized.num_tasks, layout.num_parameters, generator=torch.Generator().manual_seed(0))
    tables = [run / "results" / name for name in ("task_scores", "document_scores", "trials", "curves")]
    for n, tau in enumerate(TAUS):
        of_trial = load_config([config, {"prior": {"tau": tau}}])
        done, row = fit_of(tokenized, layout, tau, bank_KP if tau == 0 else bank_KP * tau**-0.5), initial_row(of_trial)
        if n == BEST:
            files = [run / "trials", *(table / f"{n:03d}.parquet" for table in tables)]
            parts.add(
                "write a trial, adapters and all",
                lambda: write_result(of_trial, tokenized, done, run=run, trial_id=f"{n:03d}", row=row),  # noqa: B023
                files,
            )
            continue
        final, rows = result_of(of_trial, tokenized, done)
        for name, table in rows.items():
            write_table(run, name, f"{n:03d}", table)
        write_table(run, "trials", f"{n:03d}", [row | final])
    parts.add("read all results", lambda: read_results(run), tables)
    parts.add("the objective of each trial", lambda: [objective(row) for row in trial_rows(run)])
    parts.add("`status`", lambda: Console(file=StringIO()).print(render(run_status(run))))


def report(parts: Parts, run: Path) -> None:
    """The report, and the page in a browser."""
    out = run / "report"
    parts.add("`report`, all its files", lambda: write_report(run), [out])
    for name in ("index.html", "report.md", "tables", "figures"):
        parts.put(f"of these, {name}", megabytes=_size(out / name) / 1e6)
    ready = zip(*opened_ms(out / "index.html", WINDOW), strict=True)
    for what, milliseconds in zip(("answer and tables", "curve over τ", "last chart"), ready, strict=True):
        parts.put(f"the page in a browser: {what}", float(np.median(milliseconds)) / 1000)


def write_exports(parts: Parts, folder: Path, num_tasks: int) -> None:
    """The adapters, read and written."""
    run, names = folder / "run", [f"customer {d:05d}, northern branch" for d in range(num_tasks)]
    parts.add("load and check a trial's adapters", lambda: load_trial(run))
    few, bank = folder / "few", folder / "bank"
    parts.add("`export --task`, 2 tasks", lambda: export(run, few, tasks=names[:2]), [few])
    shutil.rmtree(few)
    before = parts.rows[-1]
    parts.add(f"`export`, {FOLDERS} tasks", lambda: export(run, few, tasks=names[:FOLDERS]), [few])
    after, scale = parts.rows[-1], (num_tasks - 2) / (FOLDERS - 2)
    shutil.rmtree(few)
    parts.rows.append({"part": f"`export`, {num_tasks:,} tasks, scaled from these"} | {
        unit: before[unit] + scale * (after[unit] - before[unit]) for unit in ("seconds", "CPU seconds", "MB")
    })  # fmt: skip
    parts.add(f"`export --bank`, {num_tasks:,} tasks", lambda: export_bank(run, bank), [bank])


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def run(given: list[int]) -> None:
    """A row for each part."""
    num_tasks, parts = (given or [TASKS])[0], Parts()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder, num_tasks)
        config = load_config(settings(folder))
        _, tokenized = read_data(parts, folder, config)
        write_run(parts, folder, config, tokenized)
        report(parts, folder / "run")
        write_exports(parts, folder, num_tasks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    notes = [
        "*CPU seconds* are of this process, which other work on the machine does not lengthen as it does *seconds*.",
        f"{num_tasks:,} tasks of {DOCUMENTS} documents, five fits, {_of(peak)}. Load average "
        f"{os.getloadavg()[0]:.1f} meanwhile.",
    ]
    record(
        "many_tasks",
        "What many tasks cost around their fits",
        f"{num_tasks:,} tasks",
        parts.rows,
        notes,
    )


def _of(peak: float) -> str:
    return f"{peak:.1f} GiB of memory at most"


if __name__ == "__main__":
    start(run, __doc__, "TASKS", kind=int)
