"""Writes the tables of the documentation that come from the registries: `python -m tools.docs_tables`.

A page has each between `<!-- generated: NAME -->` and `<!-- /generated -->`; `tests/docs/test_tables.py` compares.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from encore import plugins
from encore.api import MetricSpec, Spec
from encore.cli.app import COMMANDS

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
PAPER = re.compile(r"arXiv (\d{4}\.\d{5})")


def own(plural: str) -> list[Spec]:
    """What Encore itself registers, in its order."""
    return [entry.spec for entry in plugins.registries()[plural] if entry.source.distribution == plugins.OWN]


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def papers(spec: Spec) -> str:
    """Links to the papers that the docstring of a spec's module names, read without importing it."""
    found = find_spec(spec.target.partition(":")[0])
    assert found is not None
    assert found.origin is not None
    text = ast.get_docstring(ast.parse(Path(found.origin).read_text("utf-8"))) or ""
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in PAPER.findall(text))


def needs(spec: Spec) -> str:
    return ", ".join([*sorted(spec.needs), *(f"`{name}`" for name in spec.requires)])


def methods() -> str:
    rows = ((f"`{spec.name}`", spec.summary, needs(spec), papers(spec)) for spec in own("methods"))
    return table(["method", "what it does", "needs", "paper"], rows)


def metrics() -> str:
    specs = [spec for spec in own("metrics") if isinstance(spec, MetricSpec)]
    rows = (
        (f"`{spec.name}`", spec.summary, needs(spec), "`--full`" if spec.full else "default", str(spec.version))
        for spec in specs
    )
    return table(["metric", "what it measures", "needs", "measured", "version"], rows)


def embedders() -> str:
    return table(["embedder", "what it is"], ((f"`{spec.name}`", spec.summary) for spec in own("embedders")))


def commands() -> str:
    return table(["command", "what it does"], ((f"`encore {name}`", text) for name, (_, text) in COMMANDS.items()))


def rows() -> str:
    """Each declared row of `metrics.json`; its columns are those of `RowSpec`."""
    good = {"gold": "near gold", "base": "near base"}
    lines = (
        (
            f"`{spec.name}`",
            f"`{row.name}`",
            row.set,
            row.label or row.short,
            good.get(row.direction, row.direction),
            row.target,
        )
        for spec in own("metrics")
        if isinstance(spec, MetricSpec)
        for row in spec.rows
    )
    return table(["metric", "row", "set", "figure", "better", "target"], lines)


TABLES = {"methods": methods, "metrics": metrics, "embedders": embedders, "commands": commands, "rows": rows}


def filled(text: str) -> str:
    """A page with its generated tables as they should be."""
    return BLOCK.sub(lambda block: f"{block[1]}{TABLES[block[2]]()}\n{block[3]}", text)


def main() -> None:
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text("utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, "utf-8")
            print(page, file=sys.stderr)


if __name__ == "__main__":
    main()
