"""The ten guards of an evaluation that must not fool anybody, each on models or rows that would get past without it."""

from __future__ import annotations

import re

import pytest
import torch
from tests.latent_model import LatentBackend, latent_clips
from tests.metrics.fakes import balks, broken
from tests.metrics.markov import FORGET, MarkovBackend, clips, models, track
from tests.metrics.utility.test_fad import Loudness
from tests.tiny_model import CAPTIONS, write_tiny_musicgen

from encore import assets, plugins
from encore.api import Clip
from encore.backends.musicgen import MusicgenBackend
from encore.data.catalog import Catalog
from encore.data.encode import TrackEncoder
from encore.data.open_files import file_sha256
from encore.data.splits import reported
from encore.data.tracks import Track
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.hashing import module_sha256
from encore.results.findings import findings
from encore.results.targets import summary
from encore.tensor_cache import TensorCache

METRICS = [entry.spec.name for entry in plugins.metrics() if entry.spec.target.startswith("encore.")]
NOTICED = re.compile(r"\b(deleted?|erased?|removed|proves?|proof|guaranteed?)\b", re.IGNORECASE)


def evaluated(unlearned=None, *, metrics=METRICS, sets=None, without=(), about=None):
    roles = models() | ({"unlearned": unlearned} if unlearned is not None else {})
    for role in without:
        del roles[role]
    shared = SharedEvaluation(roles, sets or clips(30), embedder=Loudness(), track_metadata=about)
    return measure(shared, list(metrics))


def failures(rows):
    return [finding.text for finding in findings(rows) if finding.level == "fail"]


def texts(rows):
    return [finding.text for finding in findings(rows)]


# 1. Over-unlearning is a failure.
def test_a_model_that_shuns_the_tracks_fails_and_is_told_of():
    rows = evaluated(models(forgotten=-6.0)["unlearned"], metrics=["nll"])
    assert any(text.startswith("NLL, forget") for text in failures(rows))
    assert any("over-forgotten" in text for text in texts(rows))
    gap = next(r for r in rows if (r.metric, r.model, r.set) == ("nll_gap_gold", "unlearned", "forget"))
    assert gap.value > 0.5


# 2. Never memorised.
def test_where_base_never_knew_the_tracks_forgetting_them_is_no_achievement():
    ignorant = MarkovBackend(dict.fromkeys((4, 5, 6), 6.0), noise=0.1, seed=5)
    shared = SharedEvaluation(models() | {"base": ignorant}, clips(30), embedder=None)
    rows = measure(shared, ["verbatim", "verbatim_caption", "membership_auc"])
    assert any(text.startswith("nothing measurable to forget") for text in texts(rows))
    assert not any(text.startswith("nothing measurable") for text in texts(evaluated(metrics=["verbatim"])))


# 3. Forget and holdout from different sources.
def test_sets_that_differ_without_any_model_are_warned_of():
    random = torch.Generator().manual_seed(0)
    other = [Clip(f"r{i}", "step 1", torch.randint(0, 11, (2, 30), generator=random)) for i in range(3)]
    rows = evaluated(metrics=["membership_auc_baseline", "membership_auc"], sets=clips(30) | {"holdout": other})
    assert any("without any model" in finding.text for finding in findings(rows) if finding.level == "warn")


# 4. FAD at small n.
def test_a_fad_of_few_generations_is_refused_and_mmd_stands_beside_it():
    rows = {row.metric: row for row in evaluated(metrics=["fad", "mmd"]) if row.model == "unlearned"}
    assert rows["fad"].value is None
    assert "mostly bias" in rows["fad"].why
    assert rows["mmd"].value is not None


# 5. Means hide the worst track.
def test_one_track_that_is_still_known_fails_the_mean_and_is_named():
    forgetful = MarkovBackend(dict.fromkeys((4, 5, 6), 6.0) | {1: -1.25, 2: 6.0, 3: -1.25}, noise=0.1)
    rows = evaluated(forgetful, metrics=["nll", "verbatim"])
    gap = next(r for r in rows if (r.metric, r.model, r.set) == ("nll_gap_gold", "unlearned", "forget"))
    assert abs(gap.value) < 0.1  # the mean is where it should be
    assert any(text.startswith("NLL, forget") for text in failures(rows))
    assert any(text.startswith("best remembered of the forget tracks: track02") for text in texts(rows))
    line = next(line for line in summary(rows) if (line.metric, line.set) == ("nll", "forget"))
    assert line.worst[0] == "track02"


# 6. Suppression is not removal.
def test_attacks_belong_to_the_full_set_and_relearning_to_every_evaluation():
    specs = {entry.spec.name: entry.spec.full for entry in plugins.metrics()}
    attacks = {"relearn_others", "relearn_one", "quantised", "paraphrased"}
    attacks |= {"prompt_reencoded", "prompt_time_stretched", "prompt_pitch_shifted", "prompt_channels"}
    attacks |= {"sampled_verbatim", "chained_verbatim", "soft_prompt"}
    assert attacks <= {name for name, full in specs.items() if full}
    assert specs["relearn"] is False


@pytest.mark.parametrize("without", [(), ("gold", "gold2"), ("base", "gold", "gold2")])
def test_a_model_that_only_balks_at_the_caption_is_caught(without):
    fake = balks(models()["base"], {f"step {n}" for n in FORGET})
    rows = evaluated(fake, without=without)
    nll = {row.model: row.value for row in rows if (row.metric, row.set) == ("nll", "forget")}
    assert nll["unlearned"] > 2.3  # a guess among eleven: as a model that never heard them
    assert any("1 s" in text for text in failures(rows)), texts(rows)
    assert not any(text.startswith("no evidence") for text in texts(rows))


@pytest.mark.parametrize("without", [(), ("gold", "gold2"), ("base", "gold", "gold2")])
def test_a_model_that_is_merely_broken_everywhere_is_caught(without):
    rows = evaluated(broken(models()["base"]), without=without)
    assert any("retain is lost" in text for text in texts(rows))
    assert "base" in without or any(text.startswith("NLL, retain") for text in failures(rows))


# 7. Neighbours.
def test_neighbours_that_are_lost_fail_though_retain_as_a_whole_does_not():
    about = {"track01": {"genre": "waltz"}, "track04": {"genre": "waltz"}}
    far = {f"far{n}": track(5, 30, name=f"far{n}") for n in range(40)}
    kept = MarkovBackend({4: 4.0, 5: 6.0, 6: 6.0}, noise=0.1)
    sets = clips(30) | {"retain": [track(4, 30), *far.values()]}
    rows = evaluated(kept, metrics=["nll", "neighbours"], sets=sets, about=about)
    assert [text for text in failures(rows) if text.startswith("NLL, retain")] == [
        text for text in failures(rows) if text.startswith("NLL, retain near the forgotten")
    ]
    assert any(text.startswith("NLL, retain near the forgotten") for text in failures(rows))


# 8. Selection on test.
def test_what_is_reported_shares_no_track_with_what_was_tuned_on():
    catalog = Catalog.open(assets.CATALOG)
    splits = {name: {t.sha256 for t in catalog.tracks(split=name)} for name in catalog.splits}
    tuned, shown = (
        set().union(*(splits[name] for name in names))
        for names in (("tune_forget", "tune_retain"), ("forget", "retain", "holdout"))
    )
    assert tuned
    assert not tuned & shown
    everything = reported(catalog.tracks(), 32, 0)
    assert {track.meta["split"] for track in everything} == {"retain"}


# 9. Caches are keyed by weight hash. No silent fallback, no null.
def test_another_codec_is_not_served_from_the_cache(tmp_path, studio):
    model = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path / "model")))
    file = studio / "music/one.wav"
    cache, song = TensorCache(tmp_path / "cache"), Track("t", file, CAPTIONS[0], file_sha256(file))
    (first,) = TrackEncoder(model, cache).encode([song])
    with torch.no_grad():
        for layer in model.model.audio_encoder.quantizer.layers:
            layer.codebook.embed.copy_(layer.codebook.embed.roll(1, 0))
    (second,) = TrackEncoder(model, cache).encode([song])
    assert not torch.equal(first.clips[0].codes, second.clips[0].codes)


def test_no_metric_changes_a_model():
    roles = models()
    before = {role: module_sha256(model.module) for role, model in roles.items()}
    measure(SharedEvaluation(roles, clips(30), embedder=Loudness()), METRICS)
    assert {role: module_sha256(model.module) for role, model in roles.items()} == before


@pytest.mark.parametrize("without", [(), ("gold", "gold2"), ("base",)])
def test_every_row_has_a_figure_or_a_reason_and_every_metric_a_row(without):
    shared = SharedEvaluation(
        {role: model for role, model in models().items() if role not in without}, clips(30), embedder=Loudness()
    )
    for name in METRICS:
        rows = measure(shared, [name])
        assert rows, name
        assert all((row.value is None) == (row.why is not None) for row in rows), name
        assert all(row.why is None or row.why.startswith("not measured: ") for row in rows), name


def test_so_it_is_without_tokens_and_without_holdout_and_retain():
    roles = {"base": LatentBackend(), "unlearned": LatentBackend(1), "gold": LatentBackend(2)}
    forget, unheard = latent_clips(3, 60), latent_clips(3, 60, 3)
    alone = measure(SharedEvaluation(roles, {"forget": forget}, batch=1), METRICS)  # its batches are of one length
    with_holdout = ["membership_attacks", "similarity", "similarity_embedding", "relearn_others", "privleak"]
    beside = measure(SharedEvaluation(roles, {"forget": forget, "holdout": unheard}), with_holdout)
    assert all((row.value is None) == (row.why is not None) for row in [*alone, *beside])
    assert {row.metric for row in alone if row.value is not None} >= {"nll", "relearn", "quantised_4bit_nll"}
    assert {row.metric for row in beside if row.value is not None} >= {"membership_auc_gradnorm", "similarity_chroma"}


def test_two_evaluations_are_identical():
    # Of three tracks a bootstrap's ends are the extremes, whatever it draws.
    sets = clips(30) | {"retain": [track(4 + n % 3, 30 - n, name=f"kept{n}") for n in range(8)]}
    assert evaluated(sets=sets) == evaluated(sets=sets)


# 10. Words.
def test_nothing_is_called_deleted():
    fakes = [None, models(6.0)["unlearned"], broken(models()["base"]), balks(models()["base"], {"step 1"})]
    spoken = ["nll", "kl_gold", "verbatim", "paraphrased", "membership_attacks", "similarity_codes", "gold_ks", "fad"]
    said = [text for fake in fakes for text in texts(evaluated(fake, metrics=spoken))]
    said += texts(evaluated(models()["gold2"], metrics=["kl_gold", "nll", "verbatim"]))
    assert any(text.startswith("no evidence of retention under these tests: ") for text in said)
    assert not [text for text in said if NOTICED.search(text)]
    assert not [spec.summary for spec in (entry.spec for entry in plugins.metrics()) if NOTICED.search(spec.summary)]
    assert not [row for row in evaluated() if NOTICED.search(f"{row.why} {row.note}")]
