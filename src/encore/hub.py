"""Models that others made: the hub, and folders of settings and weights, which are data and never code.

Of the hub one short look whether it answers, since its own client tries for half a minute.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from encore import assets
from encore.errors import InputError

TIMEOUT = 5.0  # seconds
CLOSED = (401, 403, 404)  # the hub tells nobody apart who may not read a model from a model that is not there


def fetchable(model: str, revision: str | None = None, file: str = "config.json") -> bool:
    """Whether the hub has the model and can be reached; False without a network, where only the cache can help.

    Args:
        file: one that every model of the family has.

    Raises:
        InputError: the name is no folder and no hub name, or the hub does not give it to us.
    """
    if Path(model).is_dir():
        return False
    if model in assets.MODELS:  # its own backend never asks
        raise InputError(
            f"the embedded model {model} is one of transformers' MusicGen, not of this model family",
            f"open it with --backend musicgen, or turn it into another format with `encore convert {model} FOLDER`",
        )
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        near = difflib.get_close_matches(model, assets.MODELS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"there is no model {model!r}", f"{hint}give `tiny`, a folder, or a hub name like owner/name")
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    address = hf_hub_url(model, file, revision=revision)
    try:
        answer = get_session().head(address, headers=build_hf_headers(), timeout=TIMEOUT, follow_redirects=True)
    except Exception:  # the HTTP client has changed twice, and each has errors of its own; all mean: no answer
        return False
    if answer.status_code in CLOSED:
        raise InputError(
            f"the hub has no model {model!r} that may be read from here (status {answer.status_code})",
            "check the name and --revision; a gated model needs its terms accepted and `hf auth login`",
        )
    return True


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars, and its remarks on architectures it finds odd, off the terminal."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# ------------------------------------------------------------------------------------------------ a stranger's folder

READ = (".json", ".safetensors", ".model", ".txt", ".jinja")  # how the names end of what libraries read of a folder
SETTINGS = re.compile(r"(model_index|config|.*_config|special_tokens_map|added_tokens|tokenizer|.*\.index)\.json")
MAX_SETTINGS = 128 << 20  # bytes of one file of settings
COUNTS = re.compile(r".*(layers|codebooks|blocks)|depths")  # settings that say how many parts a network is built of
FEW = 200  # parts that take no time to build, be there weights for them or not
NUMBERS = re.compile(r"num_labels|extra_ids|max_position_embeddings")  # settings that say how long a table is filled
LONG = 1 << 21  # entries of such a table
NAMES_FILES = ("fast_tokenizer_files", "transformers_weights")  # settings that name other files of the folder


def pretrained(
    made: Any,
    source: str | Path,
    *,
    what: str = "",
    hint: str = "",
    kind: type[InputError] = InputError,
    subfolder: str = "",
    **where: Any,
) -> Any:
    """`made.from_pretrained(source, **where)`, of what a stranger made; the only place that calls it.

    Code that a model brings along is neither run nor asked for. A folder is checked first (`check_folder`). Whatever
    the library then raises is told in one sentence.

    Args:
        made: a class of transformers or diffusers. source: a folder or a hub name.
        what: how the message goes on after "can't load SOURCE": " as a MusicGen model". hint, kind: of the error.

    Raises:
        InputError: it can't be loaded, would need its own code, or names files that lie outside of it.
    """
    source, failed = str(source), f"can't load {source}{what}"
    if Path(source).is_dir():
        check_folder(Path(source, subfolder), failed, hint)
    if subfolder:
        where["subfolder"] = subfolder
    if made.__module__.partition(".")[0] == "transformers":  # diffusers runs no code for a class that is named
        where["trust_remote_code"] = False
    with tried(failed, hint, kind):
        return made.from_pretrained(source, **where)


@contextmanager
def tried(failed: str, hint: str = "", kind: type[InputError] = InputError) -> Iterator[None]:
    """What a library raises over a model that a user gave it, as one sentence; for calls of that library only.

    Args:
        failed: how the sentence begins: "can't load NAME".
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # any kind: settings of a wrong type surface anywhere, and tokenizers has panics
        reason = _first_line(error)
        if "trust_remote_code" in str(error):
            reason = "it needs code that comes with it, and code of a model is never run"
        if "ignore_mismatched_sizes" in str(error):  # which points at a table that is not shown
            reason = "its weights are of other shapes than its settings say"
        raise kind(f"{failed}: {reason}", hint) from error


def check_folder(folder: Path, failed: str, hint: str = "") -> None:
    """Refuse a model's folder that would have a library read what is not in it, or hang or run out of memory.

    Args:
        failed: how the message begins.

    Raises:
        InputError: a file is a pipe or leads out of the folder; settings are not JSON or no object, name files that lie
            elsewhere or are no safetensors, ask for a kernel of the hub, or build far more than there are weights for.
    """

    def refuse(reason: str) -> NoReturn:
        raise InputError(f"{failed}: {reason}", hint)

    files = sorted(path for path in folder.iterdir() if path.name.endswith(READ))
    allowed = [os.path.realpath(folder)]
    if folder.parent.name == "snapshots":  # of the hub's cache, whose files are links to its blobs
        allowed.append(os.path.realpath(folder.parents[1] / "blobs"))
    for path in files:
        if not any(os.path.realpath(path).startswith(root + os.sep) for root in allowed):
            refuse(f"{path.name} leads out of the folder")
        if not path.is_file():
            refuse(f"{path.name} is no regular file")
    if (folder / "adapter_config.json").exists():
        refuse("it is an adapter to another model; merge it into that model first")
    parts = sum(map(_tensors, folder.glob("*.safetensors")))
    for path in files:
        if not SETTINGS.fullmatch(path.name):
            continue
        if path.stat().st_size > MAX_SETTINGS:
            refuse(f"{path.name} is larger than {MAX_SETTINGS:,} bytes")
        try:
            settings = json.loads(path.read_bytes())
        except RecursionError:
            refuse(f"{path.name} is nested too deeply")
        except (OSError, ValueError) as error:
            refuse(f"{path.name} can't be read as JSON: {error}")
        if not isinstance(settings, dict):
            refuse(f"{path.name} is not a JSON object")
        wrong = _wrong_index(settings, folder) if path.name.endswith(".index.json") else _wrong(settings, parts)
        if wrong and path.name != "tokenizer.json":
            refuse(f"{path.name} {wrong}")


def is_code(name: str) -> bool:
    """Whether a file, by its name, is code: no model has any that is read here."""
    return name.lower().endswith((".py", ".pyc", ".pyd", ".so", ".dylib", ".dll"))


def _wrong_index(index: dict[str, Any], folder: Path) -> str:
    """What is wrong with the list of a model's files, in words that follow the file's name; empty where nothing is."""
    names = index.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        return "names no files"
    for name in sorted(set(names.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            return f"names {name!r}, and only safetensors in the same folder are read"
        if not (folder / name).is_file():
            return f"names {name!r}, which is not there"
    return ""


def _wrong(settings: Any, parts: int) -> str:
    """The same for other settings. `parts`: how many tensors the folder has."""
    if isinstance(settings, list):
        return next(filter(None, (_wrong(value, parts) for value in settings)), "")
    if not isinstance(settings, dict):
        return ""
    for key, value in settings.items():
        if key in NAMES_FILES and value is not None:
            names = value if isinstance(value, list) else [value]
            if not all(isinstance(name, str) and Path(name).name == name for name in names):
                return f"names files outside of the folder: {key}"
        if key.endswith("attn_implementation") and "/" in str(value):
            return f"asks for a kernel that would have to be fetched: {key} {str(value)[:80]!r}"
        for count in value if isinstance(value, list) else [value]:
            if COUNTS.fullmatch(key) and type(count) in (int, float) and count > max(parts, FEW):
                return f"has {key} {count:,}, more than the model has weights"
            if NUMBERS.fullmatch(key) and type(count) in (int, float) and count > LONG:
                return f"has {key} {count:,}, more than {LONG:,}"
        found = _wrong(value, parts)
        if found:
            return found
    return ""


def _tensors(path: Path) -> int:
    """How many tensors a safetensors file holds, by its header; 0 where it can't be read."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return len(json.loads(file.read(size))) if size < MAX_SETTINGS else 0
    except (OSError, ValueError, RecursionError, TypeError):
        return 0


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
