"""Packages that a plugin's environment shares: those that are required, whole, and no others."""

from __future__ import annotations

import py_compile
import sys
from pathlib import Path

import pytest
from tools.link_packages import link, required


def install(site: Path, name: str, *requires: str) -> None:
    """A distribution of one package, with its RECORD."""
    (site / name).mkdir(parents=True)
    (site / name / "__init__.py").write_text(f"NAME = {name!r}\n")
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {one}" for one in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    files = [f"{name}/__init__.py", f"{info.name}/METADATA", f"{info.name}/RECORD", f"../../../bin/{name}"]
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages as pip leaves them: lp_top requires lp_a[more], which requires lp_b, and nothing lp_other."""
    site = tmp_path / "there/lib/site-packages"
    (tmp_path / "there/bin").mkdir(parents=True)
    install(site, "lp_top", "lp-a[more]>=1", "lp-other; sys_platform == 'none'", "lp-other; extra == 'dev'")
    install(site, "lp_a", "lp_b; extra == 'more'", "lp-top")
    install(site, "lp_b")
    install(site, "lp_other")
    for name in ("lp_top", "lp_a", "lp_b", "lp_other"):
        (tmp_path / "there/bin" / name).touch()
    monkeypatch.syspath_prepend(str(site))
    return site


def test_what_is_required_is_found_through_others_and_extras(site: Path) -> None:
    assert required(["lp_b"]) == set()
    assert required(["lp_a"]) == {"lp-a", "lp-b", "lp-top"}
    assert required(["lp_top"]) == {"lp-a", "lp-b", "lp-top"}


def test_files_are_links_and_programs_are_left_out(site: Path, tmp_path: Path) -> None:
    py_compile.compile(str(site / "lp_a/__init__.py"))
    target = tmp_path / "here/lib/site-packages"
    link("lp_a", target)
    linked = {str(path.relative_to(tmp_path / "here")) for path in (tmp_path / "here").rglob("*") if path.is_file()}
    compiled = f"lib/site-packages/lp_a/__pycache__/__init__.{sys.implementation.cache_tag}.pyc"
    info = "lib/site-packages/lp_a-1.0.dist-info"
    assert linked == {"lib/site-packages/lp_a/__init__.py", compiled, f"{info}/METADATA", f"{info}/RECORD"}
    assert all((tmp_path / "here" / path).samefile(tmp_path / "there" / path) for path in linked)
    link("lp_a", target)  # what is there already is left alone


def test_a_plugin_shares_what_encore_requires_and_no_more() -> None:
    found = required(["encore-music"])
    assert {"torch", "transformers", "tokenizers"} <= found
    assert not {"encore-music", "pytest", "librosa"} & found
