"""The environment of a run: device, precision, versions, memory."""

from __future__ import annotations

import ctypes
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import torch

from encore import __version__, distributed
from encore.errors import UsageError, first_line
from encore.launcher import launched

LIBRARIES = ("torch", "transformers", "safetensors", "av", "soundfile", "soxr", "numpy", "scipy")
LARGE = 100_000_000  # weights above which matrix products take most of a step


def pick_device(name: str) -> str:
    """ "auto" is the first GPU, else the CPU; of several processes that a launcher started, each has a GPU of its own.

    Raises:
        UsageError: torch does not know the device, or it is not available.
    """
    if launched() > 1:
        return distributed.device_of(name)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(1, device=torch.device(name)).is_meta:
            raise RuntimeError("it holds no data")
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} can't be used: {first_line(error)}", "try --device cpu") from error
    return name


def pick_precision(name: str, device: str, weights: int = 0) -> Literal["fp32", "bf16"]:
    """ "auto" is bf16 autocast on a GPU, and on a CPU that multiplies bf16 natively for a large model; else float32.

    On one core of a Zen 4, a step of a decoder of width 1024 took .52 of float32's time; a small model gains nothing.

    Args:
        name: auto, fp32 or bf16.
        device: as torch names it.
        weights: number of the model's trainable weights.

    Raises:
        UsageError: no such precision.
    """
    if name == "auto":
        return "bf16" if device.startswith("cuda") or (weights > LARGE and _cpu_has_bf16()) else "fp32"
    if name not in ("fp32", "bf16"):
        raise UsageError(f"precision {name!r} is not known", "one of auto, fp32, bf16")
    return cast(Literal["fp32", "bf16"], name)


def _cpu_has_bf16() -> bool:
    return cpu_has("amx_tile") or cpu_has("avx512_bf16")


def cpu_has(name: str) -> bool:
    """Whether the CPU has instructions, by torch's name of them."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get(name, False))


def versions() -> dict[str, str]:
    """Versions of Encore, Python and the libraries that results depend on."""
    return {"encore": __version__, "python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def hardware(device: str) -> dict[str, Any]:
    """The device, number of threads, and the processor with the vector instructions that torch uses.

    Another processor may round differently, which can change a generation from some token on.
    """
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "device": device, "name": name, "threads": torch.get_num_threads(), "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip


def _processor() -> str:
    """The processor's model, if the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "cpu")


def peak_bytes(device: str) -> int:
    """Peak memory of this process.

    On a GPU: torch's allocations since `reset_peak_bytes`. Else: resident memory since the process started, as the
    system records no other figure. For a resumed run this is the peak of the last process.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere


def reset_peak_bytes(device: str) -> None:
    """Restart the count of `peak_bytes`; has an effect on a GPU only."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, instead of returning large buffers to the system at every step.

    A training step of the embedded model took .42 s without and .32 s with it (two cores, Zen 4): a quarter of the time
    was spent on page faults. Has no effect with another C library.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version"):
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 256 << 20)
