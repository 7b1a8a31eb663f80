"""The methods on Fisher and gradient, against their formulas in float64 with plain autograd, one clip at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen
from torch import Tensor

from encore.api import Batch, Clip, Step
from encore.backends.musicgen import MusicgenBackend
from encore.errors import PluginError
from encore.hashing import module_sha256
from encore.methods.salun import SalUn
from encore.plugins import methods
from encore.unlearn.engine import Clips, Engine

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> MusicgenBackend:
    return MusicgenBackend.load(str(write_tiny_musicgen(tmp_path_factory.mktemp("tiny"), dropout=0.2)), offline=True)


@pytest.fixture(scope="module")
def clips() -> Clips:
    generator = torch.Generator().manual_seed(0)
    made = [Clip(f"t{i}", CAPTIONS[i % 3], torch.randint(CODES, (2, 9 + i), generator=generator)) for i in range(9)]
    return Clips(made[:3], made[3:7], made[7:])


@pytest.fixture(scope="module")
def exact(base: MusicgenBackend, clips: Clips) -> dict[str, Any]:
    """Per-clip gradients of the base in float64."""
    return {"forget": gradients(base, clips.forget), "retain": gradients(base, clips.retain), "weights": weights(base)}


def gradients(backend: MusicgenBackend, clips: Sequence[Clip]) -> dict[str, Tensor]:
    """g_n of each clip's mean NLL, [N, *shape], with model and loss in float64: the NLL is written out here again."""
    twin = backend.clone()
    twin.module.double().eval()
    for clip in clips:
        twin.encode_text([clip.caption])
    twin.text_embeddings = {caption: states.double() for caption, states in twin.text_embeddings.items()}
    rows = []
    for clip in clips:
        table = twin.logits(Batch.of([clip]))[0].log_softmax(-1)  # [K, T, V]
        K, T = clip.codes.shape
        nll = -torch.stack([table[k, t, clip.codes[k, t]] for k in range(K) for t in range(T - k)]).mean()
        assert nll.dtype == torch.float64
        rows.append(torch.autograd.grad(nll, list(twin.module.parameters()), allow_unused=True, materialize_grads=True))
    names = [name for name, _ in twin.module.named_parameters()]
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(names)}


def weights(backend: MusicgenBackend) -> Weights:
    return {name: weight.detach().double() for name, weight in backend.module.named_parameters()}


def squares(per_clip: Weights) -> Weights:
    """Mean of the squares: what the square of the mean must not be taken for."""
    return {name: rows.square().mean(0) for name, rows in per_clip.items()}


def overall_mean(values: Weights) -> float:
    return float(torch.cat([value.flatten() for value in values.values()]).mean())


def make(name: str, **options: Any) -> Any:
    cls = methods().resolve(name)
    return cls(cls.Options(**options))


def run(base: MusicgenBackend, clips: Clips, method: Any, **engine: Any) -> MusicgenBackend:
    model = base.clone()
    model.module.train()  # dropout must be off in every pass over a gradient
    Engine(model, clips, **engine).run(method)
    assert not model.module.training
    return model


def close(model: MusicgenBackend, start: Weights, expected: Weights, tolerance: float = 1e-4) -> None:
    """What was changed, and not the weights as a whole, is compared."""
    for name, weight in weights(model).items():
        moved, should = weight - start[name], expected[name] - start[name]
        slack = 2e-7 * start[name].norm()  # of storing the result in float32
        assert (moved - should).norm() <= tolerance * should.norm() + slack, name


# -------------------------------------------------------------------------------------------------------------- ssd


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize(("alpha", "lam"), [(1.2, 1.0), (1.7, 0.4), (0.5, 1.3)])
def test_ssd_is_the_formula(
    base: MusicgenBackend, clips: Clips, exact: dict[str, Any], alpha: float, lam: float, size: int
) -> None:
    method = make("ssd", alpha=alpha, lam=lam, labels="empirical", micro_batch_size=size)
    found = weights(run(base, clips, method))
    forget = squares(exact["forget"])
    everything = squares({n: torch.cat([rows, exact["retain"][n]]) for n, rows in exact["forget"].items()})
    taken = 0
    for name, start in exact["weights"].items():
        important, all_ = forget[name], everything[name]
        chosen = important > alpha * all_
        expected = torch.where(chosen, start * (lam * all_ / important).clamp(max=1), start)
        clear = (important / all_ - alpha).abs() > 1e-3 * alpha  # float32 may round the rest to the other side
        clear |= important == 0
        assert clear.float().mean() > 0.98
        torch.testing.assert_close(found[name][clear], expected[clear], rtol=1e-4, atol=1e-8)
        untouched = clear & ~chosen
        assert torch.equal(found[name][untouched], start[untouched])  # bit for bit
        taken += int(chosen.sum())
    assert taken > 100


def test_ssd_beyond_the_largest_ratio_changes_nothing(base: MusicgenBackend, clips: Clips) -> None:
    """7 clips of which 3 are forgotten: no weight can be more than 7/3 times as important to forget as to all."""
    untouched = run(base, clips, make("ssd", alpha=7 / 3 + 1e-3, labels="empirical"))
    assert module_sha256(untouched.module) == module_sha256(base.module)


# ----------------------------------------------------------------------------------------------------- fisher-noise


@pytest.mark.parametrize("cap", [1e9, 3.0])
def test_fisher_noise_is_the_formula(base: MusicgenBackend, clips: Clips, exact: dict[str, Any], cap: float) -> None:
    found = weights(run(base, clips, make("fisher-noise", alpha=1e-7, cap=cap, labels="empirical"), seed=5))
    fisher = squares(exact["retain"])
    least = overall_mean(fisher) / cap
    generator = torch.Generator().manual_seed(5)
    capped = 0
    for name, start in exact["weights"].items():
        noise = torch.randn(start.shape, generator=generator).double()
        sure = fisher[name] >= 1e-9 * fisher[name].max()  # float32 knows the rest less well
        capped += int((fisher[name] < least).sum())
        expected = (1e-7 / fisher[name].clamp(min=least)).sqrt() * noise
        torch.testing.assert_close((found[name] - start)[sure], expected[sure], rtol=1e-3, atol=1e-6)
    assert capped > 100


def test_fisher_noise_follows_the_seed_and_not_forget(base: MusicgenBackend, clips: Clips) -> None:
    method = make("fisher-noise", alpha=1e-8, labels="empirical")
    one, again, other = (run(base, clips, method, seed=seed) for seed in (1, 1, 2))
    assert module_sha256(one.module) == module_sha256(again.module) != module_sha256(other.module)
    elsewhere = run(base, Clips(clips.holdout, clips.retain, []), method, seed=1)
    assert module_sha256(one.module) == module_sha256(elsewhere.module)


# -------------------------------------------------------------------------------------------------------------- ewc


def prepared(method: Any, base: MusicgenBackend, clips: Clips) -> tuple[MusicgenBackend, Engine]:
    """Up to the first step."""
    model = base.clone()
    engine = Engine(model, clips)
    engine.train = lambda _: None  # type: ignore[method-assign]
    engine.run(method)
    return model, engine


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_case_D9_ewc_is_the_formula_with_half_of_lambda(
    base: MusicgenBackend, clips: Clips, exact: dict[str, Any], alpha: float
) -> None:
    method = make("ewc", lam=80.0, alpha=alpha, labels="empirical")
    model, _ = prepared(method, base, clips)
    step = Step(model, None, torch.Generator(), 0.0, 3.0)
    batch = Batch.of(clips.retain)
    assert method.penalty(step) == 0  # no pull at the base
    torch.testing.assert_close(method.retain_loss(step, batch), alpha * base.losses(batch))
    torch.testing.assert_close(method.forget_loss(step, batch), -base.losses(batch))
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    fisher = squares(exact["retain"])
    pull = sum(float((fisher[n] * (now - exact["weights"][n]).square()).sum()) for n, now in weights(model).items())
    assert 40 * pull > 0.1
    assert method.penalty(step).item() == pytest.approx(40 * pull, rel=1e-4)
    gradient = torch.autograd.grad(method.penalty(step), list(model.module.parameters()))
    for (name, now), found in zip(weights(model).items(), gradient, strict=True):
        expected = 80 * fisher[name] * (now - exact["weights"][name])
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-7)


def test_ewc_hears_retain_only_where_it_trains_on_it(base: MusicgenBackend, clips: Clips) -> None:
    for alpha, heard in ((0.0, False), (0.5, True)):
        lines: list[Any] = []
        method = make("ewc", lam=1e3, alpha=alpha, steps=2, stop="never", labels="empirical")
        Engine(base.clone(), clips, record=lines.append).run(method)
        steps = [line for line in lines if "grad_norm" in line]
        assert [line["penalty"] > 0 for line in steps] == [False, True]
        assert all(("retain_loss" in line) is heard for line in steps)


def test_ewc_goes_less_far_the_more_it_is_pulled(base: MusicgenBackend, clips: Clips) -> None:
    def pulls(lam: float) -> list[float]:
        """Σ F_r (θ - θ₀)² before each step."""
        lines: list[Any] = []
        method = make("ewc", lam=lam, steps=20, stop="never", eval_every=20, labels="empirical")
        Engine(base.clone(), clips, record=lines.append).run(method)
        return [line["penalty"] / lam for line in lines if "grad_norm" in line]

    loose, held = pulls(1e-3), pulls(1e4)
    assert loose[0] == held[0] == 0
    assert held[-1] < 0.5 * loose[-1]


def test_ewc_is_bounded_by_the_held_out_nll(base: MusicgenBackend, clips: Clips) -> None:
    engine = Engine(base.clone(), clips)
    before = engine.monitor.first.forget
    engine.monitor.set_targets(dict.fromkeys(before, 1.05 * sum(before.values()) / 3))
    outcome = engine.run(make("ewc", lam=0.0, steps=200, labels="empirical"))
    assert outcome.reached_target
    assert outcome.steps < 200


# ----------------------------------------------------------------------------------------------------------- newton


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_newton_is_the_formula(
    base: MusicgenBackend, clips: Clips, exact: dict[str, Any], rho: float, steps: int
) -> None:
    clips = Clips(clips.forget, clips.retain, [])  # no unseen level: nothing ends it early
    eta, epsilon = 1e-6, 0.5
    found = run(
        base, clips,
        make("newton", eta=eta, rho=rho, epsilon=epsilon, steps=steps, micro_batch_size=2, labels="empirical"),
    )  # fmt: skip
    fisher = squares(exact["retain"])  # at the base, for all steps
    damping = epsilon * overall_mean(fisher)
    walk = base.clone()
    for _ in range(steps):
        forget, retain = gradients(walk, clips.forget), gradients(walk, clips.retain)
        with torch.no_grad():
            for name, weight in walk.module.named_parameters():
                step = (forget[name].mean(0) - rho * retain[name].mean(0)) / (fisher[name] + damping)
                weight.add_(eta * step)
    close(found, exact["weights"], weights(walk), tolerance=1e-3)
    before, after = (model.losses(Batch.of(clips.forget)).mean() for model in (base, found))
    assert after > before + 1e-4


def test_newton_ends_at_the_held_out_nll(base: MusicgenBackend, clips: Clips) -> None:
    def nll(backend: MusicgenBackend) -> float:
        return backend.losses(Batch.of(clips.forget)).mean().item()

    def walk(steps: int, level: float, eta: float = 3e-6) -> MusicgenBackend:
        model = base.clone()
        engine = Engine(model, clips)
        engine.monitor.holdout_nll = level
        engine.run(make("newton", eta=eta, steps=steps, labels="empirical"))
        return model

    free = [nll(walk(steps, 1e9)) for steps in (1, 2, 3)]
    assert nll(base) < free[0] < free[1] < free[2]
    between = (free[0] + free[1]) / 2
    assert between <= nll(walk(20, between)) <= 1.05 * between
    far = nll(walk(1, 1e9, eta=1e-3))
    assert not far <= 1.2 * between  # one step at this rate goes far past; halves of it do not
    assert between <= nll(walk(30, between, eta=1e-3)) <= 1.05 * between
    assert module_sha256(walk(9, 0.1).module) == module_sha256(base.module)


# ------------------------------------------------------------------------------------------------------------ salun


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_salun_trains_the_largest_summed_gradients(
    base: MusicgenBackend, clips: Clips, exact: dict[str, Any], share: float
) -> None:
    method: SalUn = make("salun", share=share)
    kept: list[Any] = []
    method_prepare = method.prepare
    method.prepare = lambda session: (method_prepare(session), kept.append(session))[0]  # type: ignore[method-assign]
    prepared(method, base, clips)
    saliency = {name: rows.sum(0).abs() for name, rows in exact["forget"].items()}
    flat = torch.cat([value.flatten() for value in saliency.values()])
    limit = flat.sort(descending=True).values[round(share * len(flat)) - 1]
    masks = kept[0].masks
    assert masks.keys() == saliency.keys()
    for name, value in saliency.items():
        clear = (value - limit).abs() > 1e-3 * limit
        assert torch.equal(masks[name][clear], (value >= limit)[clear]), name
    taken = sum(int(mask.sum()) for mask in masks.values())
    assert taken == pytest.approx(share * len(flat), rel=1e-3)


def test_salun_leaves_weights_that_forget_does_not_use(base: MusicgenBackend, clips: Clips, exact: Any) -> None:
    """Also where the share is all of them: 0 is not salient."""
    unused = {name: (rows == 0).all(0) for name, rows in exact["forget"].items()}
    assert sum(int(mask.sum()) for mask in unused.values()) > 50
    found = weights(run(base, clips, make("salun", share=1.0, steps=4, stop="never", weight_decay=0.3)))
    for name, mask in unused.items():
        assert torch.equal(found[name][mask], exact["weights"][name][mask])


def test_salun_leaves_the_rest_bit_identical(base: MusicgenBackend, clips: Clips, exact: dict[str, Any]) -> None:
    options = {"steps": 8, "eval_every": 4, "stop": "never", "weight_decay": 0.3, "dropout": True, "warmup": 0}
    found = weights(run(base, clips, make("salun", **options)))
    saliency = {name: rows.sum(0).abs() for name, rows in exact["forget"].items()}
    limit = torch.cat([value.flatten() for value in saliency.values()]).median()
    moved = {name: value != exact["weights"][name] for name, value in found.items()}
    for name, value in saliency.items():
        clear = (value - limit).abs() > 1e-3 * limit
        assert torch.equal(moved[name][clear], (value > limit)[clear]), name


# ------------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("name", ["ssd", "fisher-noise", "ewc", "newton"])
def test_labels_reach_the_fisher(base: MusicgenBackend, clips: Clips, name: str) -> None:
    asked: list[str] = []

    class Watched(Engine):
        def fisher(self, clips: Any, labels: Any, micro_batch_size: int) -> Weights:
            asked.append(labels)
            return super().fisher(clips, labels, micro_batch_size)

    more = {"steps": 1} if name in ("ewc", "newton") else {}
    for labels in ("empirical", "sampled"):
        Watched(base.clone(), clips).run(make(name, labels=labels, **more))
    assert list(dict.fromkeys(asked)) == ["empirical", "sampled"]


@pytest.mark.parametrize("name", ["ssd", "fisher-noise", "ewc", "newton"])
def test_they_declare_the_fisher(base: MusicgenBackend, clips: Clips, name: str) -> None:
    method = make(name)
    assert method.spec.needs == {"retain", "fisher"}
    engine = Engine(base.clone(), clips)
    method.spec = type(method.spec)(name, "without it", "", needs={"retain"})
    with pytest.raises(PluginError):
        engine.run(method)
