"""Compiles the CUDA kernels by calling nvcc, for `setup.py` and for the first use alike.

torch's own CUDAExtension asks for a torch with CUDA of the toolkit's version; these sources include no torch header, so
plain nvcc compiles them, and the objects are linked with the rest. Only the standard library is imported here, because
`setup.py` reads this file before the package is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC"]
LIBRARIES = ["torch_cuda", "cudart_static", "dl", "rt", "pthread"]  # the runtime static: no version of it has to match


class Kernels(NamedTuple):
    """What the compiler and the linker are to be given besides the C++ sources; nothing where `why` is not empty."""

    why: str = ""
    archs: str = ""  # "8.0 9.0a"
    sources: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()  # where LIBRARIES are


def compile_kernels(csrc: Path, target: Path, torch: Any) -> Kernels:
    """Objects of the kernels in `csrc/cuda`, written to `target`; never raises."""
    if not torch.version.cuda:
        return Kernels("this torch was built without CUDA")
    nvcc = _nvcc()
    if nvcc is None:
        return Kernels("there is no nvcc")
    try:
        archs = _archs(torch)
        sources = sorted(path for path in (csrc / "cuda").glob("*.cu") if path.stem != "selftest")
        target.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            objects = list(pool.map(lambda source: _compile(nvcc, source, target, archs), sources))
        folders = tuple(str(path) for path in _library_folders(nvcc))
    except Exception as error:  # toolkits fail in many ways, and the CPU kernels serve without this one
        return Kernels(f"compiling them failed ({type(error).__name__}: {' '.join(str(error).split())[:300]})")
    names = " ".join(dict.fromkeys(arch.removesuffix("+PTX") for arch in [*archs, "9.0a"]))
    return Kernels("", names, (str(csrc / "cuda" / "register.cpp"),), tuple(objects), folders)


def add_kernels(extension: Any, csrc: Path, target: Path, torch: Any) -> None:
    """Compile the kernels and add them to a setuptools `Extension`, or say in a line why there are none."""
    kernels = compile_kernels(csrc, target, torch)
    if kernels.why:
        print(f"note: no CUDA kernels are built: {kernels.why}")
    else:
        extension.sources += [os.path.relpath(source, csrc.parent) for source in kernels.sources]
        extension.extra_objects += kernels.objects
        extension.library_dirs += kernels.folders
        extension.libraries += LIBRARIES
    extension.define_macros.append(("ENCORE_CUDA_ARCHS", f'"{kernels.archs}"'))


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for candidate in ([f"{home}/bin/nvcc"] if home else []) + ["nvcc", "/usr/local/cuda/bin/nvcc"]:
        path = shutil.which(candidate)
        if path:
            return path
    return None


def _archs(torch: Any) -> list[str]:
    """Such as ["8.0", "9.0+PTX"]: what TORCH_CUDA_ARCH_LIST asks for, or the devices in sight, or the usual ones."""
    archs = re.findall(r"\d+\.\d+[af]?(?:\+PTX)?", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    if not archs and torch.cuda.is_available():
        devices = {torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())}
        archs = [f"{major}.{minor}" for major, minor in sorted(devices)]
    return archs or ["8.0", "9.0+PTX"]


def architecture_flags(source: Path, archs: list[str]) -> list[str]:
    """nvcc's flags. The Hopper kernel is made of instructions that 9.0a alone has, and is never run elsewhere."""
    if source.stem == "sm90":
        archs = ["9.0a"]
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        codes = [f"sm_{number}"] + ([f"compute_{number}"] if arch.endswith("+PTX") else [])
        flags += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return flags


def _compile(nvcc: str, source: Path, target: Path, archs: list[str]) -> str:
    out = target / f"{source.stem}.o"
    command = [nvcc, *FLAGS, *architecture_flags(source, archs), "-c", "-o", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc {source.name}: {(done.stderr or done.stdout)[-300:]}")
    return str(out)


def _library_folders(nvcc: str) -> list[Path]:
    """The toolkit's, which nvcc knows even where it is a wrapper script."""
    plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    home = Path(top[1]).resolve() if top else Path(nvcc).resolve().parents[1]
    return [path for path in (home / "lib64", home / "lib", *home.glob("targets/*/lib")) if path.is_dir()]
