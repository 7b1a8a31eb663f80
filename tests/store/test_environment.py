"""Device, precision, versions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from encore.errors import UsageError
from encore.store.environment import hardware, peak_bytes, pick_device, pick_precision, reset_peak_bytes, versions


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == "cpu"
    for there, chosen, precision in ((True, "cuda", "bf16"), (False, "cpu", "fp32")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert pick_device("auto") == chosen
        assert pick_precision("auto", chosen) == precision


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(UsageError, match="can't be used"):
        pick_device(name)


@pytest.mark.parametrize(
    ("capabilities", "large"),
    [({"amx_tile": True}, "bf16"), ({"avx512_bf16": True, "amx_tile": False}, "bf16"), ({"avx512_f": True}, "fp32")],
)
def test_auto_takes_bf16_on_a_cpu_that_has_it_for_a_large_model_alone(monkeypatch, capabilities, large) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert pick_precision("auto", "cpu", 420_000_000) == large
    assert pick_precision("auto", "cpu", 2_400_000) == pick_precision("auto", "cpu") == "fp32"


def test_precision_as_named_or_refused() -> None:
    assert pick_precision("bf16", "cpu") == "bf16"
    assert pick_precision("fp32", "cuda") == "fp32"
    with pytest.raises(UsageError, match="'fp16' is not known"):
        pick_precision("fp16", "cpu")


def test_what_a_run_records() -> None:
    assert versions()["torch"] == torch.__version__
    assert all(isinstance(version, str) for version in versions().values())
    assert hardware("cpu")["device"] == "cpu"
    assert hardware("cpu")["threads"] >= 1
    assert hardware("cpu")["instructions"] in torch.__config__.show()


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="lscpu names the processor")
def test_a_processor_goes_by_its_model() -> None:
    told = subprocess.run(["lscpu"], env={"LC_ALL": "C"}, capture_output=True, text=True, check=True).stdout
    names = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("Model name:")]
    assert not names or hardware("cpu")["name"] in names


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process its peak there")
def test_peak_memory_is_what_the_system_tells_a_process() -> None:
    told = Path("/proc/self/status").read_text()
    peak = int(next(line for line in told.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    assert peak_bytes("cpu") == pytest.approx(peak, rel=0.01)


def test_a_gpus_peak_counts_from_the_start_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    reset_peak_bytes("cpu")
    assert reset == []
    reset_peak_bytes("cuda:1")
    assert reset == ["cuda:1"]
