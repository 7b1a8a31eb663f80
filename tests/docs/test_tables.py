"""Tables that come from the registries are in the documentation as they should be."""

import re

import pytest
from tools.docs_tables import BLOCK, DOCS, TABLES, filled, own

PAGES = [page for page in DOCS.glob("*.md") if BLOCK.search(page.read_text())]


def test_each_table_is_in_one_page():
    assert sorted(block[2] for page in PAGES for block in BLOCK.finditer(page.read_text())) == sorted(TABLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_current(page):
    assert page.read_text() == filled(page.read_text()), "run: python -m tools.docs_tables"


def test_each_metric_is_explained():
    text = (DOCS / "metrics.md").read_text().partition("## What each metric means")[2].partition("\n## ")[0]
    first = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    explained = [name for cell in first for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(explained) == sorted(spec.name for spec in own("metrics"))
