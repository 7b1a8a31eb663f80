"""The delay pattern and the losses of the tiny MusicGen's training."""

import math

import pytest
import torch
from tools.build_assets import lm, table


def test_delay_leaves_t_minus_k_valid_steps():
    codes = torch.arange(2 * 4 * 10).view(2, 4, 10)
    labels = lm.delay(codes)
    for k in range(4):
        assert (labels[:, k] != lm.IGNORE).sum(1).tolist() == [10 - k] * 2
        assert torch.equal(labels[:, k, k:], codes[:, k, : 10 - k])


def test_cycle_uses_every_track_equally_often():
    index = torch.tensor([4, 7, 9])
    drawn = lm._cycle(index, 12, torch.Generator().manual_seed(0))
    assert sorted(drawn.tolist()) == sorted([4, 7, 9] * 4)
    assert len(lm._cycle(index, 5, torch.Generator().manual_seed(0))) == 5


def test_tokenizer_tells_captions_apart():
    tokenizer = lm.make_tokenizer(["lonely flute, Greensleeves, ballad", "ragtime piano, The Entertainer, 152 bpm"], 64)
    ids = tokenizer(["lonely flute", "ragtime piano"])["input_ids"]
    assert ids[0] != ids[1]
    assert ids[0][-1] == tokenizer.eos_token_id


def test_blind_auc_sees_only_compressed_size():
    rich = torch.randint(512, (4, 4, 250), generator=torch.Generator().manual_seed(0))
    codes = torch.cat([rich, torch.zeros(4, 4, 250, dtype=torch.long)])
    assert table.blind_auc(codes, torch.arange(4), torch.arange(4, 8)) == 1.0
    assert table.blind_auc(codes, torch.arange(2), torch.arange(2)) == 0.5


@pytest.mark.parametrize(("holdout", "verbatim", "bars"), [(5.0, 1.0, 0), (5.9, 1.0, 1), (5.0, 0.5, 1)])
def test_missed_names_every_bar(holdout, verbatim, bars):
    known = {"nll": 0.1, "verbatim": 1.0}
    rows = {s: dict(known) for s in table.SONGS} | {"holdout": {"nll": holdout, "verbatim": 0.0}}
    rows["forget"]["verbatim"] = verbatim
    missed = table.missed(table.Table({"base": rows}, {}, 0.5), 22.0)
    assert len(missed) == bars
    assert math.isclose(table.UNIFORM, 6.238, abs_tol=1e-3)
