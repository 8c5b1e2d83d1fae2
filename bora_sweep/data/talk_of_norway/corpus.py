"""Talk of Norway (Lapponi et al. 2018), v1.0.1: speeches of the Norwegian parliament from 1998 to 2016, by speaker."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pa_parquet

from bora_sweep.config import DataConfig
from bora_sweep.data.talk_of_norway.download import fetch
from bora_sweep.data.talk_of_norway.speeches import LEFT_OUT, NAME, speeches
from bora_sweep.errors import InputError, plural

ADDRESS = "https://www.velldal.net/erik/data/ton101.tar.gz"
"""Where its authors publish it."""
ARCHIVE = "ton101.tar.gz"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which speakers are taken: a range for their number of speeches, an order, and how many."""

    more_than: int = 0
    fewer_than: float = math.inf
    most: int | None = None
    by_time: bool = False
    as_published: bool = False
    """Names in lower case and without full stops, as in the published code and Table A.1."""


RULES = {
    "all": Rule(),
    "paper": Rule(more_than=100, most=25, by_time=True),
    "published_code": Rule(more_than=200, fewer_than=1_000, most=25, as_published=True),
}


def documents(config: DataConfig) -> tuple[pd.DataFrame, list[str]]:
    """The speeches of the speakers that `data.selection` takes, in the source's order, and notes.

    The columns are task (the speaker), text, document_id, floor_nll_nats (unknown) and time (the speaker's place in the
    selection).

    Raises:
        InputError: There is no corpus at `data.path`, it cannot be downloaded, or it has changed.
    """
    source = _find(Path(config.path or ""), config.download)
    file = speeches(source)
    people = people_of(pa_parquet.read_table(file, columns=["person", "name", "day", "place"]).to_pandas())
    chosen = select(people, RULES[config.selection])
    if not chosen:
        raise InputError(f"{source}: no speaker is in data.selection={config.selection}; give data.selection=all")
    is_chosen = [("person", "in", list(chosen))]
    frame = pa_parquet.read_table(file, columns=["id", "person", "text"], filters=is_chosen).to_pandas()
    is_repeated = frame["id"].duplicated()
    if is_repeated.any():
        raise InputError(f"{source}: two speeches have the id {frame['id'][is_repeated].iloc[0]!r}; download it again")
    places = {person: place for place, person in enumerate(chosen)}
    columns = {
        "task": frame["person"].map(chosen),
        "text": frame["text"],
        "document_id": frame["id"],
        "floor_nll_nats": np.nan,
        "time": frame["person"].map(places),
    }
    left_out = json.loads(pa_parquet.read_metadata(file).metadata[LEFT_OUT])
    return pd.DataFrame(columns), _notes(left_out, people, chosen, config.selection)


def _find(path: Path, download: bool) -> Path:
    """`ton.csv` or the archive: `path` itself, or the file in that folder, which is downloaded on request."""
    if path.is_file():
        if path.name.lower().endswith((".csv", ".tar.gz", ".tgz")):
            return path
        raise InputError(f"{path}: data.source=talk_of_norway reads {NAME} or {ARCHIVE}, or a folder with one of them")
    for file in (path / NAME, path / "data" / NAME, path / ARCHIVE):  # the archive unpacks to `data/`
        if file.is_file():
            return file
    if not download:
        raise InputError(
            f"data.path={path}: neither {NAME} nor {ARCHIVE} is there; download {ADDRESS} into this folder, or set "
            "data.download=true"
        )
    fetch(ADDRESS, path / ARCHIVE)
    return path / ARCHIVE


def people_of(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each person: the most frequent name, the number of speeches, and the place of the first one in time."""
    in_time = rows.sort_values(["day", "place"], kind="stable", na_position="last")
    firsts = pd.Series(range(len(rows)), in_time["person"]).groupby(level=0).min()
    of_person = rows.groupby("person")["name"]
    return pd.DataFrame(
        {
            "name": of_person.agg(lambda names: names.value_counts().sort_index().idxmax()),
            "speeches": of_person.size(),
            "first": firsts,
        }
    )


def select(people: pd.DataFrame, rule: Rule) -> dict[str, str]:
    """From person to task name, for those that `rule` takes, in its order. Equal names get the person's id as well."""
    enough = people.loc[(people["speeches"] > rule.more_than) & (people["speeches"] < rule.fewer_than)]
    names = enough["name"]
    if rule.as_published:
        names = names.str.replace(".", "", regex=False).str.lower()
    ordered = enough.assign(name=names).sort_index().sort_values("first" if rule.by_time else "name", kind="stable")
    taken = ordered["name"].iloc[: rule.most]
    shared = taken.str.casefold().duplicated(keep=False)
    return {str(person): f"{name} ({person})" if shared[person] else str(name) for person, name in taken.items()}


def _notes(left_out: dict[str, int], people: pd.DataFrame, chosen: dict[str, str], selection: str) -> list[str]:
    reasons = {
        "president": "of the president of the house",
        "nameless": "without a name",
        "textless": "without a text",
    }
    notes = [f"{plural(left_out[key], 'row')} {why} left out" for key, why in reasons.items() if left_out.get(key)]
    others = people.drop(index=list(chosen))
    if len(others):
        documents = plural(int(others["speeches"].to_numpy().sum()), "document")
        notes.append(f"{plural(len(others), 'speaker')} beyond data.selection={selection} left out ({documents})")
    most = RULES[selection].most
    if most is not None and len(chosen) < most:
        notes.append(f"data.selection={selection} takes {most} speakers, but only {len(chosen)} have enough speeches")
    return notes
