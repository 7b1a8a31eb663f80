"""Models by hub name: one short look whether the hub answers, since its own client tries for half a minute."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
