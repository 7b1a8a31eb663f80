"""Give a new virtual environment the packages that distributions of this one require, as links instead of copies.

    python tools/link_packages.py VENV DISTRIBUTION...

The distributions themselves are left out, and so is whatever they don't require. pip takes what is linked for installed
and adds what is missing.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import distribution
from importlib.util import cache_from_source
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(names: Iterable[str]) -> set[str]:
    """What distributions require, directly or through others.

    Args:
        names: of the distributions, without extras.

    Returns:
        Canonical names.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    waiting = [(name, "") for name in names]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        for requirement in map(Requirement, distribution(name).requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                new = {(canonicalize_name(requirement.name), one) for one in ("", *requirement.extras)} - seen
                seen |= new
                waiting += new
    return {name for name, _ in seen}


def link(name: str, target: Path) -> None:
    """Link a distribution's files, and what Python has compiled of them, into another site-packages.

    Programs in bin/ are left out: their first line names this environment.
    """
    site = Path(str(distribution(name).locate_file("")))
    for path in map(Path, distribution(name).files or ()):
        if ".." in path.parts or path.suffix == ".pyc":
            continue
        for file in (path, Path(cache_from_source(str(path)))) if path.suffix == ".py" else (path,):
            if (site / file).exists() and not (target / file).exists():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                os.link(site / file, target / file)


def main(venv: str, *names: str) -> None:
    target = Path(sysconfig.get_path("purelib", "venv", vars={"base": venv, "platbase": venv}))
    for name in sorted(required(names)):
        link(name, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
