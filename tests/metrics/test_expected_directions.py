"""What theory says of the embedded models, as a table: base knows the forget tracks by heart, gold never heard them.

The rows come from one full evaluation, in which the method is perfect (gold itself) and the two fakes stand beside it.
"""

from __future__ import annotations

import pytest
from tests import embedded
from tests.metrics.fakes import balks, broken

from encore import stats
from encore.api import Result
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.results.findings import findings
from encore.results.targets import summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]  # a full evaluation of four models, unless it is there

# metric, base at least, base at most, gold at least, gold at most; on forget. None: nothing is expected.
EXPECTED = [
    ("nll", 0, 0.1, 3, 6),
    ("verbatim", 0.9, 1, 0, 0),
    ("verbatim_exact", 0.9, 1, 0, 0),
    ("verbatim_codes", 0.95, 1, 0, 0.1),
    ("verbatim_caption", 0.9, 1, 0, 0),
    ("verbatim_elsewhere", 0, 0, 0, 0),  # base gives each track to its own caption
    ("verbatim_offset", None, None, 0, 0),  # base was trained on whole windows alone
    ("sampled_verbatim", 0.9, 1, 0, 0),
    ("sampled_verbatim_caption", 0.1, 1, 0, 0),
    ("soft_prompt_nll", 0, 0.1, 3, 6),
    ("soft_prompt_verbatim", 0.9, 1, 0, 0),
    ("artefacts", 0, 0, 0, 0),
    ("unconditional_nll", 0, 0.1, 3, 6),
    ("unconditional_verbatim", 0.9, 1, 0, 0),
    ("unconditional_generation", 0, 1, 0, 0),
    ("paraphrased_once_nll", 0, 0.1, 3, 6),
    ("paraphrased_once_verbatim", 0.9, 1, 0, 0),
    ("paraphrased_once_verbatim_caption", 0.5, 1, 0, 0),
    ("extraction_strength", 0.5, 1, 0, 0.1),
    ("membership_auc", 0.95, 1, 0.25, 0.8),
    ("membership_auc_mink", 0.95, 1, 0.25, 0.8),
    ("membership_auc_zlib", 0.95, 1, 0.25, 0.8),
    ("membership_auc_minkpp", 0.95, 1, 0.25, 0.8),
    ("membership_auc_gradnorm", 0.95, 1, 0.25, 0.8),
    ("membership_auc_reference", 0.95, 1, None, None),  # two golds of eight tracks differ by chance
    ("membership_p", 0, 0.01, 0.05, 1),
    ("dataset_inference", 0, 0.01, 0.05, 1),
    ("unlearning_inference_p", 0, 0.01, 0.05, 1),
    ("relative_audit", 0.1, 1, -1, -0.1),
    ("depth", 0, 0, 1, 1),
    ("relearn", 0, 0.1, 2, 6),
    ("relearn_retain", 0, 0.5, 3, 6),
    ("relearn_holdout", 0, 1, 3, 6),
    ("relearn_one", 0, 0.5, 3, 6),
    ("quantised_8bit_verbatim", 0.9, 1, 0, 0),
    ("quantised_4bit_verbatim", 0.9, 1, 0, 0),
    ("paraphrased_nll", 0, 0.1, 3, 6),
    ("paraphrased_verbatim", 0.9, 1, 0, 0),
    ("paraphrased_verbatim_caption", 0.9, 1, 0, 0),
    ("prompt_reencoded_verbatim", 0.5, 1, 0, 0),
    ("prompt_time_stretched_verbatim", None, None, 0, 0),
    ("prompt_pitch_shifted_verbatim", None, None, 0, 0),
    ("similarity_chroma_flagged", 0.9, 1, 0, 0.25),
    ("similarity_melody_flagged", 0.9, 1, 0, 0.25),
    ("similarity_onset_flagged", 0.9, 1, 0, 0.25),
    ("similarity_bleu_flagged", 0.9, 1, 0, 0.25),
    ("similarity_edit_flagged", 0.9, 1, 0, 0.25),
    ("similarity_embedding_flagged", 0.9, 1, 0, 0.25),
    ("artist_attribution", 0.4, 1, 0, 0.4),  # through latents; clap-tiny tells few of these tracks apart
    ("artist_rank", 1, 4, 4, 21),
]


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


def between(value, least, most):
    return least is None or least <= value <= most


@pytest.mark.parametrize(("metric", "low", "high", "gold_low", "gold_high"), EXPECTED, ids=[row[0] for row in EXPECTED])
def test_direction(value, metric, low, high, gold_low, gold_high):
    base, gold = value(metric, "base"), value(metric, "gold")
    assert between(base, low, high), f"base {base}"
    assert between(gold, gold_low, gold_high), f"gold {gold}"


def test_gold_is_told_from_gold_no_better_than_gold2(value):
    assert value("kl_gold", "base") > 1.25 * value("kl_gold", "gold2") > 0
    assert value("kl_gold", "unlearned") == pytest.approx(0, abs=1e-6)
    assert value("gold_ks", "base") < 0.01 < 0.05 < value("gold_ks", "gold2")
    assert value("epsilon", "base") > 1.25 * value("epsilon", "gold2") > 0
    assert value("epsilon", "unlearned") == 0
    assert value("privleak", "base") == pytest.approx(-1)
    assert value("privleak", "unlearned") == 0


def test_the_difference_to_gold_reveals_more_of_the_tracks_than_base_alone(rows):
    """As Wu et al. find of retrained models; the unlearned model, gold itself here, reveals no more."""
    found = {(row.metric, row.model): row for row in rows}
    gold = found["reversed_guidance_nll", "gold"]
    alone = gold.details["nll"][gold.details["weights"].index(1.0)]
    assert gold.value < 0.95 * alone < 0.5 * gold.details["nll"][0]
    assert found["reversed_guidance_nll", "unlearned"].value == pytest.approx(gold.value)


def test_nothing_hides_from_an_attacker_who_also_has_base(value):
    for model in ("gold", "gold2", "unlearned"):
        assert value("unlearning_inference_auc_pair", model) == 1
        assert value("unlearning_inference_auc_pair_retain", model) == 1


def test_other_music_brings_nothing_back_in_gold_as_in_the_control(rows):
    """Relative to where they begin: training on other tracks is worth to gold what it is worth to a blank model."""
    found = {(row.metric, row.model): row for row in rows}
    for metric in ("relearn_retain", "relearn_holdout", "relearn_one"):
        kept = {role: _kept(found[metric, role]) for role in ("base", "gold", "control")}
        assert abs(kept["gold"] - kept["control"]) < 0.1


def _kept(row):
    return row.details["curve"][-1] / row.details["curve"][0]


def test_fad_of_a_set_against_itself_is_nothing(evaluation):
    vectors = evaluation.embeddings("base", "retain")[:, :8]
    low, high = stats.jackknife_interval(stats.frechet_distance, vectors, vectors)
    assert low <= 0 <= high
    assert stats.frechet_distance(vectors, vectors) == pytest.approx(0, abs=1e-9)


def test_noise_fits_no_caption_and_sounds_like_nothing_that_base_plays(evaluation, value):
    """Base and gold play the captions' music about as well as the tracks themselves do; an untrained model does not."""
    itself = value("clap_score_tiny", "none", "retain")
    assert abs(value("clap_score_tiny", "base", "retain") - itself) < 0.15
    assert abs(value("clap_score_tiny", "gold", "retain") - itself) < 0.15
    models = {"base": evaluation.models["base"], "unlearned": broken(evaluation.models["base"])}
    noise = evaluation.derive(models=models, clips={**evaluation.clips, "retain": evaluation.clips["retain"][:12]})
    found = {(row.metric, row.model): row for row in measure(noise, ["clap_score", "tag_kl", "mmd"])}
    told = found["clap_score_tiny", "unlearned"]
    assert told.value < min(found["clap_score_tiny", "base"].low, 0.5 * itself)
    assert found["tag_kl_clap_tiny", "unlearned"].value > 2 * value("tag_kl_clap_tiny", "gold", "retain")
    assert found["mmd_clap_tiny", "unlearned"].low > max(value("mmd_clap_tiny", "gold", "retain"), 0)


def test_generations_of_a_broken_model_are_named_and_those_of_gold_are_not(evaluation, value):
    assert value("artefacts", "gold", "retain") == 0
    models = {"base": evaluation.models["base"], "unlearned": broken(evaluation.models["base"])}
    noise = evaluation.derive(models=models, clips={**evaluation.clips, "retain": evaluation.clips["retain"][:4]})
    found = {(row.metric, row.model, row.set): row for row in measure(noise, ["artefacts"])}
    assert found["artefacts", "unlearned", "retain"].value == 1
    assert {kind for _, kind, *_ in found["artefacts", "unlearned", "retain"].details["flagged"]} == {"noise"}


def test_music_near_the_forgotten_is_kept_by_gold(value):
    assert value("neighbours_verbatim", "gold", "retain") == value("neighbours_rest_verbatim", "gold", "retain") == 1


def test_every_row_has_a_figure_or_a_reason(rows):
    assert all((row.value is None) == (row.why is not None) for row in rows)
    whys = {row.metric for row in rows if row.value is None}
    needs_files = {"mmd", "mmd_clap_tiny"}  # for the codec alone
    few = {"fad", "fad_inf", "fad_track"}  # through latents, which have as many dimensions as would take 384 tracks
    few |= {"fad_clap_tiny", "fad_inf_clap_tiny"}  # clap-tiny takes 20
    memorised = {"nll_not_memorised"}  # as every track of the split retain is
    other_models = {"chained_verbatim", "prompt_channels_nll"}  # tracks beyond a window, and stereo
    assert whys <= {*few, *memorised, *other_models, "fad_track_clap_tiny", "similarity_fingerprint"} | needs_files
    assert {row.model for row in rows if row.metric in needs_files and row.set == "retain" and row.why} == {"none"}


def test_gold_itself_gives_no_evidence_of_retention(rows):
    told = findings(rows)
    assert not [line for line in summary(rows) if line.met is False]
    assert not [finding for finding in told if finding.level == "fail"]
    assert not [finding for finding in told if "a simple prompt recovers" in finding.text]


@pytest.mark.parametrize("golds", [True, False])
def test_a_model_that_only_balks_at_the_captions_is_caught(evaluation, golds):
    captions = {clip.caption for clip in evaluation.clips["forget"]}
    told = _judged(evaluation, balks(evaluation.models["base"], captions), golds, "paraphrased")
    assert [text for level, text in told if level == "fail" and "1 s" in text], told
    assert [text for level, text in told if level == "fail" and "under paraphrases" in text], told
    assert not [text for _, text in told if text.startswith("no evidence")]


@pytest.mark.parametrize("golds", [True, False])
def test_a_model_that_is_merely_broken_is_caught(evaluation, golds):
    told = _judged(evaluation, broken(evaluation.models["base"]), golds)
    assert [text for level, text in told if level == "fail" and text.startswith("NLL, retain")], told
    assert [text for level, text in told if level == "fail" and "retain is lost" in text], told
    assert not [text for _, text in told if text.startswith("no evidence")]


def _judged(evaluation, fake, golds, *more):
    roles = {"base": evaluation.models["base"], "unlearned": fake}
    roles |= {"gold": evaluation.models["gold"]} if golds else {}
    rows = measure(evaluation.derive(models=roles), ["nll", "verbatim", "verbatim_caption", "membership_auc", *more])
    return [(finding.level, finding.text) for finding in findings(rows)]
