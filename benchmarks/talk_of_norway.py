"""The paper's experiment in small: a Talk-of-Norway-shaped ton.csv made of the speakers data, swept, beside the paper.

    python benchmarks/talk_of_norway.py FOLDER [key=value …]

FOLDER gets `ton.csv` and `run/`. Settings go to the sweep, after `conf/experiment/talk_of_norway.yaml`.
"""

import argparse
import csv
import sys
from pathlib import Path

import pandas as pd

from bora_sweep.cli import main

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
HEADER = (
    "id", "url_rep_id", "rep_id", "rep_first_name", "rep_last_name", "rep_name", "county", "party_id", "party_name",
    "rep_gender", "language", "date", "time", "session", "order", "title", "text",
)  # fmt: skip
SMALL = [
    "data.selection=paper",  # speakers of that data have 229 speeches at most
    "data.min_characters=1",
    f"model.name={SHARED / 'models' / 'opt-en-1m'}",
    "model.max_tokens=64",
]


def write_corpus(speeches: pd.DataFrame, path: Path) -> None:
    """Speeches (columns task, text, order) as `ton.csv`: strings quoted, NA for no value, a president in between."""
    days = {play: 1998 + i for i, play in enumerate(sorted(speeches["play"].unique()))}
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        rows.writerow(HEADER)
        for i, speech in enumerate(speeches.sort_values(["play", "order"], kind="stable").to_dict("records")):
            day = f"{days[speech['play']]}-10-07"
            first, _, last = speech["task"].partition(" (")[0].rpartition(" ")
            when = {"id": f"tale{i:06}", "date": day, "time": f"{day}T00:00:00+02:00", "order": speech["order"]}
            who = {"rep_id": speech["task"], "rep_name": f"{first} {last}".strip(), "title": "representant"}
            rows.writerow([({**when, **who, "text": speech["text"]}).get(name, "NA") for name in HEADER])
            if i % 10 == 0:
                president = {**when, "id": f"president{i:06}", "title": "president", "text": "Neste taler."}
                rows.writerow([president.get(name, "NA") for name in HEADER])


def reproduce(folder: Path, settings: list[str]) -> int:
    """The whole path: corpus, sweep, report, side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    write_corpus(pd.read_parquet(SHARED / "data" / "speakers.parquet"), folder / "ton.csv")
    experiment = str(ROOT / "conf" / "experiment" / "talk_of_norway.yaml")
    run = folder / "run"
    return main(["sweep", experiment, f"data.path={folder}", *SMALL, *settings, f"output={run}"]) or main(
        ["report", str(run), "--against", "paper"]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_args()
    sys.exit(reproduce(asked.folder, asked.settings))
