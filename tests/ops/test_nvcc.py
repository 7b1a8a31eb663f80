from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from encore.ops import nvcc

SOURCES = Path(__file__).parents[2] / "csrc"


def fake_torch(cuda: str | None = "13.0", *capabilities: tuple[int, int]):
    devices = SimpleNamespace(
        is_available=lambda: bool(capabilities),
        device_count=lambda: len(capabilities),
        get_device_capability=lambda device: capabilities[device],
    )
    return SimpleNamespace(version=SimpleNamespace(cuda=cuda), cuda=devices)


def flags(stem: str, *archs: str) -> list[str]:
    return nvcc.architecture_flags(Path(f"{stem}.cu"), list(archs))


def test_a_torch_without_cuda_gets_no_kernels(tmp_path):
    kernels = nvcc.compile_kernels(SOURCES, tmp_path, fake_torch(None))
    assert kernels == nvcc.Kernels("this torch was built without CUDA")


def test_without_nvcc_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc.shutil, "which", lambda name: None)
    assert nvcc.compile_kernels(SOURCES, tmp_path, fake_torch()).why == "there is no nvcc"


@pytest.mark.parametrize(
    ("asked", "capabilities", "archs"),
    [
        ("8.0;9.0+PTX", [], ["8.0", "9.0+PTX"]),
        ("8.6 10.0a", [(9, 0)], ["8.6", "10.0a"]),
        ("", [(9, 0), (8, 0), (9, 0)], ["8.0", "9.0"]),
        ("Hopper", [], ["8.0", "9.0+PTX"]),  # names are not read
    ],
)
def test_architectures(monkeypatch, asked, capabilities, archs):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert nvcc._archs(fake_torch("13.0", *capabilities)) == archs


def test_the_hopper_kernel_is_built_for_hopper_alone():
    assert flags("sm80", "8.0", "9.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert flags("sm90", "8.0", "9.0+PTX") == ["-gencode=arch=compute_90a,code=sm_90a"]


def test_what_goes_wrong_is_a_reason_and_no_error(tmp_path, monkeypatch):
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho no such card >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(nvcc, "_nvcc", lambda: str(broken))
    kernels = nvcc.compile_kernels(SOURCES, tmp_path / "out", fake_torch())
    assert "no such card" in kernels.why
    assert not kernels.objects


@pytest.mark.slow
@pytest.mark.skipif(nvcc._nvcc() is None, reason="there is no nvcc")
def test_objects(tmp_path, monkeypatch):
    """Of some kernels, the one for Hopper among them; tools/check_cuda.sh compiles all, with optimisation."""
    sources = Path(shutil.copytree(SOURCES, tmp_path / "csrc"))
    for stem in ("simt", "fold", "sm80"):
        (sources / f"cuda/{stem}.cu").unlink()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    quick = ["-O0", "-Xcicc", "-O0", "-Xptxas", "-O0"]
    monkeypatch.setattr(nvcc, "FLAGS", [*(flag for flag in nvcc.FLAGS if flag != "-O3"), *quick])
    kernels = nvcc.compile_kernels(sources, tmp_path, fake_torch())
    assert kernels.why == ""
    assert kernels.archs == "8.0 9.0a"
    assert {Path(path).stem for path in kernels.objects} == {"pack", "sm90", "launch"}
    assert any(list(Path(folder).glob("libcudart_static.a")) for folder in kernels.folders)


def test_an_extension_is_given_what_it_needs(tmp_path, monkeypatch):
    found = nvcc.Kernels("", "8.0 9.0a", (str(SOURCES / "cuda" / "register.cpp"),), ("simt.o",), ("/cuda/lib64",))
    monkeypatch.setattr(nvcc, "compile_kernels", lambda *_: found)
    lists = ("sources", "extra_objects", "library_dirs", "libraries", "define_macros")
    extension = SimpleNamespace(**{name: [] for name in lists})
    nvcc.add_kernels(extension, SOURCES, tmp_path, fake_torch())
    assert extension.sources == ["csrc/cuda/register.cpp"], "setuptools wants a path relative to the project"
    assert extension.extra_objects == ["simt.o"]
    assert extension.library_dirs == ["/cuda/lib64"]
    assert "torch_cuda" in extension.libraries
    assert extension.define_macros == [("ENCORE_CUDA_ARCHS", '"8.0 9.0a"')]
