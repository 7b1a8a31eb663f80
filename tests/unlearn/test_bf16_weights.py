"""Weights in bfloat16: beside float32 arithmetic bit by bit, in the loop, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from encore.backends.musicgen import MusicgenBackend
from encore.errors import UsageError
from encore.hashing import module_sha256
from encore.plugins import methods
from encore.stop_signals import Interrupted, StopFlag
from encore.store.run_folder import Checkpoints
from encore.unlearn import bf16_weights
from encore.unlearn.config import Lora
from encore.unlearn.engine import Clips, Engine


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_number_is_the_nearest_bfloat16_number_and_the_rest() -> None:
    values = torch.randn(4000) * torch.logspace(-38, 37, 4000)
    values = torch.cat([values, torch.tensor([0.0, -0.0, 1.00390625, -1.00390625, float("inf")])])
    upper, remainder = bf16_weights.split(values)
    expected = values.to(torch.bfloat16)  # which rounds halves to even
    distance = (upper.double() - values.double()).abs() <= (expected.double() - values.double()).abs()
    assert bool((distance | values.isinf()).all())
    weight = nn.Parameter(upper)
    setattr(weight, bf16_weights.REMAINDER, remainder)
    assert torch.equal(bf16_weights.whole(weight).view(torch.int32), values.view(torch.int32))


@pytest.mark.parametrize("trained", [True, False])
def test_float32_values_come_back_to_the_bit(backend: MusicgenBackend, cache: Path, trained: bool) -> None:
    backend.module.requires_grad_(trained)
    before, objects = module_sha256(backend.module), [*backend.module.parameters()]
    with bf16_weights.bf16_weights(backend.module):
        kinds = {(weight.ndim > 1, weight.dtype) for weight in backend.module.parameters()}
        assert kinds == {(True, torch.bfloat16), (False, torch.float32)}
        assert {weight.dtype for weight in backend.clone().module.parameters()} == {torch.bfloat16, torch.float32}
        assert [*cache.iterdir()] == []  # the file has no name
    assert module_sha256(backend.module) == before
    assert all(one is other for one, other in zip(objects, backend.module.parameters(), strict=True))


def test_steps_are_those_of_adamw_on_a_float32_copy() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5))
    masters = [nn.Parameter(weight.detach().clone()) for weight in module.parameters()]
    theirs = torch.optim.AdamW(masters, lr=1e-4, weight_decay=0.1)
    with bf16_weights.bf16_weights(module):
        weights = [*module.parameters()]
        ours = torch.optim.AdamW([{"params": weights[:2]}, {"params": weights[2:]}], lr=1e-4, weight_decay=0.1)
        for _ in range(5):
            for weight, master in zip(weights, masters, strict=True):
                weight.grad = torch.randn_like(weight)
                master.grad = weight.grad.float()
            bf16_weights.step(ours)
            theirs.step()
        assert [len(group["params"]) for group in ours.param_groups] == [2, 2]
        assert {value.dtype for slots in ours.state.values() for value in slots.values()} == {torch.float32}
        assert module[0].weight.dtype == torch.bfloat16
    for weight, master in zip(module.parameters(), masters, strict=True):
        assert torch.equal(weight, master)


def options(cls: type[Any], **given: Any) -> Any:
    return cls(cls.Options(steps=5, eval_every=2, stop="never", batch_size=3, lr=1e-3, checkpoint_seconds=0, **given))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("states", ["fp32", "8bit"])
def test_a_resumed_run_is_the_same_run(
    backend: MusicgenBackend, clips: Clips, tmp_path: Path, lora: bool, states: Any
) -> None:
    pytest.importorskip("bitsandbytes" if states == "8bit" else "torch")
    if lora:
        pytest.importorskip("peft")
    base, frozen = backend.module.state_dict(), {name: module_sha256(part) for name, part in backend.frozen().items()}
    kinds: set[Any] = set()

    def run(copy: MusicgenBackend, **engine: Any) -> Engine:
        adapter = Lora(rank=2) if lora else None
        made = Engine(copy, clips, weight_type="bf16", optimizer_states=states, lora=adapter, **engine)
        made.run(options(methods().resolve("graddiff")))
        return made

    straight, broken, again = (backend.clone() for _ in range(3))
    result = run(
        straight, record=lambda _: kinds.update((w.dtype, w.requires_grad) for w in straight.module.parameters())
    )
    assert (torch.bfloat16, not lora) in kinds
    assert (torch.bfloat16, lora) not in kinds
    stop = StopFlag()

    def stop_at(line: Any) -> None:
        stop.number = 15 if line.get("step") == 3 else stop.number

    with pytest.raises(Interrupted):
        run(broken, checkpoints=Checkpoints(tmp_path / "run", "x"), stop=stop, record=stop_at)
    run(again, checkpoints=Checkpoints(tmp_path / "run", "x"))
    assert module_sha256(again.module) == module_sha256(straight.module)
    assert {name: module_sha256(part) for name, part in straight.frozen().items()} == frozen
    trained = straight.module.state_dict()
    same = {name for name, value in trained.items() if torch.equal(value, base[name])}
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert bool(same) == lora  # weights that no adapter is in have the bits of the base
    assert result.outcome.best is not None


@pytest.mark.parametrize(("name", "given"), [("encore", {}), ("ga-kl", {}), ("npo", {"per_track_clip": 0.5})])
def test_a_run_is_close_to_one_in_float32(backend: MusicgenBackend, clips: Clips, name: str, given: Any) -> None:
    moved = {}
    for kind in ("fp32", "bf16"):
        copy = backend.clone()
        Engine(copy, clips, weight_type=kind, precision=kind).run(options(methods().resolve(name), **given))  # type: ignore[arg-type]
        state = copy.module.state_dict()
        moved[kind] = torch.cat([(state[key] - value).flatten() for key, value in backend.module.state_dict().items()])
    assert torch.cosine_similarity(moved["fp32"], moved["bf16"], dim=0) > 0.8


def test_snapshots_are_compared_with_the_base_in_the_same_precision(backend: MusicgenBackend, clips: Clips) -> None:
    """A run that changes no weight measures no harm, and not the rounding of the weights."""
    cls = methods().resolve("graddiff")
    engine = Engine(backend, clips, weight_type="bf16")
    in_float32 = engine.monitor.first
    result = engine.run(cls(cls.Options(steps=1, stop="never", lr=1e-30)))
    assert result.before is not None
    assert result.best is not None
    assert result.best.forget == result.before.forget != in_float32.forget
    assert set(result.best.harm.values()) == {0.0}
    assert result.best.target_nll == dict.fromkeys(result.before.forget, result.before.holdout)


def test_methods_that_read_or_change_weights_are_refused(backend: MusicgenBackend, clips: Clips) -> None:
    for name, reason in (("ssd", "edits"), ("ewc", "Fisher")):
        cls = methods().resolve(name)
        with pytest.raises(UsageError, match=reason):
            bf16_weights.check(cls(cls.Options()))
    bf16_weights.check(options(methods().resolve("encore")))
    with pytest.raises(UsageError, match="restores single weights"):
        Engine(backend, clips, weight_type="bf16").run(options(methods().resolve("salun")))


def test_a_model_that_can_not_compute_so_is_named(
    backend: MusicgenBackend, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(backend, clips, weight_type="bf16")
    before = module_sha256(backend.module)

    def fail(batch: object) -> None:
        raise RuntimeError("mixed dtype (CPU)")

    monkeypatch.setattr(backend, "losses", fail)
    with pytest.raises(UsageError, match=r"can't compute with bfloat16 weights: .*mixed dtype"):
        engine.run(options(methods().resolve("graddiff")))
    assert module_sha256(backend.module) == before
