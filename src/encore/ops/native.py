"""The kernels' library, where it can be had. Everything it does has a twin in pure torch, so it may be missing.

Loading it registers its kernels with torch's dispatcher, beside the twins (see `csrc/ops.cpp`). It is loaded the first
time an op is called. It is built on the stable ABIs of torch and Python, so one library serves many versions of both.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from encore.ops import nvcc

LIBRARY = "encore_native.so"  # compiled on first use


class Native(NamedTuple):
    """The extension, or None and the reason in one sentence. `how`: "ahead of time", "on first use" or ""."""

    module: ModuleType | None
    why: str
    how: str = ""


@functools.cache
def find(*, build: bool = True) -> Native:
    """The library, loaded, or why there is none.

    The one built at installation is taken if it can be loaded; else the shipped sources are compiled once and kept
    (`build_folder`). `ENCORE_NATIVE=0` switches both off.

    Args:
        build: compile where nothing fitting is there yet; False only looks.
    """
    if os.environ.get("ENCORE_NATIVE") == "0":
        return Native(None, "ENCORE_NATIVE=0 switches it off")
    found = _installed()
    if found.module is not None:
        return found
    if not build:
        kept = _kept()
        return kept if kept.module is not None else found
    compiled = _compile()
    return compiled if compiled.module is not None else Native(None, f"{found.why}, and {compiled.why}")


def sources() -> Path | None:
    """The folder of native sources: in the package, or in the repository of an editable install."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "csrc", package.parents[1] / "csrc"):
        if (folder / "binding.cpp").is_file():
            return folder
    return None


def build_folder() -> Path:
    """Where the extension compiled on first use is kept: one folder for each Encore, torch and Python."""
    import torch

    from encore import __version__
    from encore.settings import cache_folder

    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return cache_folder() / "native" / f"encore-{__version__}-torch-{torch.__version__}-{python}"


def _installed() -> Native:
    """What was built at installation."""
    try:
        import torch  # noqa: F401 - what the library is linked with has to be loaded before it

        spec = importlib.util.find_spec("encore._native")
        if spec is not None and spec.origin is not None:
            _refuse_damaged(Path(spec.origin))
        return Native(importlib.import_module("encore._native"), "", "ahead of time")
    except Exception as error:  # a library of another machine or a torch too old can fail in any way
        if isinstance(error, ModuleNotFoundError) and error.name == "encore._native":
            return Native(None, "it was not built at installation")
        return Native(None, f"it can't be loaded ({type(error).__name__}: {' '.join(str(error).split())})")


def _kept() -> Native:
    """What an earlier process compiled on first use."""
    try:
        path = build_folder() / LIBRARY
        _refuse_damaged(path)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # not there, or any of what can be wrong with a library
        return Native(None, f"none was kept ({type(error).__name__})")
    return Native(module, "", "on first use")


def _refuse_damaged(path: Path) -> None:
    """Raise before a cut or zeroed library is mapped into memory, where touching what is missing ends the process.

    An ELF file ends with the table of its sections, or what that tells of; both must be there (`man 5 elf`).

    Raises:
        ImportError: says what is wrong; also told on stderr, once.
    """
    with path.open("rb") as file:
        head = file.read(64)
        if head[:4] != b"\x7fELF":
            return  # of another system, whose loader checks for itself
        size = os.fstat(file.fileno()).st_size
        try:
            if head[4] != 2 or len(head) < 64:
                raise struct.error("its header is not whole")
            order = "<" if head[5] == 1 else ">"
            (table,) = struct.unpack(f"{order}Q", head[40:48])
            width, count, names = struct.unpack(f"{order}3H", head[58:64])
            file.seek(table)
            sections = [struct.unpack(f"{order}2I4Q2I2Q", file.read(width)[:64]) for _ in range(count)]
            ends = [offset + length for _, kind, _, _, offset, length, *_ in sections if kind != 8]  # 8: takes no space
            if not sections or sections[names][1] != 3 or max(ends) > size:  # 3: a table of strings
                raise struct.error(f"it is not whole, with {size:,} bytes")
        except (struct.error, LookupError) as error:
            _tell(f"encore: {path} is damaged and not used; install Encore again (PyTorch is used instead, slower)")
            raise ImportError(f"{path.name} is damaged: {error}") from error


@functools.cache
def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _compile() -> Native:
    """Compile the shipped sources; nothing that goes wrong here is an error, for PyTorch is used instead."""
    folder = sources()
    if folder is None:
        return Native(None, "its sources are not installed")
    compiler = (os.environ.get("CXX") or "c++").split()[0]
    if shutil.which(compiler) is None:
        return Native(None, f"there is no C++ compiler {compiler!r} to build it with")
    try:
        return Native(_load(folder), "", "on first use")
    except Exception as error:  # compilers and loaders fail in many ways
        reason = " ".join(str(error).split())
        return Native(None, f"compiling it failed ({type(error).__name__}: {reason[:300]})")


def _load(folder: Path) -> ModuleType:
    import warnings

    import torch
    from filelock import FileLock
    from torch.utils import cpp_extension

    target = build_folder()
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(target / "encore.lock"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (target / "lock").unlink(missing_ok=True)  # torch's own lock waits for ever for a process that was killed
        if (target / LIBRARY).exists():
            try:
                _refuse_damaged(target / LIBRARY)
            except ImportError:
                (target / LIBRARY).unlink()  # compile it again
        if not (target / LIBRARY).exists():
            print("encore: compiling the native extension, once (about 20 s) ...", file=sys.stderr, flush=True)
        kernels = nvcc.compile_kernels(folder, target, torch)
        flags = ["-O3", "-std=c++20"]
        macros = [f"-DENCORE_FLAGS='\"{' '.join(flags)}\"'", f"-DENCORE_CUDA_ARCHS='\"{kernels.archs}\"'"]
        libraries = [f"-l{name}" for name in nvcc.LIBRARIES] if kernels.objects else []
        return cpp_extension.load(  # type: ignore[no-any-return]
            name=Path(LIBRARY).stem,
            sources=[
                *(str(path) for path in sorted([*folder.glob("*.cpp"), *folder.glob("cpu/*.cpp")])),
                *kernels.sources,
            ],
            extra_cflags=[*flags, *macros],
            extra_ldflags=[*kernels.objects, *(f"-L{path}" for path in kernels.folders), *libraries],
            build_directory=str(target),
        )
