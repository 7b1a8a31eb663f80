"""The default method without tokens: its targets and loss, against one clip and one caption at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen

from encore.api import Batch, Clip, Step
from encore.backends.musicgen import MusicgenBackend
from encore.methods.encore_diffusion import EncoreDiffusion
from encore.testing.fixture import LatentBackend, as_latents


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> LatentBackend:
    folder = write_tiny_musicgen(tmp_path_factory.mktemp("tiny"))
    return LatentBackend(MusicgenBackend.load(str(folder), offline=True))


def clips(seed: int, lengths: list[int]) -> list[Clip]:
    drawn = torch.Generator().manual_seed(seed)
    return as_latents(
        [
            Clip(f"{seed}-{i}", CAPTIONS[i % 3], torch.randint(CODES, (2, n), generator=drawn))
            for i, n in enumerate(lengths)
        ]
    )


def loss_of(backend: LatentBackend, clip: Clip, caption: str) -> float:
    other = Clip(clip.track, caption, clip.codes)
    with torch.no_grad():
        return sum(float(backend.losses(Batch.of([other], noise_index=draw))) for draw in range(4)) / 4


def test_a_target_is_what_other_captions_leave_times_what_held_out_music_gains_by_its_own(backend, monkeypatch) -> None:
    forget, retain, holdout = clips(1, [20, 24]), clips(2, [20, 20, 20]), clips(3, [22, 20])
    session = SimpleNamespace(
        backend=backend, forget=forget, holdout=holdout, retain_sample=lambda: retain, chosen={}, lr=None, target_nll={}
    )
    method = EncoreDiffusion(EncoreDiffusion.Options(attack_share=0))
    method.prepare(session)
    captions = {clip.caption for clip in retain}

    def of_others(clip: Clip) -> float:
        others = captions - {clip.caption}
        return sum(loss_of(backend, clip, caption) for caption in others) / len(others)

    ratio = sum(loss_of(backend, clip, clip.caption) / of_others(clip) for clip in holdout) / 2
    for clip in forget:
        level = ratio * of_others(clip)
        assert session.target_nll[clip.track] == pytest.approx(
            max(level, loss_of(backend, clip, clip.caption)), rel=1e-4
        )
    weights = sorted(
        float(p.weight.detach().square().mean().sqrt()) for p in backend.module.modules() if type(p) is torch.nn.Linear
    )
    middle = (weights[(len(weights) - 1) // 2] + weights[len(weights) // 2]) / 2
    assert session.lr == pytest.approx(0.015 * middle)

    step = Step(backend, None, torch.Generator().manual_seed(5), 0.0, None, forget=forget)
    computed, logits = [], backend.inner.logits
    monkeypatch.setattr(backend.inner, "logits", lambda *given, **more: computed.append(1) or logits(*given, **more))
    losses = method.forget_loss(step, Batch.of(forget, noise_index=3))
    assert len(computed) == 2, "the network runs once for its own caption, and once for the other"
    monkeypatch.undo()
    drawn = torch.Generator().manual_seed(5)
    for clip, loss in zip(forget, losses, strict=True):
        own = Batch.of([clip], noise_index=3)
        others = sorted(captions - {clip.caption})
        caption = others[int(torch.randint(len(others), (1,), generator=drawn))]
        other = Batch.of([Clip(clip.track, caption, clip.codes)], noise_index=3)
        with torch.no_grad():
            error = float((backend.predictions(own)[0] - backend.predictions(other)[0]).square().mean())
            short = max(0.0, session.target_nll[clip.track] - float(backend.losses(own)))
        assert float(loss.detach()) == pytest.approx(error + short, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("retain", [1, 3, 15])
def test_other_captions_are_spread_over_all_and_never_a_clips_own(backend, monkeypatch, retain) -> None:
    kept = [Clip(f"r{i:02}", f"caption {i:02}", torch.zeros(2, 2)) for i in range(retain)]
    method = EncoreDiffusion(EncoreDiffusion.Options(attack_share=0))
    method._captions = [clip.caption for clip in kept]
    asked: list[str] = []
    monkeypatch.setattr(
        "encore.methods.encore_diffusion.mean_losses",
        lambda _, clips: torch.tensor([float(asked.append(clip.caption) or 1) for clip in clips]),
    )
    assert method._with_other_captions(backend, [Clip("t", "caption 00", torch.zeros(2, 2))]).tolist() == [1]
    if retain == 1:
        assert asked == ["caption 00"], "there is no other"
        return
    assert "caption 00" not in asked
    assert len(set(asked)) == len(asked) == min(8, retain - 1)
    assert int(asked[-1][-2:]) > 0.8 * (retain - 1), "captions of the end of the alphabet are among them"


def test_attacks_are_at_the_fixed_rate_where_it_relearns_more_and_new_music_says_how_much(backend) -> None:
    """As many clips of new music at a time as there are forget clips, here two."""
    forget, retain, holdout = clips(1, [20, 24]), clips(2, [20, 20, 20]), clips(3, [22, 20])
    session = SimpleNamespace(
        backend=backend, forget=forget, holdout=holdout, retain_sample=lambda: retain, chosen={}, lr=None, target_nll={}
    )
    method = EncoreDiffusion(EncoreDiffusion.Options(attack_share=1, attack_steps=3, attack_rate=1e-4))
    method.prepare(session)
    assert "0.001" in session.chosen["attack_rate"]
    twin, kept = backend.clone(), []
    optimizer = torch.optim.AdamW(twin.module.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        twin.losses(Batch.of(holdout)).mean().backward()
        torch.nn.utils.clip_grad_norm_(twin.module.parameters(), 1.0)
        optimizer.step()
        after, before = (sum(loss_of(model, clip, clip.caption) for clip in holdout) for model in (twin, backend))
        kept.append(after / before)
    assert method._attack.retained_shares.tolist() == pytest.approx(kept, rel=1e-4)
    assert kept[-1] < 1
