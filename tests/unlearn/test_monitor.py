"""What counts as memorised, as harm, and as kept, on models whose NLLs are written in a table."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch

from encore.api import Batch, Clip
from encore.unlearn import monitor as judging
from encore.unlearn.monitor import Snapshot, StoppingMonitor


class Table:
    """A token model that has the NLL of each clip's caption written down."""

    has_tokens = True
    codebook_size = 512
    device = torch.device("cpu")

    def __init__(self, **nll: float) -> None:
        self.nll = nll
        self.asked = 0

    def losses(self, batch: Batch) -> torch.Tensor:
        self.asked += len(batch)
        return torch.tensor([self.nll[clip.caption] for clip in batch.clips], dtype=torch.float64)

    def token_mask(self, batch: Batch) -> torch.Tensor:
        return torch.ones(len(batch), 2, batch.codes.shape[-1], dtype=torch.bool)


def clips(*names: str) -> list[Clip]:
    """A clip each, of codes that no model predicts by their frequency; "long:2" is a second window of "long"."""
    return [Clip(name.partition(":")[0], name, torch.arange(512).reshape(2, 256)) for name in names]


FORGET, HOLDOUT = {"f1": 0.1, "f2": 0.2}, {"h1": 4.0, "h2": 5.0}


def judge(
    retain: dict[str, float], forget: dict[str, float] = FORGET, holdout: dict[str, float] = HOLDOUT
) -> StoppingMonitor:
    backend = Table(**forget, **retain, **holdout)
    return StoppingMonitor(backend, clips(*forget), clips(*retain), clips(*holdout), seed=0)  # type: ignore[arg-type]


def after(made: StoppingMonitor, **changed: float) -> Snapshot:
    """A look at the model with these clips' NLLs changed."""
    made.backend.nll.update(changed)  # type: ignore[attr-defined]
    return made.snapshot()


def many(prefix: str, count: int, nll: float) -> dict[str, float]:
    return {f"{prefix}{i}": nll for i in range(count)}


def test_case_D14_the_loss_of_memorised_tracks_is_not_averaged_away() -> None:
    """12 memorised of 32 retain tracks go from .082 to .534: 5 % of the mean of all, none is verbatim any more."""
    memorised, other = many("m", 12, 0.082), many("o", 20, 5.44)
    made = judge({**memorised, **other})
    assert set(made.first.memorised) == set(memorised)
    assert len(made.first.not_memorised) == judging.WATCHED
    assert made.first.retain_ok
    harmed = after(made, **dict.fromkeys(memorised, 0.534))
    of_all = sum(made.backend.nll[name] for name in (*memorised, *other)) / 32  # type: ignore[attr-defined]
    assert of_all - 3.43 < 0.05 * 3.43 + 0.01  # what the mean of all would have let pass
    assert not harmed.retain_ok
    assert harmed.worst_harm == pytest.approx((0.534 - 0.082) / 0.03)
    assert harmed.score > made.first.score


def test_case_D14_one_lost_track_is_not_averaged_away_and_is_named() -> None:
    made = judge(many("m", 16, 0.02))
    near = after(made, m3=0.26)  # .015 on the mean
    assert near.retain_ok
    assert near.worst == "m3"
    lost = after(made, m3=0.28)
    assert lost.harm["memorised"] < 1 < lost.harm["worst"] == lost.worst_harm
    assert (lost.retain_ok, lost.worst) == (False, "m3")


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"o0": 3.6, "o1": 3.8}, True), ({"o0": 3.7, "o1": 3.9}, False), ({"o0": 2.5, "o1": 2.6}, True),
        ({"h1": 4.1, "h2": 5.15}, True), ({"h1": 4.2, "h2": 5.2}, False), ({"h1": 3.8, "h2": 4.8}, False),
        ({"m0": 0.045}, True), ({"m0": 0.055}, False), ({"m0": 0.0}, True),
        ({"m0": math.nan}, False), ({"o0": math.inf}, False), ({"h1": math.nan}, False),
    ],
)  # fmt: skip
def test_what_may_be_lost(changed: dict[str, float], kept: bool) -> None:
    """Retain may get better; held-out music may not drift on either side; what is not finite is lost."""
    assert after(judge({"m0": 0.02, "o0": 3.4, "o1": 3.6}), **changed).retain_ok is kept


@pytest.mark.parametrize(
    ("nll", "lost"), [({"m0": 3.3, "m1": 3.4}, False), ({"m0": 3.4, "m1": 3.4}, True), ({"m0": math.nan}, True)]
)
def test_memorised_retain_is_lost_near_the_nll_of_new_music(nll: dict[str, float], lost: bool) -> None:
    """Three quarters of 4.5."""
    watched = judge(many("m", 2, 0.02) | many("o", 2, 4.0))
    watched.backend.nll.update(nll)  # type: ignore[attr-defined]
    assert watched.has_lost_memorised() is lost
    none = judge(many("o", 2, 4.0))
    none.backend.nll.update(o0=9.0)  # type: ignore[attr-defined]
    assert not none.has_lost_memorised()


def test_a_base_without_holdout_has_memorised_what_is_far_below_chance() -> None:
    made = judge({"m": 0.5, "o": 3.0}, holdout={})
    assert (list(made.first.memorised), list(made.first.not_memorised)) == (["m"], ["o"])
    assert (made.holdout_nll, made.first.target_nll, made.first.harm.keys()) == (
        None,
        {},
        {"memorised", "worst", "not_memorised"},
    )
    assert not made.first.reached("f1")
    assert after(made, f1=3.0).score < made.first.score  # the more is forgotten, the better
    assert after(made, f1=math.inf).score == math.inf  # but for what is not finite


def test_a_track_is_watched_where_the_base_knows_it_best() -> None:
    """A master of which two of nine windows were trained on is memorised, there."""
    made = judge({**{f"long:{i}": 5.0 for i in range(7)}, "long:7": 0.04, "long:8": 0.1, "o": 5.0})
    assert made.first.memorised == {"long": 0.04}
    assert made.first.not_memorised == {"o": 5.0}


def test_of_a_large_catalogue_a_sample_is_classified() -> None:
    made = judge({**many("m", 100, 0.1), **many("o", 100, 4.5), **{f"long:{i}": 4.5 for i in range(500)}})
    assert made.classified == judging.SAMPLE  # a second window of no track before the first of all
    assert len(made.first.memorised) == len(made.first.not_memorised) == judging.WATCHED
    assert made.watched == 2 * judging.WATCHED
    before = made.backend.asked  # type: ignore[attr-defined]
    made.snapshot()
    assert made.backend.asked - before == 2 + 2 * judging.WATCHED + 2  # type: ignore[attr-defined]
    assert before == 2 + judging.SAMPLE + 2 * judging.WATCHED + 2  # the sample, and a look


def test_every_track_has_a_level_of_its_own() -> None:
    made = judge({"m": 0.02})
    assert made.first.target_nll == {"f1": 4.5, "f2": 4.5}
    made.set_targets({"f1": 3.0, "f2": 5.0})
    assert made.first.target_nll == {"f1": 3.0, "f2": 5.0}
    now = after(made, f1=2.9, f2=4.7)
    assert (now.reached("f1"), now.reached("f2")) == (True, False)
    assert now.score == pytest.approx((0.1 / 0.3 + 0.3 / 0.5) / 2)
    assert after(made, f1=3.1, f2=5.3).score == pytest.approx(now.score)  # as far on the other side
    assert after(made, f1=3.0, f2=5.0).score == pytest.approx(0)


def test_a_look_survives_a_checkpoint() -> None:
    look = after(judge({"m": 0.02, "o": 4.0}), m=0.03)
    assert Snapshot(**asdict(look)) == look


def test_codes_that_any_model_predicts_are_not_memorised() -> None:
    """Near-silence costs little under any model, and must not be kept, or missed, as a memorised track is."""
    backend = Table(**FORGET, **HOLDOUT, music=0.2, tone=0.2)
    music, tone = clips("music")[0], Clip("tone", "tone", torch.zeros(2, 256, dtype=torch.long))
    made = StoppingMonitor(backend, clips(*FORGET), [music, tone], clips(*HOLDOUT), seed=0)  # type: ignore[arg-type]
    assert (made.first.memorised, made.first.not_memorised) == ({"music": 0.2}, {"tone": 0.2})


def test_held_out_tracks_that_the_base_has_memorised_are_named() -> None:
    assert judge({"a": 0.1}).memorised_holdout == []
    assert judge({"a": 0.1}, holdout={"h1": 0.05, "h2": 4.0, "h3": 0.01}).memorised_holdout == ["h1", "h3"]
