"""ssd, fisher-noise, newton, ewc and salun, each against its formula over float64 gradients of one clip at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen
from torch import Tensor

from encore.api import Batch, Clip, Method
from encore.backends.musicgen import MusicgenBackend
from encore.builtins import encore_register_methods
from encore.methods.ewc import Ewc
from encore.methods.fisher_noise import FisherNoise
from encore.methods.newton import Newton
from encore.methods.salun import SalUn
from encore.methods.ssd import Ssd
from encore.options import Options
from encore.runs.engine import Clips, Engine

SPECS = {spec.name: spec for spec in encore_register_methods()}
for _name, _kind in (("ssd", Ssd), ("fisher-noise", FisherNoise), ("newton", Newton), ("ewc", Ewc), ("salun", SalUn)):
    _kind.spec = SPECS[_name]
Named = dict[str, Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> MusicgenBackend:
    return MusicgenBackend.load(str(write_tiny_musicgen(tmp_path_factory.mktemp("tiny"), dropout=0.1)), offline=True)


@pytest.fixture
def clips() -> Clips:
    generator = torch.Generator().manual_seed(0)
    made = [Clip(f"t{i}", CAPTIONS[i % 3], torch.randint(CODES, (2, 15 + i), generator=generator)) for i in range(8)]
    return Clips(made[:2], made[2:6], made[6:])


def gradients(backend: MusicgenBackend, clips: Sequence[Clip]) -> list[Named]:
    """∇ of each clip's loss alone, float64."""
    found = []
    for clip in clips:
        backend.module.zero_grad()
        backend.losses(Batch.of([clip])).sum().backward()
        found.append(
            {n: (torch.zeros_like(w) if w.grad is None else w.grad).double() for n, w in weights_of(backend).items()}
        )
    backend.module.zero_grad()
    return found


def mean(values: Sequence[Named], of: Callable[[Tensor], Tensor] = lambda g: g) -> Named:
    return {name: torch.stack([of(one[name]) for one in values]).mean(0) for name in values[0]}


def weights_of(backend: MusicgenBackend) -> Named:
    return dict(backend.module.named_parameters())


def changed(base: MusicgenBackend, clips: Clips, method: type[Method], options: Options, seed: int = 0) -> Named:
    twin = base.clone()
    Engine(twin, clips, seed=seed).run(method(options))
    return {name: weight.detach().double() for name, weight in weights_of(twin).items()}


def overall(values: Named) -> float:
    return torch.cat([value.flatten() for value in values.values()]).mean().item()


def test_ssd_dampens_what_matters_to_forget_alone(base: MusicgenBackend, clips: Clips) -> None:
    forget = mean(gradients(base, clips.forget), torch.square)
    everything = mean(gradients(base, [*clips.forget, *clips.retain]), torch.square)
    after = changed(base, clips, Ssd, Ssd.Options(alpha=1.5, lam=0.7, labels="empirical"))
    moved = 0
    for name, weight in weights_of(base).items():
        old = weight.detach().double()
        sure = (forget[name] - 1.5 * everything[name]).abs() > 1e-5 * forget[name]  # not on the edge
        factor = (0.7 * everything[name] / forget[name]).clamp(max=1)
        expected = torch.where(forget[name] > 1.5 * everything[name], factor * old, old)
        torch.testing.assert_close(after[name][sure], expected[sure], rtol=1e-4, atol=1e-7)
        moved += int((after[name] != old).sum())
    assert moved > 100


def test_fisher_noise_is_wide_where_retain_has_no_say(base: MusicgenBackend, clips: Clips) -> None:
    fisher = mean(gradients(base, clips.retain), torch.square)
    floor = overall(fisher) / 2
    options = FisherNoise.Options(alpha=1e-6, cap=2.0, labels="empirical")
    noise = {
        seed: changed(base, clips, FisherNoise, options, seed) for seed in (0, 1)
    }  # fmt: skip
    again = changed(base, clips, FisherNoise, options, 0)
    scaled = []
    for name, weight in weights_of(base).items():
        assert torch.equal(noise[0][name], again[name])
        width = (1e-6 / fisher[name].clamp(min=floor)).sqrt()
        scaled.append(((noise[0][name] - weight.detach().double()) / width).flatten())
    normal = torch.cat(scaled)
    assert normal.mean().item() == pytest.approx(0, abs=0.03)
    assert normal.std().item() == pytest.approx(1, abs=0.03)
    assert any(not torch.equal(noise[0][name], noise[1][name]) for name in noise[0])


def test_newton_steps_by_gradients_over_the_fisher(base: MusicgenBackend, clips: Clips) -> None:
    fisher = mean(gradients(base, clips.retain), torch.square)
    damping = 2.0 * overall(fisher)
    twin = base.clone()
    for _ in range(2):
        forget, retain = mean(gradients(twin, clips.forget)), mean(gradients(twin, clips.retain))
        with torch.no_grad():
            for name, weight in weights_of(twin).items():
                step = 1e-4 * (forget[name] - 0.5 * retain[name]) / (fisher[name] + damping)
                weight.copy_(weight.double() + step)
    after = changed(
        base,
        Clips(clips.forget, clips.retain, []),
        Newton,
        Newton.Options(steps=2, eta=1e-4, rho=0.5, epsilon=2.0, micro_batch_size=3, labels="empirical"),
    )
    for name, weight in weights_of(twin).items():
        torch.testing.assert_close(after[name], weight.detach().double(), rtol=1e-4, atol=1e-6)


def test_ewc_is_ascent_and_a_pull_back_to_the_base_that_each_retain_clip_bears(
    base: MusicgenBackend, clips: Clips
) -> None:
    fisher = mean(gradients(base, clips.retain), torch.square)
    pulls = []

    class Watched(Ewc):
        def forget_loss(self, step, batch):  # type: ignore[no-untyped-def]
            losses = super().forget_loss(step, batch)
            torch.testing.assert_close(losses, -step.backend.losses(batch))
            return losses

        def retain_loss(self, step, batch):  # type: ignore[no-untyped-def]
            losses = super().retain_loss(step, batch)
            pull = sum(
                (fisher[n] * (w.detach().double() - weights_of(base)[n].double()).square()).sum().item()
                for n, w in weights_of(step.backend).items()
            )
            assert losses.tolist() == pytest.approx([70.0 * pull] * len(batch), rel=1e-3, abs=1e-9)
            pulls.append(pull)
            return losses

    changed(base, clips, Watched, Watched.Options(lam=70.0, labels="empirical", steps=4, lr=1e-2, stop="never"))
    assert pulls[0] == 0 < pulls[-1]


def test_salun_trains_the_salient_weights_alone(base: MusicgenBackend, clips: Clips) -> None:
    sums = {name: value.abs() for name, value in mean(gradients(base, clips.forget)).items()}
    ranked = torch.cat([value.flatten() for value in sums.values()]).sort(descending=True).values
    limit = ranked[round(0.3 * len(ranked)) - 1]
    options = SalUn.Options(share=0.3, steps=3, lr=1e-2, weight_decay=0.1, stop="never")  # decay too must not move them
    after = changed(base, clips, SalUn, options)
    trained = 0
    for name, weight in weights_of(base).items():
        still = sums[name] < limit * (1 - 1e-4)
        assert torch.equal(after[name][still], weight.detach().double()[still])
        trained += int((after[name] != weight.detach().double()).sum())
    assert trained > 0.25 * len(ranked)
