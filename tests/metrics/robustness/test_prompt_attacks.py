from __future__ import annotations

from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import torch
from tests.latent_model import LatentBackend, latent_clips
from tests.metrics import fakes
from tests.metrics.markov import MarkovBackend, melody
from tests.tiny_model import CAPTIONS, write_tiny_musicgen

from encore.api import Clip
from encore.backends.musicgen import MusicgenBackend
from encore.evaluate.evaluation import SharedEvaluation
from encore.metrics.robustness.prompt_attacks import (
    PromptChannels,
    PromptReencoded,
    PromptShifted,
    PromptStretched,
    through_ogg,
)
from encore.metrics.robustness.variants import Variant, right_shares, tag
from encore.results.targets import summary

METRICS = {
    "prompt_reencoded": PromptReencoded,
    "prompt_time_stretched": PromptStretched,
    "prompt_pitch_shifted": PromptShifted,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return MusicgenBackend.load(str(write_tiny_musicgen(tmp_path_factory.mktemp("tiny"))))


@pytest.fixture(scope="module")
def shared(model):
    random = torch.Generator().manual_seed(0)
    chosen = [Clip(str(i), CAPTIONS[i], torch.randint(0, 32, (2, 50), generator=random)) for i in range(2)]
    return SharedEvaluation({"base": model}, {"forget": chosen}, embedder=None)


def rows(name, shared):
    return {row.metric.removeprefix(f"{name}_"): row for row in METRICS[name]().measure(shared)}


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("prompt_reencoded", {"ogg"}), ("prompt_time_stretched", {"tempo -6%", "tempo +6%"}),
        ("prompt_pitch_shifted", {"pitch -1", "pitch +1"}),
    ],
)  # fmt: skip
def test_each_has_the_nll_of_the_changed_clip_and_says_which_change(shared, name, variants):
    found = rows(name, shared)
    assert found["nll"].details["variants"].keys() == variants
    assert set(found["nll"].per_track) == {"0", "1"}
    assert found["verbatim"].why == "not measured: no forget track is longer than the prompt of 1 s"  # .5 s long


def test_stretched_codes_are_those_of_the_stretched_sound(shared, model):
    clip = shared.clips["forget"][0]
    audio = model.decode(clip.codes[None])[0].clamp(-1, 1).numpy()
    nlls = []
    for rate in (0.94, 1.06):
        stretched = librosa.effects.time_stretch(audio, rate=rate)
        codes = model.encode(torch.from_numpy(stretched[:, : stretched.shape[-1] // 80 * 80])[None])[0]  # whole frames
        other = Clip("0", clip.caption, codes)
        nlls.append(shared.derive(clips={"forget": [other]}).nll("base", "forget")["0"])
        assert codes.shape[-1] == pytest.approx(50 / rate, abs=1)
    assert rows("prompt_time_stretched", shared)["nll"].per_track["0"] == pytest.approx(min(nlls), rel=1e-5)


def test_ogg_keeps_the_sound_and_changes_the_samples():
    time = np.arange(16000) / 16000
    tone = (0.4 * np.sin(2 * np.pi * 440 * time))[None].astype(np.float32)
    back = through_ogg(tone, 16000)
    assert back.shape == tone.shape
    assert 0 < np.abs(back - tone)[:, 500:-500].max() < 0.05


def test_a_continuation_may_be_in_the_prompts_pace_or_in_the_tracks_own():
    """Half a track in double time is given; the model goes on at the track's own pace, from where it is."""
    original = Clip("t", "step 1", melody(1, 30))
    fast = original.codes[:, ::2]
    own_pace = torch.cat([fast[:, :4], original.codes[:, 8:19]], 1)
    for played in (own_pace, fast):
        told = SimpleNamespace(
            backend=lambda model: MarkovBackend(), continuations=lambda model, clips, prompt, played=played: [played]
        )
        variant = Variant("twice", original, Clip(tag("t", "twice"), "step 1", fast), tempo=2.0)
        assert right_shares(told, "base", [variant], 1.0) == {tag("t", "twice"): 1.0}
        slow = Variant("as it is", original, variant.clip)
        share = right_shares(told, "base", [slow], 1.0)[slow.clip.track]
        assert share == 1.0 if played is fast else share < 0.2  # two melodies meet now and then


def test_of_a_tracks_windows_the_best_counts():
    """A window that plays on exactly is enough; from the caption alone any play may be any window."""
    first, second = (Clip("t", "step 1", melody(step, 30)) for step in (3, 1))
    variants = [Variant("as it is", one, Clip(tag("t", "as it is"), "step 1", one.codes)) for one in (first, second)]
    for seconds, played in ((1.0, [melody(5, 30), second.codes]), (0.0, [second.codes, melody(5, 30)])):
        told = SimpleNamespace(
            backend=lambda model: MarkovBackend(), continuations=lambda model, clips, prompt, played=played: played
        )
        assert right_shares(told, "base", variants, seconds) == {tag("t", "as it is"): 1.0}


@pytest.mark.parametrize("name", METRICS)
def test_without_tokens_there_is_a_loss_and_no_replay(name):
    sets = {"forget": latent_clips(2, frames=900)}
    shared = SharedEvaluation({"base": LatentBackend()}, sets, embedder=None, batch=1)
    found = rows(name, shared)
    assert found["nll"].unit == "loss"
    assert found["nll"].value is not None
    assert found["verbatim"].why == "not measured: the model has no tokens"


def test_nothing_left_to_hear_is_told_of(model):
    shared = SharedEvaluation(
        {"base": model}, {"forget": [Clip("t", CAPTIONS[0], torch.zeros(2, 2, dtype=torch.long))]}, embedder=None
    )
    (row,) = PromptReencoded().measure(shared)
    assert row.why == "not measured: no forget track is long enough"


# --------------------------------------------------------------------------------------------------------- stereo


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    """A stereo model whose windows are longer than a prompt, on two tracks."""
    folder = write_tiny_musicgen(tmp_path_factory.mktemp("stereo"), channels=2, positions=130)
    model = MusicgenBackend.load(str(folder))
    random = torch.Generator().manual_seed(0)
    chosen = [Clip(str(i), CAPTIONS[i], torch.randint(0, 32, (4, 120), generator=random)) for i in range(2)]
    return SharedEvaluation({"gold": model}, {"forget": chosen}, embedder=None)


def test_channels_are_swapped_and_summed_in_the_interleaved_codebooks(stereo, monkeypatch):
    model, audio = stereo.models["gold"], torch.randn(1, 2, 9600, generator=torch.Generator().manual_seed(0)) / 4
    monkeypatch.setattr(model, "decode", lambda codes: audio)  # random weights decode all codes to much the same
    swapped, mono = PromptChannels().variants(stereo)[:2]
    assert (swapped.name, mono.name) == ("swapped channels", "mono sum")
    left, right = (model.encode(audio.clamp(-1, 1))[0][channel::2] for channel in (0, 1))
    assert torch.equal(swapped.clip.codes[0::2], right)
    assert torch.equal(swapped.clip.codes[1::2], left)
    assert not torch.equal(left, right)
    assert torch.equal(mono.clip.codes[0::2], mono.clip.codes[1::2])
    assert torch.equal(
        mono.clip.codes[0::2], model.encode(audio.clamp(-1, 1).mean(1, keepdim=True).expand(-1, 2, -1))[0][0::2]
    )


def test_a_stereo_model_that_continues_other_channels_is_caught_and_gold_is_not(stereo):
    gate, make = fakes.OTHERS["continues_other_channels"]
    fake = make(stereo.models["gold"], fakes.Tracks.of(stereo), stereo)
    found = list(PromptChannels().measure(stereo.derive(models={"gold": stereo.models["gold"], "unlearned": fake})))
    values = {(row.metric, row.model): row.value for row in found}
    assert values["prompt_channels_verbatim", "unlearned"] == 1
    assert values["prompt_channels_verbatim", "gold"] == 0
    assert [f"{line.metric} {line.set}" for line in summary(found) if line.met is False] == [gate]


def test_a_mono_model_has_no_channels_to_swap(shared):
    (row,) = PromptChannels().measure(shared)
    assert row.why == "not measured: the model is mono"
