"""Load third-party models from the hub or from folders; their files are data, and code in them is never run.

Whether the hub can be reached is tested with one short request, since its client retries for half a minute.
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
from encore.errors import InputError, first_line

TIMEOUT = 5.0  # seconds
CLOSED = (401, 403, 404)  # the hub's answers for private and for missing models


def fetchable(model: str, revision: str | None = None, file: str = "config.json") -> bool:
    """Whether the model can be downloaded from the hub; False without a network, so that only the cache is used.

    Args:
        model: folder or hub name.
        revision: on the hub.
        file: one that every model of the family has.

    Raises:
        InputError: the name is neither a folder nor a hub name, or the hub refuses access.
    """
    if Path(model).is_dir():
        return False
    if model in assets.MODELS:  # its backend never calls this
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
    except Exception:  # the errors depend on the HTTP client, which has changed twice; all mean: no answer
        return False
    if answer.status_code in CLOSED:
        raise InputError(
            f"the hub has no model {model!r} that may be read from here (status {answer.status_code})",
            "check the name and --revision; a gated model needs its terms accepted and `hf auth login`",
        )
    return True


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars and warnings."""
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


# -------------------------------------------------------------------------------------------------- untrusted folders

READ = (".json", ".safetensors", ".model", ".txt", ".jinja")  # suffixes of files that libraries read from a folder
SETTINGS = re.compile(r"(model_index|config|.*_config|special_tokens_map|added_tokens|tokenizer|.*\.index)\.json")
MAX_SETTINGS = 128 << 20  # largest settings file, bytes
COUNTS = re.compile(r".*(layers|codebooks|blocks)|depths")  # settings that give the number of parts of a network
FEW = 200  # this many parts are built quickly, even without weights for them
NUMBERS = re.compile(r"num_labels|extra_ids|max_position_embeddings")  # settings that give the length of a table
LONG = 1 << 21  # largest length of such a table
SPACE = "▁"  # what tokenizers of T5's kind put before a word
NAMES_FILES = ("fast_tokenizer_files", "transformers_weights")  # settings that name other files of the folder


def pretrained(
    model_class: Any,
    source: str | Path,
    *,
    what: str = "",
    hint: str = "",
    kind: type[InputError] = InputError,
    subfolder: str = "",
    **where: Any,
) -> Any:
    """`model_class.from_pretrained(source, **where)` for untrusted models; the only place that calls it.

    Code of a model is never run. A folder is checked first (`check_folder`). Exceptions of the library become one
    sentence.

    Args:
        model_class: a class of transformers or diffusers.
        source: a folder or a hub name.
        what: continues the message "can't load SOURCE", such as " as a MusicGen model".
        hint: of the error.
        kind: class of the error.
        subfolder: of the source.
        where: further arguments of `from_pretrained`.

    Raises:
        InputError: it can't be loaded, needs code of the model, names files outside of the folder, or is a tokenizer
            without words.
    """
    source, failed = str(source), f"can't load {source}{what}"
    if Path(source).is_dir():
        check_folder(Path(source, subfolder), failed, hint)
    if subfolder:
        where["subfolder"] = subfolder
    if model_class.__module__.partition(".")[0] == "transformers":  # diffusers runs no code for an explicit class
        where["trust_remote_code"] = False
    with tried(failed, hint, kind):
        loaded = model_class.from_pretrained(source, **where)
        tokenizer = getattr(loaded, "tokenizer", loaded)
        # Without the file of its vocabulary a tokenizer is opened all the same, and reads every text as unknown words.
        if hasattr(tokenizer, "get_vocab") and not set(tokenizer.get_vocab()) - {*tokenizer.all_special_tokens, SPACE}:
            raise kind(
                f"{failed}: its tokenizer has an empty vocabulary; a file such as tokenizer.json is missing", hint
            )
    return loaded


@contextmanager
def tried(failed: str, hint: str = "", kind: type[InputError] = InputError) -> Iterator[None]:
    """Turn any exception of a library that loads an untrusted model into an error of one sentence.

    Args:
        failed: beginning of the sentence: "can't load NAME".
        hint: of the error.
        kind: class of the error.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # any kind: settings of a wrong type fail anywhere, and tokenizers panics
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, and code of a model is never run"
        if "ignore_mismatched_sizes" in str(error):  # this message refers to a table that is not shown
            reason = "the shapes of its weights don't match its settings"
        raise kind(f"{failed}: {reason}", hint) from error


def check_folder(folder: Path, failed: str, hint: str = "") -> None:
    """Refuse a model's folder that would make a library read other files, hang or run out of memory.

    Args:
        folder: the model's.
        failed: beginning of the message.
        hint: of the error.

    Raises:
        InputError: a file is a pipe or leads out of the folder; settings are not a JSON object, name files elsewhere or
            other than safetensors, require a kernel from the hub, or describe far more parts than there are weights.
    """

    def refuse(reason: str) -> NoReturn:
        raise InputError(f"{failed}: {reason}", hint)

    files = sorted(path for path in folder.iterdir() if path.name.endswith(READ))
    allowed = [os.path.realpath(folder)]
    if folder.parent.name == "snapshots":  # in the hub's cache, files are links to its blobs
        allowed.append(os.path.realpath(folder.parents[1] / "blobs"))
    for path in files:
        if not any(os.path.realpath(path).startswith(root + os.sep) for root in allowed):
            refuse(f"{path.name} leads out of the folder")
        if not path.is_file():
            refuse(f"{path.name} is not a regular file")
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
        is_index = path.name.endswith(".index.json")
        fault = _index_fault(settings, folder) if is_index else _settings_fault(settings, parts)
        if fault and path.name != "tokenizer.json":
            refuse(f"{path.name} {fault}")


def is_code(name: str) -> bool:
    """Whether a file is code, by its name."""
    return name.lower().endswith((".py", ".pyc", ".pyd", ".so", ".dylib", ".dll"))


def _index_fault(index: dict[str, Any], folder: Path) -> str:
    """The fault of a list of weight files, as a continuation of its name; empty without a fault."""
    names = index.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        return "names no files"
    for name in sorted(set(names.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            return f"names {name!r}, and only safetensors in the same folder are read"
        if not (folder / name).is_file():
            return f"names {name!r}, which is missing"
    return ""


def _settings_fault(settings: Any, parts: int) -> str:
    """The same for other settings; `parts` is the number of tensors in the folder."""
    if isinstance(settings, list):
        return next(filter(None, (_settings_fault(value, parts) for value in settings)), "")
    if not isinstance(settings, dict):
        return ""
    for key, value in settings.items():
        if key in NAMES_FILES and value is not None:
            names = value if isinstance(value, list) else [value]
            if not all(isinstance(name, str) and Path(name).name == name for name in names):
                return f"names files outside of the folder: {key}"
        if key.endswith("attn_implementation") and "/" in str(value):
            return f"needs a kernel from the hub: {key} {str(value)[:80]!r}"
        for count in value if isinstance(value, list) else [value]:
            if COUNTS.fullmatch(key) and type(count) in (int, float) and count > max(parts, FEW):
                return f"has {key} {count:,}, more than the model has weights"
            if NUMBERS.fullmatch(key) and type(count) in (int, float) and count > LONG:
                return f"has {key} {count:,}, more than {LONG:,}"
        if fault := _settings_fault(value, parts):
            return fault
    return ""


def _tensors(path: Path) -> int:
    """The number of tensors in a safetensors file, by its header; 0 where it can't be read."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return len(json.loads(file.read(size))) if size < MAX_SETTINGS else 0
    except (OSError, ValueError, RecursionError, TypeError):
        return 0
