"""Memory computed from sizes: against the tensors that autograd's graph is found to hold, and what a plan then says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.latent_model import LatentBackend
from torch import Tensor

from encore.api import Batch, Clip, Method
from encore.backends.musicgen import MusicgenBackend
from encore.errors import MissingExtraError
from encore.hashing import module_sha256
from encore.plugins import methods
from encore.unlearn import estimate, memory
from encore.unlearn.adapter import Adapter, Lora
from encore.unlearn.memory import Memory, Settings, available_bytes, held, memories, saved_bytes, smaller


def memory_of(backend: MusicgenBackend, method: Method, clips: list[Clip], settings: Settings, *, bf16: bool) -> Memory:
    return next(memories(backend, method, clips, [settings], bf16=bf16))[1]


@pytest.fixture
def backend(tiny_folder: Path) -> MusicgenBackend:
    return MusicgenBackend.load(str(tiny_folder), offline=True)


@pytest.fixture
def clips(backend: MusicgenBackend) -> list[Clip]:
    generator = torch.Generator().manual_seed(0)
    return [
        Clip(f"track {length}", "slow church organ", torch.randint(0, 32, (2, length), generator=generator))
        for length in (20, 50, 35)
    ]


def held_by_graph(loss: Tensor, weights: set[int]) -> int:
    """Bytes of the tensors in the nodes of a loss's graph, by storage."""
    sizes: dict[int, int] = {}
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [each for each, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_saved_"):
                value = getattr(node, name)
                for tensor in value if isinstance(value, (tuple, list)) else [value]:
                    if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in weights:
                        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(sizes.values())


@pytest.mark.parametrize("lora", [False, True])
def test_saved_bytes_are_what_the_graph_holds(backend: MusicgenBackend, clips: list[Clip], lora: bool) -> None:
    if lora:
        pytest.importorskip("peft")
        Adapter(backend, Lora(rank=2), seed=0)
    weights = {weight.untyped_storage().data_ptr() for weight in backend.module.parameters()}
    expected = held_by_graph(backend.losses(Batch.of(clips[:1])).sum(), weights)
    assert saved_bytes(backend, clips[:1], bf16=False) == pytest.approx(expected, rel=0.02)
    assert saved_bytes(backend, clips[:1], bf16=False) > 0


def test_saved_bytes_grow_with_clips_and_fall_with_checkpoints(backend: MusicgenBackend, clips: list[Clip]) -> None:
    one = saved_bytes(backend, clips[1:2], bf16=False)
    twice = saved_bytes(backend, [clips[1], clips[1]], bf16=False)
    assert twice == pytest.approx(2 * one, rel=0.02)
    assert saved_bytes(backend, clips[1:2], bf16=False, checkpoint_activations=True) < one
    assert all(weight.grad is None for weight in backend.module.parameters())


def test_the_parts_of_a_run(backend: MusicgenBackend, clips: list[Clip]) -> None:
    weights = 4 * sum(weight.numel() for weight in backend.module.parameters())
    chosen = methods().resolve("npo")
    run = memory_of(backend, chosen(chosen.Options(micro_batch_size=3)), clips, Settings(), bf16=False)
    assert run.weights == weights
    assert run.training == 4 * weights  # gradient, two moments, and the best weights, which are on the CPU
    assert run.reference == 0
    assert run.activations == 3 * saved_bytes(backend, [clips[1]], bf16=False)  # of the longest
    chosen = methods().resolve("encore")
    run = memory_of(backend, chosen(chosen.Options()), clips, Settings(), bf16=False)
    assert run.training == (5 + 4) * weights  # and the average; the copy that attacks train
    assert run.reference == weights
    chosen = methods().resolve("bad-teacher")
    run = memory_of(backend, chosen(chosen.Options()), clips, Settings(), bf16=False)
    assert run.reference == 2 * weights  # the base and the untrained teacher


def test_an_adapter_trains_little_and_needs_no_copy(backend: MusicgenBackend, clips: list[Clip]) -> None:
    pytest.importorskip("peft")
    state = {name: value.clone() for name, value in backend.module.state_dict().items()}
    chosen = methods().resolve("encore")
    method = chosen(chosen.Options())
    whole = memory_of(backend, method, clips, Settings(), bf16=False)
    adapter = memory_of(backend, method, clips, Settings(Lora(rank=1)), bf16=False)
    size = adapter.weights - whole.weights
    assert 0 < size < whole.weights / 4
    assert adapter.training == (5 + 4) * size
    assert adapter.reference == 0
    assert backend.module.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in backend.module.state_dict().items())


def test_types_of_weights_and_moments_take_less(backend: MusicgenBackend, clips: list[Clip]) -> None:
    pytest.importorskip("peft")
    weights = [weight.numel() for weight in backend.module.parameters()]
    matrices = sum(weight.numel() for weight in backend.module.parameters() if weight.ndim > 1)
    before = module_sha256(backend.module)
    chosen = methods().resolve("encore")
    method = chosen(chosen.Options())
    fp32 = memory_of(backend, method, clips, Settings(), bf16=True)
    halved = memory_of(backend, method, clips, Settings(weights="bf16"), bf16=True)
    assert module_sha256(backend.module) == before
    assert fp32.weights - halved.weights == fp32.reference - halved.reference == 2 * matrices
    assert halved.training == fp32.training  # half of the gradient, and the rest of each float32 value
    assert halved.activations < fp32.activations - 2 * matrices  # autocast keeps no copies of the weights
    eight = held(backend, method, Settings(optimizer_states="8bit"))
    assert fp32.training - eight.training == 2 * 3 * sum(weights)
    lora = Lora(rank=1)
    adapter, both = (held(backend, method, Settings(lora, weights=kind)) for kind in ("fp32", "bf16"))  # type: ignore[arg-type]
    assert adapter.weights - both.weights == 2 * matrices
    assert both.training == adapter.training


def test_smaller_runs_are_those_that_a_method_and_a_model_allow(
    backend: MusicgenBackend, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")

    def flags(name: str, settings: Settings, **options: str) -> set[str]:
        chosen = methods().resolve(name)
        method = chosen(chosen.Options(**options))
        choices = [settings, *smaller(settings, method)]
        return {other.flags for other, _ in memories(backend, method, clips, choices, bf16=False)} - {settings.flags}

    def missing() -> None:
        raise MissingExtraError("bitsandbytes is not installed", "pip install")

    monkeypatch.setattr(memory, "check_bitsandbytes", missing)
    checkpoints, adapter, half = "--checkpoint-activations on", "--adapter lora", "--weights bf16"
    assert flags("encore", Settings()) == {
        checkpoints, adapter, f"{adapter} {checkpoints}", f"{adapter} {checkpoints} {half}"
    }  # fmt: skip
    assert flags("encore", Settings(Lora(rank=1))) == {f"{adapter} {checkpoints}", f"{adapter} {checkpoints} {half}"}
    assert flags("encore", Settings(Lora(rank=1), True)) == {f"{adapter} {checkpoints} {half}"}
    assert flags("ewc", Settings()) == {checkpoints}  # its Fisher diagonal is of whole float32 weights
    monkeypatch.setattr(memory, "check_bitsandbytes", lambda: None)
    states = f"{checkpoints} {half} --optimizer-states 8bit"
    assert states in flags("npo", Settings())
    assert states not in flags("npo", Settings(), optim="sign"), "it has no moments"
    edit = methods().resolve("ssd")
    assert smaller(Settings(), edit(edit.Options())) == []
    npo = methods().resolve("npo")
    assert smaller(Settings(), npo(npo.Options()), fsdp=True) == [Settings(checkpoint_activations=True)]
    assert smaller(Settings(checkpoint_activations=True), npo(npo.Options()), fsdp=True) == []


def test_activations_are_measured_once_per_kind_of_model(
    backend: MusicgenBackend, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(memory, "saved_bytes", lambda *_, **given: calls.append(given) or 8)
    chosen = methods().resolve("npo")
    method = chosen(chosen.Options())
    sizes = memories(backend, method, clips, [Settings(), Settings(None, True), Settings()], bf16=False)
    assert calls == []
    next(sizes)
    assert len(calls) == 1, "a dry run tries its own settings before others are measured"
    assert len(list(sizes)) == 2
    assert [call.get("checkpoint_activations", False) for call in calls] == [False, True]


def test_a_model_without_blocks_is_not_offered_checkpoints() -> None:
    backend = LatentBackend()
    clips = [Clip("a", "a", torch.randn(backend.codebooks, 8))]
    chosen = methods().resolve("npo")
    method = chosen(chosen.Options())
    there = memories(backend, method, clips, [Settings(), *smaller(Settings(), method)], bf16=False)
    assert not any("checkpoint" in settings.flags for settings, _ in there)


def test_free_memory_of_the_cpu_is_what_the_system_says() -> None:
    free = available_bytes(torch.device("cpu"))
    if not Path("/proc/meminfo").exists():
        assert free is None
        return
    import psutil

    assert free == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_plan_that_does_not_fit_says_what_would(studio: Path, call, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    music = studio / "music"
    flags = (
        "forget", "--model", studio / "model", "--tracks", music / "forget.txt", "--retain", music / "retain.txt",
        "--holdout", music / "holdout.txt", "--method", "npo", "--device", "cpu", "--out", "run", "--dry-run",
    )  # fmt: skip
    fits = json.loads(call(*flags, "--json").out)
    assert fits["expected_seconds"] > 0
    assert fits["expected_bytes"] <= fits["expected_free_bytes"]
    assert all(peak < fits["expected_bytes"] for peak in fits["expected_alternatives"].values())

    huge, fitting, other = (Memory(0, size << 30, 0, 0) for size in (40, 1, 39))
    sizes = {Settings(): huge, Settings(Lora()): fitting, Settings(None, True): other}
    monkeypatch.setattr(estimate, "memories", lambda *_, **__: iter(sizes.items()))
    monkeypatch.setattr(estimate, "available_bytes", lambda _: 10 << 30)
    monkeypatch.setattr(estimate, "_trial", lambda *_: pytest.fail("a run that does not fit is not tried"))
    plan = call(*flags)
    assert plan.code == 0
    assert "the run does not fit: it needs 4" in plan.err
    assert "what makes it fit: --adapter lora\n" in plan.err.replace("\n  ", " ")
    assert json.loads(call(*flags, "--json").out)["expected_seconds"] is None
    assert memory.FLOAT == 4
