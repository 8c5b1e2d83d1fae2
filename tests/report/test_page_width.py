"""The page in a narrow window: what is wider than its frame says so, and charts are as if drawn there."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import Opened, chromium
from made_up_runs import SIZES, write_trial

from bora_sweep.report import write_report
from bora_sweep.runs.results import write_table

TAUS = (None, 0.0, 10.0, 100.0, 1_000.0, 10_000.0, math.inf)
LONG = {f"The northern branch of {name}, for wholesale customers of last year": size for name, size in SIZES.items()}
MANY = {f"{name}, in the {n}th of its years": size + n for name, size in LONG.items() for n in range(6)}
HIDDEN = """() => {
  const troubles = [], name = (e) => `${e.tagName}#${e.id}.${e.getAttribute("class")}: ${e.textContent.slice(0, 30)}`;
  const told = (box, edges) => edges.every((edge) => box.closest(".scroller")?.dataset.more.split(" ").includes(edge))
    && edges.every((edge) => getComputedStyle(box.parentElement.querySelector(`.edge.${edge}`)).display !== "none");
  for (const e of document.querySelectorAll("header *, main *")) {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!box.width || !box.height || style.visibility === "hidden" || e.closest(".unseen, .edge, .skip")) continue;
    const scroller = e.parentElement.closest(".scroll, pre"), frame = scroller?.getBoundingClientRect();
    if (box.right > innerWidth + 1 && !(frame && frame.right <= innerWidth && told(scroller, ["right"]))) {
      troubles.push(`beyond the window: ${name(e)}`);
    }
    if (box.left < -1 && !scroller) troubles.push(`beyond the left: ${name(e)}`);
    if (e instanceof SVGElement || style.display === "inline") continue;
    const wide = e.scrollWidth > e.clientWidth + 1, high = e.scrollHeight > e.clientHeight + 1;
    const scrolls = (overflow) => overflow === "auto" || overflow === "scroll";
    if (wide && scrolls(style.overflowX) && !(told(e, ["right"]) && !e.closest(".scroller").previousSibling.hidden)) {
      troubles.push(`scrolls sideways without a hint: ${name(e)}`);
    }
    if (high && scrolls(style.overflowY) && !told(e, ["down"])) troubles.push(`scrolls down, no hint: ${name(e)}`);
    if ((wide || high) && style.overflowX === "hidden" && !e.title) troubles.push(`cut without a title: ${name(e)}`);
  }
  return troubles;
}"""


def write_page(run: Path, sizes: dict[str, int]) -> Path:
    """Of fits whose learning curves and configurations are long."""
    config = json.dumps({"data": {"path": "/".join(["a folder of many words"] * 9)}})
    for n, tau in enumerate(TAUS):
        write_trial(run, tau, sizes=sizes, trial_id=f"{n:03d}", config_json=config, versions='{"python": "3.11.7"}')
        rows = [
            {"epoch": epoch, "split": split, "nll_nats": 900 * (3 + math.exp(-epoch / 5)) + n, "num_tokens": 900}
            for epoch in range(0 if tau is None else 31)
            for split in ("train", "validation")
        ]
        write_table(run, "curves", f"{n:03d}", rows)
    write_report(run)
    return run / "report" / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


def at_width(opened: Opened, width: int) -> Opened:
    """The page in a window of this width, with all that is folded open."""
    opened.page.set_viewport_size({"width": width, "height": 900})
    opened.page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    for part in opened.page.locator("section:not([hidden])").all():  # laid out as they are reached
        part.scroll_into_view_if_needed()
    opened.page.wait_for_timeout(500)
    return opened


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 820])
@pytest.mark.parametrize("sizes", [SIZES, MANY], ids=["few", "long names"])
def test_nothing_scrolls_out_of_sight_without_a_hint(browser: Any, tmp_path: Path, sizes: dict[str, int], width: int):
    opened = at_width(Opened(browser, write_page(tmp_path, sizes)), width)
    assert opened.page.evaluate("() => document.documentElement.scrollWidth") == width
    assert opened.page.evaluate(HIDDEN) == []
    assert opened.page.locator("#task-table").evaluate("(box) => box.scrollWidth > box.clientWidth")
    assert opened.troubles == []
    opened.context.close()


@pytest.mark.slow
def test_names_and_headings_stay_while_a_table_scrolls(browser: Any, tmp_path: Path):
    opened = at_width(Opened(browser, write_page(tmp_path, MANY)), 420)
    table = opened.page.locator("#task-table")
    frame = table.evaluate("(box) => { const { left, top } = box.getBoundingClientRect(); return [left, top]; }")
    assert table.evaluate("(box) => box.parentElement.dataset.more") == "right down"
    table.evaluate("(box) => { box.scrollLeft = 150; box.scrollTop = 90; }")
    opened.page.wait_for_function("() => document.querySelector('.scroller:has(#task-table)').dataset.more.length > 11")
    assert table.evaluate("(box) => box.parentElement.dataset.more") == "left right up down"
    frame = table.evaluate("(box) => { const { left, top } = box.getBoundingClientRect(); return [left, top]; }")
    places = "(cells) => cells.map((cell) => { const box = cell.getBoundingClientRect(); return [box.left, box.top]; })"
    names = opened.page.locator("#task-table tbody th").evaluate_all(places)
    heads = opened.page.locator("#task-table thead th").evaluate_all(places)
    assert {left for left, _ in names} == {frame[0]}
    assert {top for _, top in heads} == {frame[1]}
    table.evaluate("(box) => { box.scrollLeft = 1e5; }")
    opened.page.wait_for_function(
        "() => !document.querySelector('.scroller:has(#task-table)').dataset.more.includes('right')"
    )
    opened.context.close()


@pytest.mark.slow
def test_charts_in_a_window_made_narrow_are_those_of_a_narrow_window(browser: Any, tmp_path: Path):
    path = write_page(tmp_path, SIZES)
    drawn = []
    for first in (1280, 420):
        opened = Opened(browser, path)
        opened.page.set_viewport_size({"width": first, "height": 900})
        opened.page.reload()
        opened.page.wait_for_function("() => document.documentElement.dataset.drawn")
        at_width(opened, 420)
        lines = opened.page.locator(".chart svg .role-axis-grid").evaluate_all(
            "(axes) => axes.map((axis) => Math.round(axis.getBoundingClientRect().width))"
        )
        drawn.append(lines)
        opened.context.close()
    assert drawn[0] == drawn[1]
    assert min(drawn[0]) > 250
