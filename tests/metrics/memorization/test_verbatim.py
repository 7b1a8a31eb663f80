from __future__ import annotations

import pytest
import torch
from tests.metrics.markov import FORGET, RATE, MarkovBackend, clips, melody, models, track
from tests.tiny_model import CAPTIONS, write_tiny_musicgen

from encore.api import Clip
from encore.backends.musicgen import MusicgenBackend
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.memorization.verbatim import Verbatim, VerbatimCaption


def rows(metric, evaluation):
    return {(row.model, row.set): row for row in metric().measure(evaluation) if row.metric == metric.name}


@pytest.mark.parametrize("metric", [Verbatim, VerbatimCaption])
def test_what_is_known_replays_and_what_is_not_does_not(metric):
    found = rows(metric, SharedEvaluation(models(), clips(), embedder=None))
    assert found["base", "forget"].value == found["base", "retain"].value == 1
    assert found["unlearned", "forget"].value == found["gold", "forget"].value == found["base", "holdout"].value == 0
    assert found["unlearned", "retain"].value == 1
    assert ("gold2", "forget") not in found
    assert found["base", "forget"].low < 1 == found["base", "forget"].high  # three tracks are not many


def test_share_of_right_tokens_is_that_of_decoding_after_one_second():
    base = MarkovBackend({1: 6.0}, noise=0.5)
    codes = melody(1, 14)
    codes[0, 9] = 0  # a wrong turn, from which the melody goes on elsewhere
    found = rows(Verbatim, SharedEvaluation({"base": base}, {"forget": [Clip("t", "step 1", codes)]}, embedder=None))
    prompt = round(RATE)
    played = base.generate(["step 1"], seconds=14 / RATE, prompt=codes[None, :, :prompt], temperature=0, guidance=1)[0]
    right = (played[0, prompt:] == codes[0, prompt:]).double().mean()
    assert 0 < right < 1
    assert found["base", "forget"].per_track == pytest.approx({"t": float(right)})
    assert found["base", "forget"].value == float(right >= 0.8)


def test_eighty_percent_is_enough():
    base = MarkovBackend({1: 6.0})
    end_wrong = melody(1, 14)
    end_wrong[0, 12:] = end_wrong[0, 12:] + 1  # 8 of 10 after the prompt are right
    more_wrong = melody(1, 14)
    more_wrong[0, 11:] = more_wrong[0, 11:] + 1
    forget = [Clip("enough", "step 1", end_wrong), Clip("less", "step 1", more_wrong)]
    found = rows(Verbatim, SharedEvaluation({"base": base}, {"forget": forget}, embedder=None))["base", "forget"]
    assert found.per_track == pytest.approx({"enough": 0.8, "less": 0.7})
    assert found.value == 0.5


@pytest.mark.parametrize("metric", [Verbatim, VerbatimCaption])
def test_a_track_replays_where_one_of_its_windows_does(metric):
    song = [Clip("song", "step 1", melody(step, 14)) for step in (3, 5, 1, 7)]
    shared = SharedEvaluation({"base": MarkovBackend({1: 6.0})}, {"forget": song}, embedder=None)
    found = {row.metric: row for row in metric().measure(shared) if row.set == "forget"}
    assert found[metric.name].per_track == {"song": 1.0}
    assert found[metric.name].value == found[f"{metric.name}_exact"].value == 1


def test_from_the_caption_alone_any_window_may_come_back():
    """The model plays the long second window; the first, whose length it was asked for first, is another."""
    song = [Clip("song", "step 1", melody(3, 30)), Clip("song", "step 1", melody(1, 20))]
    shared = SharedEvaluation({"base": MarkovBackend({1: 6.0}, noise=0.1)}, {"forget": song}, embedder=None)
    shared._results["continuations", "base", 0] = {"forget": [melody(1, 30), melody(5, 20)]}  # two plays of one caption
    assert rows(VerbatimCaption, shared)["base", "forget"].per_track == {"song": 1.0}


def test_a_short_last_window_is_no_replay_by_chance():
    song = [Clip("song", "step 1", melody(3, 30)), Clip("song", "step 1", melody(1, 6))]
    shared = SharedEvaluation({"base": MarkovBackend({1: 6.0})}, {"forget": song}, embedder=None)
    assert rows(Verbatim, shared)["base", "forget"].value == 0
    assert rows(VerbatimCaption, shared)["base", "forget"].value == 0


def test_a_replay_that_the_forward_pass_proves_is_not_decoded():
    base, forgotten = MarkovBackend(dict.fromkeys(FORGET, 6.0)), MarkovBackend(noise=0.1)
    rows(
        Verbatim, SharedEvaluation({"base": base, "unlearned": forgotten}, {"forget": clips()["forget"]}, embedder=None)
    )
    assert (base.generated, forgotten.generated) == (0, 3)


def test_tracks_no_longer_than_the_prompt_are_left_out_and_said():
    base = MarkovBackend({1: 6.0})
    found = rows(Verbatim, SharedEvaluation({"base": base}, {"forget": [track(1, 4), track(2, 9)]}, embedder=None))
    assert list(found["base", "forget"].per_track) == ["track02"]
    found = rows(Verbatim, SharedEvaluation({"base": base}, {"forget": [track(1, 4)]}, embedder=None))
    assert found["base", "forget"].value is None
    assert found["base", "forget"].why == "not measured: no forget track is longer than the prompt of 1 s"


def test_only_the_first_codebook_is_compared():
    codes = melody(1, 12)
    codes[1] = torch.randint(0, 5, (12,), generator=torch.Generator().manual_seed(0))
    evaluation = SharedEvaluation(
        {"base": MarkovBackend({1: 6.0})}, {"forget": [Clip("t", "step 1", codes)]}, embedder=None
    )
    assert rows(VerbatimCaption, evaluation)["base", "forget"].value == 1


@pytest.mark.parametrize(("metric", "name"), [(Verbatim, "verbatim"), (VerbatimCaption, "verbatim_caption")])
def test_all_codebooks_and_exact_matches_have_rows_of_their_own(metric, name):
    finer = melody(1, 14)
    finer[1, 10:] = finer[1, 10:] + 1  # four wrong codes of the second codebook
    wrong = Clip("wrong", "step 1", finer % 11)
    shared = SharedEvaluation({"base": MarkovBackend({1: 6.0})}, {"forget": [track(1), wrong]}, embedder=None)
    found = {row.metric: row for row in metric().measure(shared) if row.set == "forget"}
    later = 2 * (14 - (4 if name == "verbatim" else 0))
    assert found[name].value == 1
    assert found[f"{name}_codes"].per_track == pytest.approx({"track01": 1.0, "wrong": (later - 4) / later})
    assert found[f"{name}_exact"].value == 0.5
    assert found[f"{name}_exact"].per_track == {"track01": 1.0, "wrong": 0.0}


def test_codes_that_are_never_predicted_are_not_counted(tmp_path):
    """MusicGen's delay leaves the last frame of the second codebook out: whatever is there, a replay is exact."""
    model = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path)))
    codes = model.generate([CAPTIONS[0]], seconds=0.3, temperature=0.0, guidance=1.0)[0]
    codes[1, -1] = (codes[1, -1] + 1) % 32
    shared = SharedEvaluation({"base": model}, {"forget": [Clip("t", CAPTIONS[0], codes)]}, embedder=None)
    found = {row.metric: row.value for row in VerbatimCaption().measure(shared) if row.set == "forget"}
    assert found == {"verbatim_caption": 1, "verbatim_caption_codes": 1, "verbatim_caption_exact": 1}
