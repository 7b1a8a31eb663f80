"""Specs and data of the public contract."""

import subprocess
import sys

import pytest
import torch

from encore.api import Batch, Clip, MethodSpec, MetricSpec


def test_importing_the_contract_costs_nothing():
    code = "import sys, encore.api; print([m for m in ('torch', 'pydantic', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_spec_takes_any_set_of_needs():
    assert MethodSpec("a", "b", "c:D", needs={"retain"}).needs == frozenset({"retain"})
    assert hash(MethodSpec("a", "b", "c:D", needs={"retain"}))


def test_spec_refuses_what_cannot_be_needed():
    with pytest.raises(ValueError, match=r"method 'a' needs \['gold'\]"):
        MethodSpec("a", "b", "c:D", needs={"gold"})  # no method may read gold
    assert MetricSpec("a", "b", "c:D", needs={"gold"}).needs == {"gold"}


def test_batch_pads_to_the_longest_clip():
    clips = [Clip("one", "quiet", torch.ones(2, 3, dtype=torch.int64)), Clip("two", "loud", torch.full((2, 5), 7))]
    batch = Batch.of(clips)
    assert batch.codes.tolist() == [[[1, 1, 1, 0, 0]] * 2, [[7] * 5] * 2]
    assert batch.frames.tolist() == [3, 5]
    assert batch.captions == ["quiet", "loud"]
    assert len(batch) == 2
    assert (batch.noise_index, Batch.of(clips, noise_index=3).noise_index) == (0, 3)
