"""The backend against audiocraft's own scoring and playing, against transformers, and at the traps of its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pairs import CAPTIONS, CODES, Pair, clips, make_pair
from torch import Tensor

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.hashing import module_sha256
from encore_audiocraft.backend import AudiocraftBackend
from encore_audiocraft.library import open_musicgen

# One product's last bits may depend on where its numbers lie in memory, on a processor with AVX-512 for one.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def backend(pair: Pair) -> AudiocraftBackend:
    return AudiocraftBackend.load(str(pair.audiocraft), offline=True)


@pytest.fixture(scope="module")
def twin(pair: Pair) -> MusicgenBackend:
    return MusicgenBackend.load(str(pair.transformers), offline=True)


@pytest.fixture(scope="module")
def theirs(pair: Pair) -> object:
    """audiocraft's own object, which loaded the folder by itself."""
    return open_musicgen(pair.audiocraft)


def attributes(*captions: str | None) -> list[object]:
    from audiocraft.modules.conditioners import ConditioningAttributes

    return [ConditioningAttributes(text={"description": caption}) for caption in captions]


# ------------------------------------------------------------------------------------------------------ likelihood


def test_likelihood_is_what_audiocraft_computes_of_a_clip_alone(backend: AudiocraftBackend, theirs: object) -> None:
    for clip in clips(backend.codebooks, 40, 9, 23):
        batch = Batch.of([clip])
        with torch.no_grad():
            out = theirs.lm.compute_predictions(clip.codes[None], attributes(clip.caption))
            assert torch.equal(out.mask, backend.token_mask(batch)), "the same tokens are predicted"
            torch.testing.assert_close(backend.logits(batch)[out.mask], out.logits[out.mask], **ROUNDING)
        nll = torch.nn.functional.cross_entropy(out.logits[out.mask], clip.codes[None][out.mask])
        torch.testing.assert_close(backend.losses(batch)[0].detach(), nll)


def test_without_a_condition_it_is_what_audiocraft_computes_without_one(
    backend: AudiocraftBackend, theirs: object
) -> None:
    (clip,) = clips(backend.codebooks, 20)
    with torch.no_grad():
        out = theirs.lm.compute_predictions(clip.codes[None], attributes(None))
        ours = backend.logits(Batch.of([clip]), unconditional=True)
        empty = backend.logits(Batch.of([Clip("x", "", clip.codes)]))
    torch.testing.assert_close(ours[out.mask], out.logits[out.mask], **ROUNDING)
    torch.testing.assert_close(empty[out.mask], out.logits[out.mask], **ROUNDING)  # audiocraft reads "" as none


def test_a_clip_scores_the_same_alone_and_in_any_batch(backend: AudiocraftBackend, theirs: object) -> None:
    mixed = [*clips(backend.codebooks, 40, 9, 23, 31), Clip("x", "", clips(backend.codebooks, 30)[0].codes)]
    together = backend.losses(Batch.of(mixed)).detach()
    backwards = backend.losses(Batch.of(mixed[::-1])).detach().flip(0)
    alone = torch.cat([backend.losses(Batch.of([clip])) for clip in mixed]).detach()
    torch.testing.assert_close(together, alone, **ROUNDING)
    torch.testing.assert_close(backwards, alone, **ROUNDING)
    codes = torch.stack([clip.codes[:, :9] for clip in mixed[:3]])
    with torch.no_grad():
        padded = theirs.lm.compute_predictions(codes, attributes(*[clip.caption for clip in mixed[:3]]))
        ours = backend.logits(Batch.of([Clip("x", clip.caption, clip.codes[:, :9]) for clip in mixed[:3]]))
    assert (padded.logits - ours)[padded.mask].abs().max() > 1e-3, (
        "audiocraft's padding no longer shows: drop the mask?"
    )


def test_likelihood_is_that_of_the_same_model_in_transformers(
    backend: AudiocraftBackend, twin: MusicgenBackend
) -> None:
    batch = Batch.of(clips(backend.codebooks, 40, 9, 23))
    mask = backend.token_mask(batch)
    assert torch.equal(mask, twin.token_mask(batch))
    for unconditional in (False, True):
        with torch.no_grad():
            difference = backend.logits(batch, unconditional=unconditional)
            difference = difference - twin.logits(batch, unconditional=unconditional)
        assert difference[mask].abs().max() <= 1e-4
    torch.testing.assert_close(backend.losses(batch), twin.losses(batch), **ROUNDING)


def test_a_later_token_changes_no_earlier_logit(backend: AudiocraftBackend) -> None:
    (clip,) = clips(backend.codebooks, 40)
    changed = clip.codes.clone()
    changed[:, 20] = (changed[:, 20] + 1) % CODES
    with torch.no_grad():
        before = backend.logits(Batch.of([clip]))
        after = backend.logits(Batch.of([Clip("x", clip.caption, changed)]))
    same = (before == after).all(-1) | ~backend.token_mask(Batch.of([clip]))
    assert same[:, :, :20].all()
    assert not same[:, :, 21:].all()


def test_training_drops_out_what_the_model_says_and_no_conditions(tmp_path: Path) -> None:
    """The written configuration asks for 0.3 of conditions to be dropped in training, as MusicGen's own does."""
    plain = AudiocraftBackend.load(str(make_pair(tmp_path / "a").audiocraft))
    assert plain.module.cfg_dropout.p == 0.3
    batch = Batch.of(clips(plain.codebooks, 20, 20))
    expected = plain.losses(batch).detach()
    plain.module.train()
    for _ in range(20):
        torch.testing.assert_close(plain.losses(batch).detach(), expected, **ROUNDING)
    dropped = AudiocraftBackend.load(str(make_pair(tmp_path / "b", dropout=0.2).audiocraft))
    dropped.module.train()
    assert not torch.equal(dropped.losses(batch), dropped.losses(batch))
    dropped.module.eval()
    assert torch.equal(dropped.losses(batch), dropped.losses(batch))


# ------------------------------------------------------------------------------------------------------ generation


@pytest.mark.parametrize("prompt", [0, 1, 2, 11])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_it_plays_what_transformers_plays(
    backend: AudiocraftBackend, twin: MusicgenBackend, prompt: int, guidance: float
) -> None:
    given = torch.stack([clip.codes for clip in clips(backend.codebooks, 11, 11, 11)])[..., :prompt]
    settings = {"seconds": 40 / backend.frame_rate, "prompt": given if prompt else None, "guidance": guidance}
    greedy = backend.generate(CAPTIONS, temperature=0, **settings)
    assert torch.equal(greedy, twin.generate(CAPTIONS, temperature=0, **settings))
    assert torch.equal(greedy[..., :prompt], given)
    drawn = backend.generate(CAPTIONS, seed=5, **settings)
    assert torch.equal(drawn, twin.generate(CAPTIONS, seed=5, **settings))
    assert not torch.equal(drawn, greedy)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_playing_is_audiocrafts(backend: AudiocraftBackend, theirs: object, guidance: float) -> None:
    ours = backend.generate(CAPTIONS[:1], seconds=30 / backend.frame_rate, temperature=0, guidance=guidance)
    with torch.no_grad():
        codes = theirs.lm.generate(
            None, attributes(CAPTIONS[0]), max_gen_len=30, use_sampling=False, cfg_coef=guidance
        )  # fmt: skip
    assert torch.equal(ours, codes)


def test_playing_is_seeded_and_does_not_depend_on_the_batch(backend: AudiocraftBackend) -> None:
    seconds = 20 / backend.frame_rate
    both = backend.generate(CAPTIONS[:2], seconds=seconds, seed=5)
    assert torch.equal(both[:1], backend.generate(CAPTIONS[:1], seconds=seconds, seed=5))
    assert torch.equal(both[1:], backend.generate(CAPTIONS[1:2], seconds=seconds, seed=6))
    assert not torch.equal(both, backend.generate(CAPTIONS[:2], seconds=seconds, seed=6))
    assert not backend.module._is_streaming
    assert backend.losses(Batch.of(clips(backend.codebooks, 12))).isfinite().all()


# ------------------------------------------------------------------------------------------------------------ codec


def test_codec_hears_and_plays_what_that_of_transformers_does(
    backend: AudiocraftBackend, twin: MusicgenBackend, theirs: object
) -> None:
    sound = 0.3 * torch.randn(2, backend.channels, 3210, generator=torch.Generator().manual_seed(0))
    sound[:, 0] = torch.sin(torch.arange(3210) / 5) * 0.3
    codes = backend.encode(sound)
    assert torch.equal(codes, twin.encode(sound))
    assert torch.equal(codes, theirs.compression_model.encode(sound)[0])
    assert torch.equal(backend.decode(codes), twin.decode(codes))
    assert backend.decode(codes).shape == (2, backend.channels, codes.shape[-1] * backend.hop)
    latents: Tensor = backend.latents(codes)
    assert torch.equal(latents, twin.latents(codes))
    assert latents.shape[::2] == (2, codes.shape[-1])
    with pytest.raises(ValueError, match="audio channels"):
        backend.encode(sound[:, :1].repeat(1, 3, 1))


def test_shape_is_that_of_the_same_model_in_transformers(backend: AudiocraftBackend, twin: MusicgenBackend) -> None:
    for name in ("sample_rate", "channels", "frame_rate", "codebooks", "codebook_size", "max_frames", "hop", "delays"):
        assert getattr(backend, name) == getattr(twin, name), name


# ----------------------------------------------------------------------------------------------------------- parts


def test_module_holds_all_that_is_trained_and_nothing_else(backend: AudiocraftBackend) -> None:
    for part in backend.frozen().values():
        assert not any(weight.requires_grad for weight in part.parameters())
    names = {name for name, _ in backend.module.named_parameters()}
    assert {"condition_provider.conditioners.description.output_proj.bias", "linears.0.weight", "emb.1.weight"} <= names
    assert not [name for name in names if "t5" in name]
    frozen = {id(weight) for part in backend.frozen().values() for weight in part.parameters()}
    assert not frozen & {id(weight) for weight in backend.module.parameters()}
    backend.losses(Batch.of(clips(backend.codebooks, 12, 20))).sum().backward()
    assert all(weight.grad is not None for weight in backend.module.parameters())
    backend.module.zero_grad()


def test_clone_shares_the_frozen_parts_and_nothing_else(backend: AudiocraftBackend) -> None:
    twin = backend.clone()
    assert twin.frozen()["codec"] is backend.frozen()["codec"]
    before, batch = module_sha256(backend.module), Batch.of(clips(backend.codebooks, 12, 20))
    torch.testing.assert_close(twin.losses(batch), backend.losses(batch), **ROUNDING)
    with torch.no_grad():
        for weight in twin.module.parameters():
            weight.add_(1)
    assert module_sha256(backend.module) == before
    assert not torch.equal(twin.losses(batch), backend.losses(batch))


def test_reinitialise_draws_every_weight_anew_and_is_seeded(backend: AudiocraftBackend) -> None:
    a, b, c = backend.clone(), backend.clone(), backend.clone()
    state = torch.get_rng_state()
    a.reinitialise(1)
    b.reinitialise(1)
    c.reinitialise(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert module_sha256(a.module) == module_sha256(b.module) != module_sha256(c.module)
    kept = [
        name
        for (name, old), new in zip(backend.module.named_parameters(), a.module.parameters(), strict=True)
        if torch.equal(old, new) and "norm" not in name
    ]
    assert kept == []
    assert all(weight.requires_grad for weight in a.module.parameters())


# ------------------------------------------------------------------------------------------------------------ files


def test_saved_model_is_the_same_and_opens_in_audiocraft(
    backend: AudiocraftBackend, pair: Pair, tmp_path: Path
) -> None:
    changed = backend.clone()
    with torch.no_grad():
        for weight in changed.module.parameters():
            weight.mul_(1.01)
    changed.save(tmp_path)
    again = AudiocraftBackend.load(str(tmp_path), offline=True)
    batch = Batch.of(clips(backend.codebooks, 30, 12))
    assert module_sha256(again.module) == module_sha256(changed.module) != module_sha256(backend.module)
    for name, part in again.frozen().items():
        assert module_sha256(part) == module_sha256(backend.frozen()[name])
    torch.testing.assert_close(again.losses(batch), changed.losses(batch), **ROUNDING)
    opened = open_musicgen(tmp_path)
    with torch.no_grad():
        out = opened.lm.compute_predictions(batch.codes[:1], attributes(batch.captions[0]))
    ours = changed.logits(Batch.of(batch.clips[:1])).detach()
    torch.testing.assert_close(ours[out.mask], out.logits[out.mask], **ROUNDING)
    for file in ("state_dict.bin", "compression_state_dict.bin"):
        before = torch.load(pair.audiocraft / file, weights_only=True)
        after = torch.load(tmp_path / file, weights_only=True)
        assert list(after) == list(before)
        assert {k: v for k, v in after.items() if k != "best_state"} == {
            k: v for k, v in before.items() if k != "best_state"
        }
        assert list(after["best_state"]) == list(before["best_state"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compression_state_dict.bin", "state_dict.bin", "t5"]
