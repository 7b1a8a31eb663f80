from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.signal
import torch
from tests.metrics.markov import MarkovBackend, clips, models

from encore.api import Result
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.utility import artefacts
from encore.metrics.utility.artefacts import MARGINS, Artefacts, measures_of
from encore.results.findings import findings
from encore.results.rules import rule

RATE = 8000
RANDOM = np.random.default_rng(0)
TIME = np.arange(4 * RATE) / RATE
NOISE = 0.1 * RANDOM.standard_normal(4 * RATE)
SILENT = 0.005
NOTES = np.concatenate([np.sin(2 * np.pi * f * np.arange(RATE // 2) / RATE) for f in RANDOM.uniform(200, 900, 8)])

FLAT = np.exp(-np.euler_gamma)  # of white noise: the geometric mean of an exponential distribution
CASES = {
    "silence": (np.zeros(4 * RATE), {"silence": 1, "clipping": 0, "flatness": 0, "flux": 0, "loops": 0}),
    "half silent": (0.5 * NOTES * (TIME < 2), {"silence": 0.5, "clipping": 0}),
    "white noise": (NOISE, {"silence": 0, "clipping": 0, "flatness": FLAT, "flux": 1 - np.pi / 4, "loops": 0}),
    "dark noise": (0.3 * scipy.signal.lfilter([1], [1, -0.7], NOISE), {"flux": 1 - np.pi / 4, "loops": 0}),
    "clipped": (np.clip(1e6 * np.sin(7 * TIME), -1, 1), {"clipping": 1}),
    "a loop": (np.tile(NOISE[: RATE // 2], 8), {"flatness": FLAT, "loops": 1}),
    "a tone": (0.5 * np.sin(2 * np.pi * 440 * TIME), {"flatness": 0, "flux": 0, "loops": 1}),
    "notes": (0.5 * NOTES, {"silence": 0, "clipping": 0, "flatness": 0, "flux": 0.05}),
    "not finite": (np.full(4 * RATE, np.nan), {"flux": 1}),
}


@pytest.mark.parametrize(("audio", "expected"), CASES.values(), ids=CASES)
def test_measures_are_what_the_formulas_say(audio, expected):
    found = measures_of(audio[None], RATE, SILENT)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=0.05)


def test_repetition_is_the_highest_of_the_slow_sums():
    audio = RANDOM.standard_normal(300) + np.tile(RANDOM.standard_normal(60), 5)
    slow = [2 * np.sum(audio[: 300 - lag] * audio[lag:]) / np.sum(audio[: 300 - lag] ** 2 + audio[lag:] ** 2)
            for lag in range(25, 151)]  # fmt: skip
    assert measures_of(audio[None], 100, SILENT)["loops"] == pytest.approx(max(slow))


def test_generations_beyond_the_range_of_base_are_named_with_track_and_kind(monkeypatch):
    """Codes of one value are a constant wave; the shares and limits are those of the measures."""

    def measured(audio, _rate, _silent):
        return dict.fromkeys(MARGINS, 0.0) | {"loops": float(np.ptp(audio) == 0)}

    monkeypatch.setattr(artefacts, "measures_of", measured)
    stuck = MarkovBackend({4: 6.0, 5: 6.0, 6: 6.0})
    stuck.module["table"].data[5] = 0
    stuck.module["table"].data[5, :, :, 3] = 50  # of the caption "step 5" code 3 alone
    roles = {"base": models()["base"], "gold": models()["gold"], "unlearned": stuck}
    found = {(row.metric, row.model, row.set): row for row in Artefacts().measure(
        SharedEvaluation(roles, clips(30), embedder=None))}  # fmt: skip
    row = found["artefacts", "unlearned", "retain"]
    assert row.value == pytest.approx(1 / 3)
    assert row.details["flagged"] == [["track05", "loops", "loops", 1.0]]
    assert row.details["limits"]["loops"] == MARGINS["loops"]
    assert found["artefacts", "base", "retain"].value == found["artefacts", "gold", "retain"].value == 0
    assert found["artefacts_loops", "unlearned", "retain"].per_track == {"track04": 0, "track05": 1, "track06": 0}
    told = [finding for finding in findings(list(found.values())) if finding.code in ("artefacts", "target")]
    assert [(one.level, one.code) for one in told] == [("fail", "target"), ("warn", "artefacts")]
    assert told[1].text == "loops in generations for captions of retain: track05"


def test_what_the_tracks_have_is_no_artefact(monkeypatch):
    """A model that generates a repetitive track, as it should: base's generations alone would set the limit too low."""
    monkeypatch.setattr(
        artefacts, "measures_of", lambda audio, *_: dict.fromkeys(MARGINS, 0.0) | {"loops": float(np.ptp(audio) == 0)}
    )
    stuck = MarkovBackend({4: 6.0, 5: 6.0, 6: 6.0})
    stuck.module["table"].data[5] = 0
    stuck.module["table"].data[5, :, :, 3] = 50
    music = clips(30)
    music["retain"] = [
        dataclasses.replace(clip, codes=torch.full_like(clip.codes, 3)) if clip.track == "track05" else clip
        for clip in music["retain"]
    ]
    rows = list(
        Artefacts().measure(SharedEvaluation({"base": models()["base"], "unlearned": stuck}, music, embedder=None))
    )
    row = next(row for row in rows if (row.metric, row.model, row.set) == ("artefacts", "unlearned", "retain"))
    assert row.details["limits"]["loops"] == 1 + MARGINS["loops"]
    assert row.value == 0


@pytest.mark.parametrize(
    ("track", "base", "limit"),
    [(0.2, 0.5, 0.6), (0.7, 0.5, 0.8), (0.9, 0.5, 0.95), (0.97, 0.5, 1.07), (0.2, 0.97, 1.07)],
)
def test_repetitive_music_hides_no_loop_and_nothing_else(monkeypatch, track, base, limit):
    """Base's generations and the tracks have so much of everything."""
    evaluation = SharedEvaluation(models(), clips(30), embedder=None)
    tracks = [clip.codes for clip in evaluation.clips["retain"]]
    decoded = [evaluation.backend("base").decode(codes[None])[0].numpy().tobytes() for codes in tracks]

    def measured(audio, *_):
        known = audio.astype(np.float32).tobytes() in decoded
        return dict.fromkeys(MARGINS, track if known else base)

    monkeypatch.setattr(artefacts, "measures_of", measured)
    monkeypatch.setattr(evaluation, "generations", lambda *_: [codes + 1 for codes in tracks])
    limits = next(iter(Artefacts().measure(evaluation))).details["limits"]
    assert limits["loops"] == pytest.approx(limit)
    assert limits["silence"] == pytest.approx(base + MARGINS["silence"])


@pytest.mark.parametrize(
    ("unlearned", "gold", "met"), [(0, 0, True), (1, 0, False), (1, 1, True), (1, None, False), (0, None, True)]
)
def test_as_many_as_gold_are_allowed_and_without_gold_none(unlearned, gold, met):
    counts = {"unlearned": unlearned, "gold": gold}
    figures = {
        role: Result("artefacts", role, "retain", count / 9, n=9) for role, count in counts.items() if count is not None
    }
    assert rule("artefacts")(figures) is met
