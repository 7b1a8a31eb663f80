"""A hook of mkdocs: pages from files outside `docs/`, so that each text exists once and links work on both sides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # file of the repository -> page of the documentation
    "benchmarks/RESULTS.md": "figures.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "plugins/encore-audiocraft/README.md": "encore-audiocraft.md",
    "plugins/encore-diffusers/README.md": "encore-diffusers.md",
}
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files of the repository become links to the pages that show them."""
    sources = {target: source for source, target in PAGES.items()}
    folder = (ROOT / sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent

    def page_of(link: re.Match[str]) -> str:
        file = (folder / link[0]).resolve()
        if not file.is_relative_to(ROOT):
            return link[0]
        name = file.relative_to(ROOT).as_posix()
        return PAGES.get(name, name.removeprefix("docs/") if file.exists() else link[0])

    return LINK.sub(page_of, markdown)
