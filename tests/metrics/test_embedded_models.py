"""The embedded models: what they were built to be, seen through the metrics that will judge others by them."""

from __future__ import annotations

import math

import pytest
import torch
from tests import embedded

from encore import plugins
from encore.api import Batch, Result
from encore.evaluate.evaluation import SharedEvaluation
from encore.results.findings import findings
from encore.results.targets import summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]  # a full evaluation of four models comes first


@pytest.fixture(scope="module")
def evaluation() -> SharedEvaluation:
    return embedded.evaluation()


@pytest.fixture(scope="module")
def rows() -> list[Result]:
    return embedded.rows()


@pytest.fixture(scope="module")
def value(rows):
    found = {(row.metric, row.model, row.set): row.value for row in rows}
    return lambda metric, model, clips="forget": found[metric, model, clips]


def test_base_has_memorised_and_gold_has_not(value):
    assert value("verbatim", "base") >= 0.8
    assert value("verbatim", "base", "retain") >= 0.8
    assert value("verbatim", "gold") == value("verbatim", "base", "holdout") == 0
    assert value("membership_auc", "base") > 0.95
    assert value("extraction_strength_codebook_0", "base") > 0.5 > value("extraction_strength_codebook_0", "gold")


def test_both_are_models_of_music(value):
    for role in embedded.NAMES:
        assert value("nll", role, "holdout") <= 0.9 * math.log(512)


def test_base_is_farther_from_gold_than_seed_noise(value):
    assert value("kl_gold", "base") > 1.25 * value("kl_gold", "gold2")
    assert value("relearn", "base") < 0.5 * value("relearn", "gold") < value("relearn", "control")


def test_the_sets_do_not_differ_without_a_model(value):
    assert 0.25 < value("membership_auc_baseline", "none") < 0.75


def test_the_model_free_baseline_warns_of_nothing(rows):
    baseline = {row.metric: row for row in rows if row.metric.startswith("membership_auc_baseline")}
    assert len(baseline) == 4
    assert {row.note for row in baseline.values()} == {None}


def test_gold_itself_meets_the_targets_of_forgetting(rows):
    judged = {line.metric: line.met for line in summary(rows) if line.set == "forget" and line.met is not None}
    default = {row.name for metric in plugins.metrics() if not metric.spec.full for row in metric.spec.rows}
    assert judged.keys() & default == {
        "kl_gold", "nll", "nll_beginning", "relearn", "verbatim", "verbatim_caption",
        "extraction_strength_codebook_0", "membership_auc",
        "paraphrased_once_nll", "paraphrased_once_verbatim", "paraphrased_once_verbatim_caption",
        "unconditional_nll", "unconditional_verbatim", "unconditional_generation",
    }  # fmt: skip
    assert all(judged.values())
    assert not [finding for finding in findings(rows) if finding.text.startswith("nothing measurable")]


def test_a_proved_replay_is_what_decoding_plays(evaluation):
    """The shortcut of `continuations`, against decoding every retain track."""
    clips = evaluation.clips["retain"]
    gold, prompt = evaluation.backend("gold"), 50
    played = gold.generate(
        [clip.caption for clip in clips], seconds=3.2, prompt=torch.stack([clip.codes[:, :prompt] for clip in clips]),
        temperature=0.0, guidance=1.0,
    )  # fmt: skip
    predicted = gold.token_mask(Batch.of(clips))
    proved = 0
    continued = evaluation.continuations("gold", "retain", prompt)
    for mine, own, clip, mask in zip(continued, played, clips, predicted, strict=True):
        if torch.equal(mine, clip.codes):
            assert ((own == mine) | ~mask).all()
            proved += 1
    assert proved > 0


def test_every_row_has_a_figure_or_a_reason(rows):
    for row in rows:
        assert (row.value is None) == (row.why is not None)
        assert row.value is None or row.low is None or row.low <= row.value <= row.high
