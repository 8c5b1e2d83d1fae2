import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bora_sweep.data.corpus import Corpus
from bora_sweep.data.describe import describe


def corpus_of(sizes: dict[str, tuple[int, int, int]], notes: tuple[str, ...] = ()) -> Corpus:
    rows = [
        (task, f"{task} {split} {i}", split)
        for task, counts in sizes.items()
        for split, count in zip(("train", "validation", "test"), counts, strict=True)
        for i in range(count)
    ]
    documents = pd.DataFrame(rows, columns=["task", "text", "split"])
    return Corpus("talk", tuple(sizes), documents.assign(content=None, document_id="", floor_nll_nats=np.nan), notes)


def printed(corpus: Corpus, num_tokens: pd.DataFrame | None = None, color: bool = False, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=color)
    console.print(*describe(corpus, num_tokens), sep="\n")
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(text: str, task: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(task)]
    return line.strip().removeprefix(task).split()


def test_documents_per_task_and_split_and_their_totals() -> None:
    text = printed(corpus_of({"Anna": (1_200, 7, 14), "Bo": (30, 10, 20)}))
    assert "talk: 2 tasks, 1,281 documents, " in text
    assert cells(text, "Anna") == ["1,200", "7", "14"]
    assert cells(text, "Bo") == ["30", "10", "20"]
    assert cells(text, "all tasks") == ["1,230", "17", "34"]


def test_tokens_per_task_and_split() -> None:
    corpus = corpus_of({"Bo": (30, 10, 20), "Anna": (25, 8, 17)})
    num_tokens = corpus.documents.groupby(["task", "split"], as_index=False).agg(
        num_documents=("text", "size"), num_tokens=("text", "size")
    )
    num_tokens = num_tokens.assign(num_tokens=num_tokens["num_tokens"] * 1_000)
    text = printed(corpus, num_tokens)
    assert cells(text, "Anna") == ["25", "8", "17", "25,000", "8,000", "17,000"]
    assert cells(text, "all tasks") == ["55", "18", "37", "55,000", "18,000", "37,000"]
    assert text.index("Bo") < text.index("Anna")  # the corpus's order


@pytest.mark.parametrize("num_tasks", [40, 41, 300])
def test_of_many_tasks_the_largest_and_the_smallest_and_nothing_uncounted(num_tasks: int) -> None:
    corpus = corpus_of({f"task{task:03}": (20 + task, 3, 4) for task in range(num_tasks)})
    text = printed(corpus)
    shown = [line.split() for line in text.splitlines() if re.match(r"\s*task\d", line)]
    if num_tasks == 40:
        assert len(shown) == 40
        return
    assert shown[0][0] == f"task{num_tasks - 1:03}"
    assert shown[-1] == ["task000", "20", "3", "4"]
    middle = cells(text, f"… {num_tasks - 20} more tasks")
    assert sum(int(line[1]) for line in shown) + int(middle[0].replace(",", "")) == sum(
        20 + task for task in range(num_tasks)
    )


def test_a_healthy_corpus_has_no_warning_and_notes_are_shown() -> None:
    assert "•" not in printed(corpus_of({"a": (30, 10, 20), "b": (20, 10, 20)}))
    assert "• 3 documents cut" in printed(corpus_of({"a": (30, 10, 20), "b": (20, 10, 20)}, ("3 documents cut",)))


def test_what_is_wrong() -> None:
    corpus = corpus_of({"a": (300, 100, 200), "b": (20, 10, 20), "c": (19, 10, 20), "d": (5, 2, 3)})
    corpus.documents.loc[[0, 1, 2, 605, 606], "text"] = ["x", "x", "y", "y", "y"]
    text = " ".join(printed(corpus, width=200).split())
    assert "5 documents share 2 texts (1 across tasks)" in text
    assert "2 tasks with fewer than 20 training documents (the least: 5)" in text
    assert "very unequal tasks: 'a' has 600 documents, 'd' 10; micro perplexity" in text


def test_names_are_never_markup_and_long_ones_lose_nothing() -> None:
    name = "[red]" + "long " * 30 + "end[/nonsense]"
    corpus = corpus_of({name: (30, 10, 20), "b": (30, 10, 20)}, ("note on [bold]",))
    text = printed(corpus)
    assert "".join(name.split()) in "".join("".join(line.split("  ")[:2]) for line in text.splitlines()).replace(
        " ", ""
    )
    assert "note on [bold]" in text


def test_plain_when_piped_and_yellow_in_a_terminal() -> None:
    corpus = corpus_of({"a": (30, 10, 20), "b": (20, 10, 20)}, ("a note",))
    assert "\x1b" not in printed(corpus)
    assert "\x1b[33m" in printed(corpus, color=True)
    assert max(map(len, printed(corpus).splitlines())) <= 80
