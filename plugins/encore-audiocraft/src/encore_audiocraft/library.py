"""Meta's audiocraft 1.3.0, imported beside today's torch and transformers.

Its modules import, at their top, packages that MusicGen does not need and that are hard to install by now. Those that
can't be imported are stood in for while audiocraft is imported, and only then: other libraries look into `sys.modules`
to find out what is installed. The exception is xformers, which audiocraft imports again when it runs.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from encore.errors import MissingExtraError
from encore_audiocraft import INSTALL

UNUSED = ("torchaudio", "torchaudio.transforms", "spacy", "av", "librosa", "librosa.filters")
LOOKS_AROUND = ("EncodecModel", "RobertaTokenizer", "T5EncoderModel", "T5Tokenizer")  # of transformers, in audiocraft
SHADOWED = ("audiocraft.solvers", "audiocraft.solvers.compression")  # training code, with many more imports of its own


class StubModule(types.ModuleType):
    """A module of which every name is a class that can be derived from, and not be made an object of."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"

        def refuse(*_: object, **__: object) -> None:
            raise MissingExtraError(f"audiocraft needs {full} for this", f"pip install {full.partition('.')[0]}")

        return type(name, (), {"__init__": refuse, "__module__": self.__name__})


def load() -> types.ModuleType:
    """Import audiocraft; a second call costs nothing.

    Raises:
        MissingExtraError: it is not installed, or can't be imported.
    """
    if "audiocraft.models.musicgen" in sys.modules:
        return sys.modules["audiocraft"]
    for name in LOOKS_AROUND:  # before there are stand-ins: it keeps in mind what it found to be installed
        getattr(transformers, name)
    if not _importable("xformers.ops"):
        _stub_xformers()
    absent = [name for name in UNUSED if not _importable(name.partition(".")[0])]
    try:
        with _stub_modules([*absent, *SHADOWED]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, of what has changed in Python and torch since
            importlib.import_module("audiocraft.models.musicgen")
    except (ImportError, OSError) as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == "audiocraft"]:
            del sys.modules[name]
        raise MissingExtraError(f"audiocraft can't be imported: {error}", INSTALL) from error
    return sys.modules["audiocraft"]


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Build audiocraft's modules without torch's remark that their weight norm is the older of its two."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm.* is deprecated", category=FutureWarning)
        yield


def open_musicgen(folder: Path | str, device: str = "cpu") -> Any:
    """audiocraft's own `MusicGen.get_pretrained` of a folder, also of one whose text encoder lies beside its weights.

    audiocraft loads a text encoder by a name out of its list; `./t5`, which `encore convert` writes where the text
    encoder has no name, is put on that list, and the folder is the working folder while the model is loaded.
    """
    load()
    from audiocraft.models import MusicGen  # type: ignore[import-not-found]
    from audiocraft.modules.conditioners import T5Conditioner  # type: ignore[import-not-found]
    from transformers import AutoConfig

    from encore.hub import pretrained
    from encore_audiocraft.text import BESIDE, NAME_OF_BESIDE

    beside = Path(folder) / BESIDE
    if beside.is_dir():
        T5Conditioner.MODELS_DIMS[NAME_OF_BESIDE] = pretrained(AutoConfig, beside).d_model
        if NAME_OF_BESIDE not in T5Conditioner.MODELS:
            T5Conditioner.MODELS.append(NAME_OF_BESIDE)
    with contextlib.chdir(folder), building():
        return MusicGen.get_pretrained(".", device=device)


def _importable(name: str) -> bool:
    """Whether a package imports; what a failed attempt leaves behind is removed."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError):
        top = name.partition(".")[0]
        for left in [module for module in sys.modules if module.partition(".")[0] == top]:
            del sys.modules[left]
        return False
    return True


def _stub_xformers() -> None:
    """The two things of it that MusicGen uses. Its attention is not one of them: audiocraft takes torch's."""
    package, ops = StubModule("xformers"), StubModule("xformers.ops")
    ops.unbind, ops.LowerTriangularMask = torch.unbind, type("LowerTriangularMask", (), {})  # type: ignore[attr-defined]
    package.ops = ops  # type: ignore[attr-defined]
    sys.modules.update({"xformers": package, "xformers.ops": ops})


@contextlib.contextmanager
def _stub_modules(names: Sequence[str]) -> Iterator[None]:
    added = {name: StubModule(name) for name in names}
    for name, module in added.items():
        parent, _, child = name.rpartition(".")
        if parent in added:
            setattr(added[parent], child, module)
    sys.modules.update(added)
    try:
        yield
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
