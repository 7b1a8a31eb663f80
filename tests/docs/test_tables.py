"""Tables that come from the registries are in the documentation as they should be."""

from pathlib import Path

import pytest
from tools.docs_tables import BLOCK, TABLES, filled

PAGES = [page for page in (Path(__file__).resolve().parents[2] / "docs").glob("*.md") if BLOCK.search(page.read_text())]


def test_each_table_is_in_one_page():
    assert sorted(block[2] for page in PAGES for block in BLOCK.finditer(page.read_text())) == sorted(TABLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_current(page):
    assert page.read_text() == filled(page.read_text()), "run: python -m tools.docs_tables"
