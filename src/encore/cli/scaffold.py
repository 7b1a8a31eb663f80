"""Writes a new plugin package: the example plugin with its name changed, so that there is one source of truth."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from encore.errors import EncoreError, UsageError

TEMPLATE_NAME = "example"
TAKEN = ("encore", "music", "audiocraft", "diffusers")  # of Encore itself (encore-music), and of plugins beside it
GENERATED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*")


def template_folder() -> Path:
    """The example plugin: in the package, or in the repository of an editable install.

    Raises:
        EncoreError: it is in neither.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "template", package.parents[1] / "plugins" / "encore-example"):
        if (folder / "pyproject.toml").is_file():
            return folder
    raise EncoreError("the plugin template is not part of this installation", "reinstall encore-music")


def rename(text: str, name: str) -> str:
    """Put `name` wherever the template says "example"; with an underscore for a dash in an identifier."""
    text = re.sub(rf"(?<=encore_){TEMPLATE_NAME}|\b{TEMPLATE_NAME}(?=_)", name.replace("-", "_"), text)
    return re.sub(rf"\b{TEMPLATE_NAME}\b", name, text)


def write_plugin(name: str, out: Path | None = None) -> Path:
    """Write the package `encore-<name>` into a folder that does not exist yet or is empty.

    Raises:
        UsageError: the name can't be a package's or is one of Encore's own, or the folder has something in it.
    """
    name = name.removeprefix("encore-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"{name!r} can't be a plugin's name", "use lower-case letters, digits and single dashes")
    if name in TAKEN:
        raise UsageError(f"{name!r} is a name of Encore's own", "choose another one")
    out = Path(f"encore-{name}") if out is None else out
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if out.exists() or out.is_symlink():
        raise UsageError(f"the folder {str(out)!r} exists and is not empty", "name another one with --out")
    template = template_folder()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".encore-", dir=out.parent) as staging:
            written = Path(staging, "plugin")
            shutil.copytree(template, written, ignore=GENERATED)
            for path in sorted(written.rglob("*"), reverse=True):  # children before their folder is renamed
                if path.is_file():
                    path.write_text(rename(path.read_text("utf-8"), name), "utf-8")
                path.rename(path.with_name(rename(path.name, name)))
            os.rename(written, out)
    except OSError as error:
        raise EncoreError(f"the plugin can't be written to {str(out)!r}: {error.strerror}") from error
    return out
