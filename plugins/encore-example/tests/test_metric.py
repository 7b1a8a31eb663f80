"""The entropy of distributions whose entropy is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from encore.api import Clip, Result

from encore_example import encore_register_metrics
from encore_example.metric import Entropy, near_gold

CODEBOOKS, FRAMES, VOCABULARY = 2, 5, 8


class Backend:
    """Uniform over the first `choices` codes, and NaN where no token is predicted, as a real model may be."""

    device = "cpu"

    def __init__(self, choices):
        self.choices = choices

    def token_mask(self, batch):
        mask = torch.arange(batch.codes.shape[-1]) < batch.frames[:, None]  # [N, T]
        return mask[:, None].expand(batch.codes.shape)

    def logits(self, batch):
        logits = torch.full((*batch.codes.shape, VOCABULARY), -math.inf)
        logits[..., : self.choices] = 0
        logits[~self.token_mask(batch)] = math.nan
        return logits


def clip(track, frames):
    return Clip(track, "a caption", torch.zeros(CODEBOOKS, frames, dtype=torch.int64))


def evaluation(clips):
    models = {"base": Backend(1), "unlearned": Backend(4)}
    return SimpleNamespace(models=models, backend=models.get, clips={"forget": clips}, batches=lambda clips: [clips])


def test_entropy_of_known_distributions():
    rows = list(Entropy().measure(evaluation([clip("a", FRAMES), clip("a", FRAMES - 2), clip("b", FRAMES)])))
    assert [(row.model, row.set, row.n) for row in rows] == [("base", "forget", 2), ("unlearned", "forget", 2)]
    assert rows[0].value == pytest.approx(0)
    assert rows[1].value == pytest.approx(math.log(4))
    assert rows[1].per_track == pytest.approx({"a": math.log(4), "b": math.log(4)})


@pytest.mark.parametrize(("unlearned", "met"), [(1.79, False), (1.81, True), (2.5, True)])
def test_the_target_is_nine_tenths_of_golds_entropy(unlearned, met):
    rows = {
        model: Result("example_entropy", model, "forget", x) for model, x in (("unlearned", unlearned), ("gold", 2.0))
    }
    assert near_gold(rows) is met
    with pytest.raises(KeyError):
        near_gold({"unlearned": rows["unlearned"]})


def test_every_row_with_a_target_has_a_rule():
    (spec,) = encore_register_metrics()
    assert [(row.set, bool(row.target), bool(row.judge)) for row in spec.rows] == [
        ("forget", True, True), ("retain", False, False),
    ]  # fmt: skip
