"""Runs a notebook's code cells in order in this process, as a kernel would, and stores their outputs in it.

    RUN=runs/embedded python tests/support/notebooks.py docs/analysis.ipynb

A Jupyter kernel needs twenty-five packages more; this needs what the cells themselves import.
"""

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def run_notebook(path: Path) -> dict[str, Any]:
    """The notebook with the outputs that its cells have now. What a cell raises is raised."""
    import matplotlib as mpl

    mpl.use("Agg")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    scope: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, start=1):
        cell["execution_count"], cell["outputs"] = number, _run("".join(cell["source"]), number, scope)
    return notebook


def _run(source: str, number: int, scope: dict[str, Any]) -> list[dict[str, Any]]:
    import matplotlib.pyplot as plt

    tree, printed, value = ast.parse(source), io.StringIO(), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"<cell {number}>", "exec"), scope)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"<cell {number}>", "eval"), scope)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue())})
    if value is not None and not source.rstrip().endswith(";"):
        outputs.append(
            {"data": _shown(value), "execution_count": number, "metadata": {}, "output_type": "execute_result"}
        )
    for figure in map(plt.figure, plt.get_fignums()):
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=80, bbox_inches="tight", metadata={"Software": None})
        data = {"image/png": base64.b64encode(content.getvalue()).decode(), "text/plain": ["<Figure>"]}
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    plt.close("all")
    return outputs


def _shown(value: Any) -> dict[str, Any]:
    if hasattr(value, "_repr_png_"):
        return {"image/png": base64.b64encode(value._repr_png_()).decode(), "text/plain": ["<Figure>"]}
    kinds = {"text/html": "_repr_html_", "text/markdown": "_repr_markdown_"}
    rich = {kind: _lines(getattr(value, name)()) for kind, name in kinds.items() if hasattr(value, name)}
    return rich | {"text/plain": _lines(repr(value) if "text/markdown" not in rich else value._repr_markdown_())}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_text(json.dumps(run_notebook(place), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
