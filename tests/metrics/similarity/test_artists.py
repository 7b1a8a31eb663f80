"""Attribution to artists on models whose generations are known by hand, with an embedder that counts steps."""

from __future__ import annotations

import pytest
import torch
from tests.metrics import markov
from tests.metrics.fakes import plays_another_of_the_artist

from encore.api import Backend, Embedder, EmbedderSpec
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.metrics.similarity.artists import Artists

ARTISTS = {1: "A (1824)", 2: "B", 3: "Traditional", 4: "a", 5: "C", 6: "D", 7: "c", 8: "E", 9: "F"}
STYLE = {1: 0, 4: 0, 2: 1, 3: 2, 5: 3, 7: 3, 6: 4, 8: 5, 9: 6}  # step -> artist


class Steps(Embedder):
    """Counts of each artist's steps, and a tenth of those of each step."""

    spec = EmbedderSpec("latents", "steps", "tests:Steps")
    sample_rate, identity = 8, "steps"

    @classmethod
    def open(cls, backend: Backend) -> Embedder:
        return cls()

    def embed(self, waveforms: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        steps = (codes[:, 0].diff(dim=-1) % markov.V).tolist()
        rows = torch.zeros(len(codes), 7 + markov.V)
        for row, each in zip(rows, steps, strict=True):
            for step in each:
                row[STYLE.get(step, 6)] += step in STYLE
                row[7 + step] += 0.1
        return rows


def evaluation(unlearned: Backend | None = None, artists=ARTISTS) -> SharedEvaluation:
    models = markov.models()
    roles = {"base": models["base"], "unlearned": unlearned or models["gold"], "gold": models["gold"]}
    about = {f"track{step:02d}": {"artist": name} for step, name in artists.items()}
    return SharedEvaluation(roles, markov.clips(24), embedder=Steps(), track_metadata=about, seed=3)  # type: ignore[arg-type]


def rows(shared: SharedEvaluation):
    return {(row.metric, row.model): row for row in Artists().measure(shared)}


@pytest.fixture(scope="module")
def found():
    return rows(evaluation())


def test_base_generates_the_artists_and_gold_does_not(found):
    assert found["artist_attribution", "base"].per_track == {"track01": 1.0, "track02": 1.0}  # 3 has no known artist
    assert found["artist_rank", "base"].value == 1
    assert found["artist_confidence", "base"].value > 0.9
    assert found["artist_attribution", "gold"].value < 1
    assert found["artist_rank", "gold"].value > 1
    assert found["artist_confidence", "gold"].value < found["artist_confidence", "base"].value
    details = found["artist_attribution", "base"].details
    assert details["artists"]["a"] == pytest.approx(
        {
            "tracks": 1,
            "attribution": 1,
            "rank": 1,
            "confidence": found["artist_confidence", "base"].per_track["track01"],
        }
    )
    assert details["gallery"] == 6


def test_kept_artists_are_measured_before_and_after(found):
    assert sorted(found["artist_off_target", "base"].details["artists"]) == ["c", "d"]
    assert found["artist_off_target", "base"].per_track == {"track05": 1.0, "track06": 1.0}
    harmed = rows(evaluation(markov.MarkovBackend({4: 6.0}, noise=0.1, seed=1)))
    assert harmed["artist_off_target", "unlearned"].value < harmed["artist_off_target", "base"].value


def test_real_tracks_say_whether_the_embedder_tells_artists_apart(found):
    truth = found["artist_ground_truth", "none"]
    assert truth.details["tracks"] == {"track01": 1.0, "track04": 1.0, "track05": 1.0, "track07": 1.0}
    assert truth.details["within"] > truth.details["between"]
    assert truth.details["auc"] == 1
    assert truth.details["chance"] == pytest.approx(1 / 7)  # of 8 tracks with an artist


def test_another_track_of_the_artist_is_seen_by_attribution_alone():
    gold = markov.models()["gold"]
    fake = plays_another_of_the_artist(gold, {"step 1": markov.melody(4, 24)})
    shared = evaluation(fake)
    seen = rows(shared)
    assert seen["artist_attribution", "unlearned"].per_track["track01"] == 1
    assert seen["artist_attribution", "gold"].per_track["track01"] < 1
    others = measure(shared, ["verbatim", "verbatim_caption", "verbatim_elsewhere", "nll"])
    values = {(row.metric, row.model): row.per_track.get("track01") for row in others if row.set == "forget"}
    for metric in ("verbatim", "nll"):
        assert values[metric, "unlearned"] == values[metric, "gold"]
    for metric in ("verbatim_caption", "verbatim_elsewhere"):
        assert values[metric, "unlearned"] < 0.8


@pytest.mark.parametrize(
    ("artists", "why"),
    [
        ({4: "A"}, "no artist of a forget track is known"),
        ({1: "A", 4: "a (live)"}, "all tracks are by one artist"),
    ],
)
def test_what_can_not_be_measured_says_why(artists, why):
    (row,) = Artists().measure(evaluation(artists=artists))
    assert why in row.why


def test_without_a_second_track_there_is_no_ground_truth():
    found = rows(evaluation(artists={1: "A", 5: "B"}))
    assert "no artist has two tracks" in found["artist_ground_truth", "none"].why
    assert found["artist_off_target", "base"].details["artists"] == ["b"]
