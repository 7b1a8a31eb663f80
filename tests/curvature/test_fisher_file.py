"""A Fisher's file and its sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from encore.curvature import Fisher
from encore.curvature.fisher_file import read_about
from encore.errors import InputError


def fisher(seed: int = 0, samples: int = 3, mode: str = "empirical", model: str = "abc") -> Fisher:
    generator = torch.Generator().manual_seed(seed)
    values = {"a.weight": torch.rand(3, 2, generator=generator), "b": torch.rand(4, generator=generator).double()}
    return Fisher(values, samples, mode, model)


def test_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path, saved = tmp_path / "f.safetensors", fisher()
    saved.save(path, about={"clips": "xyz", "n": [1, 2]})
    found = Fisher.load(path)
    assert found.values.keys() == saved.values.keys()
    assert all(torch.equal(found.values[n], v) and found.values[n].dtype == v.dtype for n, v in saved.values.items())
    assert (found.samples, found.mode, found.model) == (3, "empirical", "abc")
    assert read_about(path) == {"clips": "xyz", "n": [1, 2]}
    fisher(1).save(path)
    assert not torch.equal(Fisher.load(path).values["b"], saved.values["b"])
    assert [file.name for file in tmp_path.iterdir()] == ["f.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    with pytest.raises(InputError, match="can't be read"):
        Fisher.load(path)
    fisher().save(path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        Fisher.load(path)
    path.write_bytes(data[:-5])
    with pytest.raises(InputError, match="can't be read"):
        Fisher.load(path)
    save_file({"b": torch.ones(2)}, path)
    with pytest.raises(InputError, match="holds no Fisher"):
        Fisher.load(path)


def test_merging_adds_values_and_samples() -> None:
    one, two = fisher(0), fisher(1, samples=4)
    before = one.values["b"].clone()
    both = one.merge(two)
    assert both.samples == 7
    assert torch.equal(both.values["b"], one.values["b"] + two.values["b"])
    assert torch.equal(one.values["b"], before)


def test_only_like_is_merged_with_like() -> None:
    for other in (fisher(mode="sampled"), fisher(model="def")):
        with pytest.raises(InputError, match="different model or mode"):
            fisher().merge(other)
    other = fisher()
    del other.values["b"]
    with pytest.raises(InputError, match="different parameters"):
        fisher().merge(other)
