from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from encore.tensor_cache import CacheWarning, TensorCache, digest

TENSORS = {
    "codes": torch.arange(24).reshape(2, 3, 4),
    "half": torch.randn(5, dtype=torch.bfloat16),
    "flag": torch.tensor(True),
    "none": torch.empty(0, 3),
}


class Maker:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> dict[str, Tensor]:
        self.asked += 1
        return dict(TENSORS)


def equal(got: dict[str, Tensor]) -> bool:
    return got.keys() == TENSORS.keys() and all(
        got[name].dtype == TENSORS[name].dtype and torch.equal(got[name], TENSORS[name]) for name in got
    )


def entry(folder: Path) -> Path:
    (path,) = folder.rglob("*.safetensors")
    return path


def test_what_was_made_once_is_kept(tmp_path: Path) -> None:
    make = Maker()
    assert equal(TensorCache(tmp_path).get_or_make(("codes", "a"), make))
    assert equal(TensorCache(tmp_path).get_or_make(("codes", "a"), make))
    assert make.asked == 1
    TensorCache(tmp_path).get_or_make(("codes", "b"), make)
    TensorCache(tmp_path).get_or_make(("codesa",), make)
    assert make.asked == 3


def test_results_are_the_callers_own(tmp_path: Path) -> None:
    source = torch.zeros(4, 6)
    cache = TensorCache(tmp_path)
    made = cache.get_or_make(("k",), lambda: {"a": source.T, "b": source})
    made["a"].add_(1)
    assert not source.any()
    assert made["a"].is_contiguous()
    assert not cache.get_or_make(("k",), Maker())["a"].any()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: (2**60).to_bytes(8, "little") + data[8:],
        lambda data: data.replace(b"I64", b"F64"),
        lambda data: data + b"x",
    ],
    ids=["cut", "empty", "bit flip", "lying header", "other type", "longer"],
)
def test_a_corrupt_entry_is_made_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    make, cache = Maker(), TensorCache(tmp_path)
    cache.get_or_make(("k",), make)
    path = entry(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert equal(cache.get_or_make(("k",), make))
    assert equal(cache.get_or_make(("k",), make))
    assert make.asked == 2


def test_an_entry_under_another_key_is_not_believed(tmp_path: Path) -> None:
    make, cache = Maker(), TensorCache(tmp_path)
    cache.get_or_make(("k",), make)
    cache.get_or_make(("other",), lambda: {"x": torch.zeros(1)})
    first, second = sorted(tmp_path.rglob("*.safetensors"))
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    assert equal(cache.get_or_make(("k",), make))


def test_nothing_is_kept_of_a_failure_and_no_staging_file_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no"):
        TensorCache(tmp_path).get_or_make(("k",), lambda: (_ for _ in ()).throw(RuntimeError("no")))
    assert not list(tmp_path.rglob("*"))
    TensorCache(tmp_path).get_or_make(("k",), Maker())
    assert not list(tmp_path.rglob(".staging-*"))
    assert stat.S_IMODE(entry(tmp_path).stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_folder_that_cannot_be_written_warns_once_and_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    make, cache = Maker(), TensorCache(tmp_path / "file" / "cache")
    with pytest.warns(CacheWarning, match="ENCORE_CACHE"):
        assert equal(cache.get_or_make(("k",), make))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(cache.get_or_make(("k",), make))
    assert make.asked == 2


def test_a_full_disk_leaves_no_half_entry(tmp_path: Path) -> None:
    code = f"""
        import resource, signal, torch, warnings
        from encore.tensor_cache import TensorCache
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        warnings.simplefilter("ignore")
        made = TensorCache({str(tmp_path)!r}).get_or_make(("k",), lambda: {{"a": torch.ones(10_000)}})
        assert made["a"].sum() == 10_000
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env={**os.environ, "PYTHONPATH": "src"})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_digest_sees_names_types_and_shapes() -> None:
    flat = torch.zeros(6)
    seen = {digest({"a": flat}), digest({"b": flat}), digest({"a": flat.reshape(2, 3)}), digest({"a": flat.int()})}
    assert len(seen) == 4
