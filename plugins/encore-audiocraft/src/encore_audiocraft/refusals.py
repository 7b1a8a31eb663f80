"""What `encore convert` refuses before torch, transformers and audiocraft are imported, which takes ten seconds."""

from __future__ import annotations

from pathlib import Path

from encore import assets
from encore.errors import InputError, UsageError
from encore.store.model_name import model_name

LM = "state_dict.bin"  # of a model in audiocraft's format: the language model


def source_of(model: str, out: Path, to: str) -> str:
    """What to convert: a model's folder, or its name, as `encore.store.model_name.model_name` gives it.

    Raises:
        UsageError: the folder to write holds something, or is none.
        InputError: the model is in the format of the library `to` already, or of a run that did not finish.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, and a folder is to be written", "name a folder that is new or empty")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", "name a folder that is new or empty")
    source = model_name(model)
    folder = Path(source)
    theirs = (folder / LM).is_file() and not (folder / "config.json").is_file()
    if (to == "audiocraft" and theirs) or (to == "transformers" and assets.model_folder(source)):
        raise InputError(f"{model} is in the format of {to} already")
    return source
