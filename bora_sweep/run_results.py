"""The results of a run with what one does with them next: its best trial, its folder, its adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from bora_sweep.config import Setting
from bora_sweep.errors import InputError
from bora_sweep.runs import results
from bora_sweep.runs.storage import Folder, folder_at

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from bora_sweep.serve.adapters import RunAdapters


@dataclass(frozen=True, repr=False)
class Results(results.Results):
    """The tables of one run or of several. Columns: those of `SCHEMAS`, and `run`, the run's folder.

    results = bora_sweep.read_results("runs/mine")
    results.best["tau"], results.folder
    model = results.adapter("Bush")
    """

    settings: Sequence[Setting] = ()
    """Where the base and the documents are now, if they have moved."""

    @property
    def folder(self) -> Folder:
        """The run's folder, a `Path`; of a run at `s3://…` or `gs://…` what `pathlib` would be there.

        Raises:
            InputError: These are several runs.
        """
        runs = self.trials["run"].unique().tolist()
        if len(runs) > 1:
            raise InputError(f"results of {len(runs)} runs: ask each run alone, read_results({runs[0]!r})")
        return folder_at(runs[0])

    @cached_property
    def best(self) -> pd.Series:
        """The row of `trials` of the MAP fit that is best on validation by what chose tau; after `add` that fit's.

        Raises:
            InputError: These are several runs, or no such fit has finished.
        """
        from bora_sweep.serve.load import best_row

        row = best_row(self.trials.to_dict("records"), self.folder)
        return self.trials.loc[self.trials["trial_id"] == row["trial_id"]].iloc[0]

    def adapter(self, task: str, trial: str = "best") -> "PeftModel":
        """The base with a task's adapter active, as a `PeftModel`.

        The base is loaded once, with the first call. A later call switches: it returns the same model, with another
        adapter active.

        Args:
            task: Its name; `_global` is Theta, for a task that the fit has not seen.
            trial: The ID of a finished trial; `best`: as `best`.

        Raises:
            InputError: These are several runs; there is no such trial or task; PEFT has no such adapters; or the base
                cannot be loaded, or is not the run's.
        """
        return self._adapters.model(task, trial)

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the run's base.

        Raises:
            InputError: These are several runs, or it cannot be loaded.
        """
        return self._adapters.tokenizer

    @cached_property
    def _adapters(self) -> "RunAdapters":
        from bora_sweep.serve.adapters import RunAdapters

        return RunAdapters(self.folder, self.settings)


def read_results(run: str | Folder | list[str | Folder], settings: Sequence[Setting] = ()) -> Results:
    """The tables of a run, or of several runs stacked.

    Args:
        run: A run's folder, or a list of them; also `s3://…` and `gs://…`.
        settings: For `Results.adapter`: where the base and the documents are now, if they have moved, such as
            `model.name=/models/opt-350m`.

    Raises:
        InputError: A folder is not a run's or is given twice, no trial has begun yet, or a file is damaged or written
            by a newer version.
    """
    return Results(**vars(results.read_results(run)), settings=settings)
