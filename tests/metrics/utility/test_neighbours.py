from __future__ import annotations

import pytest
from tests.latent_model import LatentBackend, latent_clips
from tests.metrics.markov import MarkovBackend, clips, models

from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.metrics.utility.neighbours import Neighbours, neighbours

ABOUT = {
    "track01": {"artist": "Ada Lovelace (1843)", "genre": "Waltz"}, "track02": {"artist": "Traditional (Welsh)"},
    "track04": {"artist": "ada  lovelace"}, "track05": {"artist": "Traditional (Irish)", "genre": "polka"},
    "track06": {"artist": "Bach", "genre": "waltz"},
}  # fmt: skip


def rows(shared):
    return {(row.metric, row.model): row for row in Neighbours().measure(shared)}


def test_who_is_near_and_why():
    shared = SharedEvaluation(models(), clips(), embedder=None, track_metadata=ABOUT)
    assert neighbours(shared) == {"track04": "artist ada lovelace", "track06": "genre waltz"}


@pytest.mark.parametrize(
    ("artist", "somebody"),
    [
        ("Unknown Mortal Orchestra", True), ("Anonymous 4", True), ("Various Cruelties", True),
        ("Unknown Artist", False), ("Various Artists", False), ("Trad.", False), ("ANON", False), ("N/A", False),
        ("Traditional (Irish, 1855)", False),
    ],
)  # fmt: skip
def test_only_a_whole_name_of_nobody_is_nobody(artist, somebody):
    about = {name: {"artist": artist} for name in ("track01", "track04")}
    found = neighbours(SharedEvaluation(models(), clips(), embedder=None, track_metadata=about))
    assert (found == {"track04": f"artist {artist.casefold()}"}) == somebody


def test_a_method_that_takes_the_neighbours_with_it_is_seen_where_the_mean_hides_it():
    roles = models()
    roles["unlearned"] = MarkovBackend({5: 6.0}, noise=0.1)  # of retain only the stranger is left
    shared = SharedEvaluation(roles, clips(), embedder=None, track_metadata=ABOUT)
    found = rows(shared)
    assert found["neighbours_verbatim", "base"].value == found["neighbours_rest_verbatim", "base"].value == 1
    assert found["neighbours_verbatim", "unlearned"].value == 0
    assert found["neighbours_rest_verbatim", "unlearned"].value == 1
    nll = shared.nll("unlearned", "retain")
    assert found["neighbours_nll", "unlearned"].per_track == {track: nll[track] for track in ("track04", "track06")}
    assert found["neighbours_rest_nll", "unlearned"].per_track == {"track05": nll["track05"]}
    assert found["neighbours_nll", "unlearned"].details["because"]["track06"] == "genre waltz"


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({}, "no artist or genre of a forget track is known"),
        ({"track02": {"artist": "Traditional"}}, "no artist or genre of a forget track is known"),
        ({"track01": {"genre": "waltz"}}, "no retain track shares an artist or a genre with a forget track"),
    ],
)
def test_what_is_not_known_is_said(about, why):
    (row, *_) = Neighbours().measure(SharedEvaluation(models(), clips(), embedder=None, track_metadata=about))
    assert row.why == f"not measured: {why}"


def test_without_tokens_or_retain():
    sets = {"forget": latent_clips(1), "retain": latent_clips(2, first=1)}
    about = {f"t{i}": {"genre": "waltz"} for i in range(3)}
    found = rows(SharedEvaluation({"base": LatentBackend()}, sets, embedder=None, track_metadata=about))
    assert found["neighbours_nll", "base"].unit == "loss"
    assert found["neighbours_verbatim", "base"].why == "not measured: the model has no tokens"
    assert (
        found["neighbours_rest_nll", "unlearned"].why
        == "not measured: every retain track shares an artist or a genre with a forget track"
    )
    (row,) = measure(SharedEvaluation(models(), {"forget": clips()["forget"]}, embedder=None), ["neighbours"])
    assert row.why == "not measured: there are no retain tracks"
