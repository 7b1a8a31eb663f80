"""The MusicGen backend against transformers' own generation, a naive loss, and the traps of its model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen
from transformers import MusicgenForConditionalGeneration

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.errors import InputError
from encore.hashing import module_sha256

FRAMES = 40


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_musicgen(tmp_path_factory.mktemp("model"), channels=request.param)


@pytest.fixture(scope="module")
def backend(folder: Path) -> MusicgenBackend:
    return MusicgenBackend.load(str(folder), offline=True)


def clips(backend: MusicgenBackend, *lengths: int, seed: int = 0) -> list[Clip]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Clip(str(i), CAPTIONS[i % len(CAPTIONS)], torch.randint(CODES, (backend.codebooks, t), generator=generator))
        for i, t in enumerate(lengths)
    ]


def test_loss_equals_a_naive_loop_over_the_delay_pattern(backend: MusicgenBackend) -> None:
    (clip,) = clips(backend, 17)
    K, T = clip.codes.shape
    stereo = backend.channels == 2
    inputs = torch.full((1, K, T), CODES)
    for k in range(K):
        for step in range(1, T):
            frame = step - 1 - (k // 2 if stereo else k)
            if frame >= 0:
                inputs[0, k, step] = clip.codes[k, frame]
    tokens = backend.processor.tokenizer([clip.caption], return_tensors="pt")
    with torch.no_grad():
        out = backend.model(**tokens, decoder_input_ids=inputs[0]).logits.view(K, T, CODES).log_softmax(-1)
    delays = [k // 2 if stereo else k for k in range(K)]
    picked = [
        out[k, frame + delay, clip.codes[k, frame]] for k, delay in enumerate(delays) for frame in range(T - delay)
    ]
    assert len(picked) == sum(T - (k // 2 if stereo else k) for k in range(K))
    expected = -torch.stack(picked).mean()
    torch.testing.assert_close(backend.losses(Batch.of([clip]))[0].detach(), expected)


def test_a_clip_scores_the_same_alone_and_in_any_batch(backend: MusicgenBackend) -> None:
    mixed = clips(backend, 40, 9, 23, 31)
    together = backend.losses(Batch.of(mixed)).detach()
    backwards = backend.losses(Batch.of(mixed[::-1])).detach().flip(0)
    alone = torch.cat([backend.losses(Batch.of([clip])) for clip in mixed]).detach()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backwards, alone, rtol=1e-5, atol=1e-5)


def test_a_later_token_changes_no_earlier_logit(backend: MusicgenBackend) -> None:
    (clip,) = clips(backend, FRAMES)
    changed = clip.codes.clone()
    changed[:, 20] = (changed[:, 20] + 1) % CODES
    with torch.no_grad():
        before = backend.logits(Batch.of([clip]))
        after = backend.logits(Batch.of([Clip("x", clip.caption, changed)]))
    mask = backend.token_mask(Batch.of([clip]))
    same = (before == after).all(-1) | ~mask  # [1, K, T]
    assert same[:, :, :20].all(), "a token of frame 20 reached an earlier frame"
    assert not same[:, :, 21:].all(), "the model does not look at its past at all"


def test_parts_built_without_an_attention_implementation_are_mended(folder: Path) -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(folder)
    processor = MusicgenBackend.load(str(folder)).processor
    model.decoder.config._attn_implementation = None  # what building from sub-models leaves behind
    backend = MusicgenBackend(model, processor)
    test_a_later_token_changes_no_earlier_logit(backend)


@pytest.mark.parametrize("prompt", [0, 1, 2, 11])
def test_greedy_generation_equals_transformers(backend: MusicgenBackend, prompt: int) -> None:
    given = torch.stack([clip.codes for clip in clips(backend, *[prompt or 1] * 3)])[..., :prompt]
    ours = backend.generate(
        CAPTIONS, seconds=FRAMES / backend.frame_rate, prompt=given if prompt else None, guidance=1.0, temperature=0
    )
    heard: list[torch.Tensor] = []
    decode = backend.model.audio_encoder.decode
    backend.model.audio_encoder.decode = lambda codes, *a, **k: (heard.append(codes), decode(codes, *a, **k))[1]
    try:
        tokens = backend.processor.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
        inputs = {"decoder_input_ids": given.flatten(0, 1)} if prompt else {}
        backend.model.generate(
            inputs=tokens.input_ids, attention_mask=tokens.attention_mask, do_sample=False, guidance_scale=1.0,
            max_new_tokens=FRAMES + backend.delays[-1] - max(prompt, 1) + 1, **inputs,
        )  # fmt: skip
    finally:
        backend.model.audio_encoder.decode = decode
    channels = [codes[0] for codes in heard]
    theirs = channels[0] if len(channels) == 1 else torch.stack(channels, 2).flatten(1, 2)
    frames = min(theirs.shape[-1], FRAMES)
    assert frames >= FRAMES - 2
    assert torch.equal(ours[..., :frames], theirs[..., :frames])
    assert torch.equal(ours[..., :prompt], given)


def test_sampling_is_seeded_and_does_not_depend_on_the_batch(backend: MusicgenBackend) -> None:
    seconds = 20 / backend.frame_rate
    both = backend.generate(CAPTIONS[:2], seconds=seconds, seed=5)
    assert torch.equal(both, backend.generate(CAPTIONS[:2], seconds=seconds, seed=5))
    assert torch.equal(both[:1], backend.generate(CAPTIONS[:1], seconds=seconds, seed=5))
    assert not torch.equal(both, backend.generate(CAPTIONS[:2], seconds=seconds, seed=6))
    assert both.min() >= 0
    assert both.max() < CODES


def test_unconditional_ignores_the_caption(backend: MusicgenBackend) -> None:
    first, second = clips(backend, 12, 12)
    other = Clip("x", second.caption, first.codes)
    a = backend.losses(Batch.of([first])), backend.token_logprobs(Batch.of([first]), unconditional=True)
    b = backend.losses(Batch.of([other])), backend.token_logprobs(Batch.of([other]), unconditional=True)
    assert not torch.allclose(a[0], b[0])
    torch.testing.assert_close(a[1], b[1], rtol=1e-5, atol=1e-5)


def test_codec_round_trip_keeps_channels_apart(backend: MusicgenBackend) -> None:
    left_only = torch.zeros(1, backend.channels, 3200)
    left_only[:, 0] = torch.sin(torch.arange(3200) / 5) * 0.3
    codes = backend.encode(left_only)
    assert codes.shape == (1, backend.codebooks, 40)
    assert backend.decode(codes).shape == left_only.shape
    if backend.channels == 2:
        assert not torch.equal(codes[:, 0::2], codes[:, 1::2])


def test_saved_and_loaded_model_is_the_same_and_opens_in_transformers(backend: MusicgenBackend, tmp_path: Path) -> None:
    batch = Batch.of(clips(backend, 30, 12))
    backend.save(tmp_path)
    again = MusicgenBackend.load(str(tmp_path), offline=True)
    assert module_sha256(again.module) == module_sha256(backend.module)
    assert torch.equal(again.losses(batch), backend.losses(batch))
    MusicgenForConditionalGeneration.from_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")] == []


def test_settings_are_the_configuration_wherever_it_was_saved(
    backend: MusicgenBackend, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "again").mkdir()
    backend.save(tmp_path / "again")
    assert MusicgenBackend.load(str(tmp_path / "again")).settings == backend.settings == backend.clone().settings
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["decoder"]["num_attention_heads"] = 2  # the weights have the same shapes
    (other / "config.json").write_text(json.dumps(config))
    changed = MusicgenBackend.load(str(other))
    assert module_sha256(changed.module) == module_sha256(backend.module)
    assert changed.settings != backend.settings


def test_clone_shares_the_frozen_parts_and_nothing_else(backend: MusicgenBackend) -> None:
    twin = backend.clone()
    assert twin.frozen()["codec"] is backend.frozen()["codec"]
    before = module_sha256(backend.module)
    with torch.no_grad():
        for weight in twin.module.parameters():
            weight.add_(1)
    assert module_sha256(backend.module) == before


def test_reinitialise_draws_every_weight_anew_and_is_seeded(backend: MusicgenBackend) -> None:
    a, b, c = backend.clone(), backend.clone(), backend.clone()
    a.reinitialise(1)
    b.reinitialise(1)
    c.reinitialise(2)
    assert module_sha256(a.module) == module_sha256(b.module) != module_sha256(c.module)
    kept = [
        name
        for (name, old), new in zip(backend.module.named_parameters(), a.module.parameters(), strict=True)
        if torch.equal(old, new) and not ("norm" in name or name.endswith("bias"))
    ]
    assert kept == []
    batch = Batch.of(clips(backend, 30))
    assert a.losses(batch).item() == pytest.approx(torch.tensor(float(CODES)).log().item(), rel=0.05)


def test_only_the_decoder_is_trainable(backend: MusicgenBackend) -> None:
    for part in backend.frozen().values():
        assert not any(weight.requires_grad for weight in part.parameters())
    assert all(weight.requires_grad for weight in backend.module.parameters())
    backend.losses(Batch.of(clips(backend, 12))).sum().backward()
    assert all(weight.grad is not None for weight in backend.module.parameters())
    backend.module.zero_grad()


def test_refuses_what_is_not_a_musicgen(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't load"):
        MusicgenBackend.load(str(tmp_path), offline=True)
    melody = shutil.copytree(folder, tmp_path / "melody")
    config = json.loads((melody / "config.json").read_text())
    (melody / "config.json").write_text(json.dumps(config | {"model_type": "musicgen_melody"}))
    with pytest.raises(InputError, match="not a MusicGen one"):
        MusicgenBackend.load(str(melody), offline=True)
    config["decoder"]["hidden_size"] = "wide"
    (melody / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="can't load"):
        MusicgenBackend.load(str(melody), offline=True)


def test_refuses_a_folder_without_the_vocabulary_of_its_tokenizer(folder: Path, tmp_path: Path) -> None:
    """transformers opens it, and gives every caption the same few tokens."""
    without = shutil.copytree(folder, tmp_path / "without")
    (without / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="its tokenizer has an empty vocabulary"):
        MusicgenBackend.load(str(without), offline=True)


def test_refuses_weights_that_lie_or_are_pickled(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes((2**40).to_bytes(8, "little") + data[8:])
    with pytest.raises(InputError, match="can't load"):
        MusicgenBackend.load(str(broken), offline=True)
    weights.unlink()
    torch.save({}, broken / "pytorch_model.bin")
    with pytest.raises(InputError, match="can't load"):
        MusicgenBackend.load(str(broken), offline=True)
