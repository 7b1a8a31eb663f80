"""The contract of `encore.api.Backend`, kept by every family."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tests.tiny_pipelines import CAPTIONS, write_audioldm2, write_stable_audio

from encore import plugins
from encore.api import Batch, Clip
from encore.curvature.fisher import backend_fisher
from encore.errors import UsageError
from encore.hashing import module_sha256
from encore_diffusers.base import TIMESTEPS
from encore_diffusers.folder import quiet


def test_is_found_and_says_what_installs_it(family):
    spec = plugins.backends().get(family).spec
    assert set(spec.requires) == {"diffusers", "torchsde"}
    assert spec.install == "pip install encore-diffusers"
    assert plugins.backends().resolve(family).name == family


def test_what_is_trained_and_what_is_not(backend):
    trained = {id(weight) for weight in backend.module.parameters()}
    frozen = backend.frozen()
    assert {"codec", "text_encoder"} <= frozen.keys()
    for part in frozen.values():
        assert not trained & {id(weight) for weight in part.parameters()}
        assert not any(weight.requires_grad for weight in part.parameters())
    modules = {id(part) for part in backend.parts.values() if isinstance(part, torch.nn.Module)}
    assert modules == {id(part) for part in (*frozen.values(), *backend.module.values())}
    fixed = {name for name, weight in backend.module.named_parameters() if not weight.requires_grad}
    assert fixed == set(backend._fixed())
    assert len(fixed) == {"stable-audio": 1, "ace-step": 2, "audioldm2": 0}[backend.name]
    assert not backend.module.training
    assert (backend.has_tokens, backend.unit, backend.codebook_size) == (False, "loss", 0)
    assert backend.library_name == "diffusers"


def test_encoding_is_deterministic_and_lengths_come_back(backend):
    frames = 20
    waveforms = 0.1 * torch.randn(2, backend.channels, frames * backend.hop)
    latents = backend.encode(waveforms)
    assert latents.shape == (2, backend.codebooks, frames)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, backend.encode(waveforms))
    torch.testing.assert_close(latents[1:], backend.encode(waveforms[1:]), rtol=1e-3, atol=1e-4)
    assert backend.encode(waveforms[..., : -backend.hop // 2]).shape[-1] == frames  # filled up with silence
    assert backend.decode(latents).shape == waveforms.shape
    assert backend.latents(latents) is latents
    with pytest.raises(ValueError, match="audio channels given"):
        backend.encode(torch.zeros(1, backend.channels + 1, 1000))


def test_captions_are_read_once(backend, monkeypatch):
    first = backend.encode_text([CAPTIONS[0], CAPTIONS[1], CAPTIONS[0]])
    assert first[0] is first[2] is backend.text_embeddings[CAPTIONS[0]]
    assert first[0].dim() == 2
    assert not torch.equal(first[0], first[1])
    monkeypatch.setattr(backend, "_read", lambda _: pytest.fail("a caption was read again"))
    backend.encode_text(CAPTIONS[:2])
    assert backend.clone().encode_text(CAPTIONS[:1])[0] is first[0]


def test_loss_of_a_clip_depends_on_nothing_else(backend, clips):
    together = backend.losses(Batch.of(clips))
    assert together.shape == (3,)
    alone = torch.cat([backend.losses(Batch.of([clip])) for clip in clips])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    turned = backend.losses(Batch.of(clips[::-1]))
    torch.testing.assert_close(turned.flip(0), alone, rtol=1e-4, atol=1e-5)
    torch.manual_seed(1)  # torch's own generator has no part in it
    assert torch.equal(together, backend.losses(Batch.of(clips)))
    torch.testing.assert_close(together, backend.clone().losses(Batch.of(clips)), rtol=1e-5, atol=1e-5)


def test_loss_depends_on_the_draw_and_the_caption(backend, clips):
    fixed, drawn, again = (backend.losses(Batch.of(clips, noise_index=draw)) for draw in (0, 3, 3))
    assert torch.equal(drawn, again)
    assert (fixed != drawn).all()
    other = backend.losses(Batch.of([Clip("t", CAPTIONS[2], clips[0].codes)]))
    assert other[0] != fixed[0]


def test_two_models_are_asked_at_one_noise(backend, clips, monkeypatch):
    """What the denoiser is given does not depend on its weights, so losses of two models compare pair by pair."""
    asked = []
    for model, seed in ((backend, 0), (backend.clone(), 1)):
        model.reinitialise(seed)
        predict = model._predict
        monkeypatch.setattr(model, "_predict", lambda x, t, given, p=predict: asked.append((x, t)) or p(x, t, given))
        model.losses(Batch.of(clips, noise_index=2))
    half = len(asked) // 2
    for (noisy, timestep), (noisy_too, timestep_too) in zip(asked[:half], asked[half:], strict=True):
        assert torch.equal(noisy, noisy_too)
        assert torch.equal(timestep, timestep_too)


def test_loss_is_the_mean_squared_error_over_a_clips_own_frames(backend, clips, monkeypatch):
    """Answers of zero leave the square of the target, worked out here from the noise that the denoiser is given."""
    clip, batch = clips[1], Batch.of(clips[1:2])
    seen = []
    monkeypatch.setattr(backend, "_predict", lambda x, t, _: seen.append((x, t)) or torch.zeros_like(x))
    found = float(backend.losses(batch))
    frames, expected = clip.codes.shape[-1], []
    for noisy, timestep in seen:
        mixed, time = noisy[0, :, :frames].double(), float(timestep)
        if backend.name == "stable-audio":
            angle = time * math.pi / 2
            noise = (mixed - math.cos(angle) * clip.codes) / math.sin(angle)
            target = math.cos(angle) * noise - math.sin(angle) * clip.codes
        elif backend.name == "ace-step":
            target = (mixed - (1 - time) * clip.codes) / time - clip.codes
        else:
            kept = float(backend.parts["scheduler"].alphas_cumprod[int(time)])
            target = (mixed - math.sqrt(kept) * clip.codes) / math.sqrt(1 - kept)
        expected.append(float(target.square().mean()))
    assert len(seen) == TIMESTEPS
    assert found == pytest.approx(np.mean(expected), rel=1e-3)


def test_predictions_are_what_the_loss_compares_with_the_target(backend, clips, monkeypatch):
    """Clip by clip and level by level; the noise does not depend on the caption."""
    batch, inputs = Batch.of(clips, noise_index=3), []
    (found, wanted), losses = backend.predictions(batch), backend.losses(batch)
    assert found.shape == (3, TIMESTEPS, backend.codebooks, max(clip.codes.shape[-1] for clip in clips))
    for clip, row, target, loss in zip(clips, found, wanted, losses, strict=True):
        frames = clip.codes.shape[-1]
        assert not row[..., frames:].any()
        latents, noise, share = backend._noised(clip.codes, 3)
        targets = torch.stack(
            [
                backend.objective.target(latents[None], noise[s][None], backend.objective.level(share[s : s + 1]))[0]
                for s in range(TIMESTEPS)
            ]
        )
        torch.testing.assert_close(target[..., :frames], targets[..., :frames])
        assert not target[..., frames:].any()
        own = (row[..., :frames] - targets[..., :frames]).square().mean()
        assert float(own.detach()) == pytest.approx(float(loss.detach()), rel=1e-4)
    found.square().sum().backward()
    assert any(weight.grad is not None for weight in backend.module.parameters())
    monkeypatch.setattr(backend, "_predict", lambda x, t, _: inputs.append(x) or torch.zeros_like(x))
    for caption in CAPTIONS[:2]:
        backend.predictions(Batch.of([Clip("t", caption, clips[0].codes)], noise_index=3))
    assert all(torch.equal(a, b) for a, b in zip(inputs[:TIMESTEPS], inputs[TIMESTEPS:], strict=True))


def test_levels_are_stratified(backend, clips):
    for draw in range(3):
        _, _, share = backend._noised(clips[0].codes, draw)
        assert (share * TIMESTEPS).long().tolist() == list(range(TIMESTEPS))


def test_random_targets_keep_the_input_and_replace_the_target(backend, clips, monkeypatch):
    batch, seen = Batch.of(clips), []
    one, same, other = (backend.random_losses(batch, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert one.shape == (3,)
    assert torch.equal(one, same)
    assert (one != other).all()
    one.sum().backward()
    assert any(weight.grad is not None for weight in backend.module.parameters())
    for ask in (backend.losses, lambda b: backend.random_losses(b, torch.Generator())):
        monkeypatch.setattr(backend, "_predict", lambda x, t, _: seen.append(x) or torch.zeros_like(x))
        ask(batch)
    half = len(seen) // 2
    assert all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))


def test_fisher_is_that_of_one_clip_at_a_time(backend, clips):
    """One clip has the length of another, so that some can be run together."""
    several = [*clips, Clip("t3", clips[0].caption, clips[0].codes.flip(-1))]
    found = backend_fisher(backend, several)
    names = [name for name, weight in backend.module.named_parameters() if weight.requires_grad]
    assert found.values.keys() == set(names)
    expected = {name: torch.zeros_like(found.values[name]) for name in names}
    weights = [backend.module.get_parameter(name) for name in names]
    for clip in several:
        loss = backend.losses(Batch.of([clip]))[0]
        for name, gradient in zip(names, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if gradient is not None:
                expected[name] += gradient.square()
    for name, value in expected.items():
        scale = float(value.max()) + 1e-12
        torch.testing.assert_close(found.values[name] / scale, value / scale, rtol=1e-3, atol=1e-4, msg=name)


# --------------------------------------------------------------------------------------------------------- playing


def test_rows_are_played_alike_in_any_batch(backend):
    backend.inference_steps = 5
    together = backend.generate(CAPTIONS, seconds=0.3, seed=4)
    assert together.shape == (3, backend.codebooks, round(0.3 * backend.frame_rate))
    for i, caption in enumerate(CAPTIONS):
        alone = backend.generate([caption], seconds=0.3, seed=4 + i)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-3)
    assert not torch.equal(together, backend.generate(CAPTIONS, seconds=0.3, seed=9))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_plays_what_the_pipeline_plays(backend, guidance):
    caption, seconds, steps, seed = CAPTIONS[0], 0.4, 5, 7
    backend.inference_steps = steps
    found = backend.generate([caption], seconds=seconds, seed=seed, guidance=guidance)
    noise = torch.randn(found.shape[1:], generator=torch.Generator().manual_seed(seed))[None]
    sampling = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent"}
    sampling |= {"generator": [torch.Generator().manual_seed(seed)]}
    with quiet():
        if backend.name == "stable-audio":
            expected = backend.pipe(caption, audio_end_in_s=seconds, latents=noise, **sampling).audios
        elif backend.name == "ace-step":
            with pytest.MonkeyPatch.context() as patch:  # the prompt tells the seconds; the backend's tells its window
                encode = backend.pipe.encode_prompt
                patch.setattr(backend.pipe, "encode_prompt", lambda **more: encode(**{**more, "audio_duration": 30.0}))
                expected = backend.pipe(caption, audio_duration=seconds, latents=noise.mT, **sampling).audios.mT
        else:
            expected = backend._folded(
                backend.pipe(caption, audio_length_in_s=seconds, latents=backend._unfolded(noise), **sampling).audios
            )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_decodes_what_the_pipeline_decodes(backend):
    latents = torch.randn(1, backend.codebooks, 40)
    found = backend.decode(latents)
    if backend.name == "audioldm2":
        planes = backend._unfolded(latents) / backend.parts["vae"].config.scaling_factor
        with torch.no_grad():
            expected = backend.pipe.mel_spectrogram_to_waveform(backend.parts["vae"].decode(planes).sample)[:, None]
    else:
        with torch.no_grad():
            expected = backend.parts["vae"].decode(latents).sample
    torch.testing.assert_close(found[..., : expected.shape[-1]], expected)


def test_what_can_not_be_played_is_refused(backend):
    with pytest.raises(UsageError, match="can't continue a prompt"):
        backend.generate(CAPTIONS[:1], seconds=0.3, prompt=torch.zeros(1, backend.codebooks, 3))
    with pytest.raises(UsageError, match="s at most"):
        backend.generate(CAPTIONS[:1], seconds=backend.max_frames / backend.frame_rate + 1)
    with pytest.raises(UsageError, match="no tokens"):
        backend.logits(Batch.of([Clip("t", "c", torch.zeros(backend.codebooks, 3))]))
    with pytest.raises(UsageError, match="no tokens"):
        backend.token_mask(Batch.of([Clip("t", "c", torch.zeros(backend.codebooks, 3))]))


def test_a_distilled_model_is_not_guided(tmp_path):
    from tests.tiny_pipelines import write_ace_step

    turbo = plugins.backends().resolve("ace-step").load(str(write_ace_step(tmp_path / "turbo", turbo=True)))
    assert turbo.inference_steps == 8
    plain, guided = (turbo.generate(CAPTIONS[:1], seconds=0.2, guidance=guidance) for guidance in (1.0, 5.0))
    assert torch.equal(plain, guided)


def test_gpt2_without_a_head_reads_captions_too(tmp_path):
    """Published checkpoints name `GPT2Model`, which can't generate under transformers 5."""
    from transformers import GPT2Model

    family = plugins.backends().resolve("audioldm2")
    headless = family.load(str(write_audioldm2(tmp_path / "headless", language_model=GPT2Model)))
    read = headless.encode_text(CAPTIONS[:1])[0]
    made = headless.parts["language_model"].config.max_new_tokens
    assert read.shape == (made + len(CAPTIONS[0].split()) + 1, 24)


# --------------------------------------------------------------------------------------------------- copies, files


def test_clone_has_trained_weights_of_its_own(backend, clips):
    twin = backend.clone()
    before = backend.losses(Batch.of(clips))
    with torch.no_grad():
        for weight in twin.module.parameters():
            weight.add_(0.1)
    assert torch.equal(before, backend.losses(Batch.of(clips)))
    assert all(twin.frozen()[name] is part for name, part in backend.frozen().items())
    assert twin.pipe is not backend.pipe


def test_reinitialised_weights_depend_on_the_seed_alone(backend):
    state = torch.random.get_rng_state()
    hashes, twin = [module_sha256(backend.module)], backend.clone()
    for model, seed in ((backend, 5), (twin, 5), (twin, 6)):
        model.reinitialise(seed)
        hashes.append(module_sha256(model.module))
    assert hashes[1] == hashes[2]
    assert len(set(hashes)) == 3
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_is_saved_opens_in_diffusers(backend, clips, tmp_path):
    with torch.no_grad():
        for weight in backend.module.parameters():
            if weight.requires_grad:
                weight.add_(0.01)
    backend.save(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".model",
        ".txt",
    }
    with quiet():
        pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipe).__name__ == backend.pipeline
    again = type(backend).load(str(tmp_path), offline=True)
    assert module_sha256(again.module) == module_sha256(backend.module)
    for name in backend.trained:
        assert module_sha256(getattr(pipe, name)) == module_sha256(backend.parts[name])
    torch.testing.assert_close(again.losses(Batch.of(clips)), backend.losses(Batch.of(clips)))
    assert again.settings == backend.settings


def test_settings_tell_what_weights_do_not(tmp_path):
    family = plugins.backends().resolve("stable-audio")
    from diffusers import EDMDPMSolverMultistepScheduler

    plain = family.load(str(write_stable_audio(tmp_path / "plain")))
    scheduled = family.load(str(write_stable_audio(tmp_path / "other", scheduler=EDMDPMSolverMultistepScheduler())))
    worded = family.load(
        str(write_stable_audio(tmp_path / "words", captions=[*CAPTIONS[1:], "lonely flute under lute"]))
    )
    assert module_sha256(plain.module) == module_sha256(scheduled.module) == module_sha256(worded.module)
    assert len({plain.settings, scheduled.settings, worded.settings}) == 3
    scaled = plugins.backends().resolve("audioldm2").load(str(write_audioldm2(tmp_path / "latent")))
    before = scaled.settings
    scaled.parts["vae"].register_to_config(scaling_factor=9.0)
    assert scaled.settings != before


def test_stable_audio_hears_silence_after_a_clip(folders):
    backend = plugins.backends().resolve("stable-audio").load(str(folders["stable-audio"]))
    waveform = 0.1 * torch.randn(1, 1, 20 * backend.hop)
    latents = backend.encode(waveform)[0]
    heard, _, _ = backend._noised(latents, 0)
    window = torch.nn.functional.pad(waveform, (0, 20 * backend.hop))
    assert heard.shape == (4, 40)
    torch.testing.assert_close(heard[:, :20], latents)
    torch.testing.assert_close(heard[:, 25:], backend.encode(window)[0, :, 25:], rtol=1e-3, atol=1e-3)
