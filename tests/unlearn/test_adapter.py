"""LoRA: what is trained, what comes of it, and that peft opens it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.conftest import Done
from tests.unlearn.test_engine import Plain, edit, options
from torch import Tensor, nn

from encore.api import Batch, LossMethod, MethodSpec, Session, Step
from encore.api.data import by_length
from encore.backends.musicgen import MusicgenBackend
from encore.errors import MissingExtraError, UsageError
from encore.hashing import module_sha256
from encore.methods.encore import codebook_nll
from encore.methods.relearning_attack import RelearningAttack, with_weights
from encore.plugins import methods
from encore.relearning import relearn
from encore.stop_signals import Interrupted, StopFlag
from encore.store.run_folder import Checkpoints
from encore.unlearn.adapter import Adapter, adapted_layers, adapter_size, unadaptable_weights, with_adapter_rates
from encore.unlearn.config import ForgetConfig, Lora
from encore.unlearn.engine import Clips, Engine
from encore.unlearn.estimate import estimate
from encore.unlearn.reference import FrozenReference
from encore.unlearn.run import finished, forget, prepare

pytest.importorskip("peft")

RANK, ALPHA = 3, 7.5


def adapter(backend: MusicgenBackend, layers: str = ".*", *, trained: bool = True) -> Adapter:
    """An adapter whose B is no longer 0."""
    made = Adapter(backend, Lora(RANK, ALPHA, layers), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters.values() if trained else ():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return made


def logits(backend: MusicgenBackend, clips: Clips) -> Tensor:
    with torch.no_grad():
        return backend.logits(Batch.of(clips.forget))


def test_layers_are_chosen_by_group_or_by_expression(backend: MusicgenBackend) -> None:
    linear = {name for name, part in backend.module.named_modules() if type(part) is nn.Linear}
    attention = set(adapted_layers(backend.module, "attention"))
    mlp = set(adapted_layers(backend.module, "mlp"))
    assert set(adapted_layers(backend.module, "all")) == attention | mlp
    assert set(adapted_layers(backend.module, ".*")) == linear
    assert attention == {name for name in linear if "self_attn" in name or "encoder_attn" in name}
    assert mlp == {name for name in linear if name.endswith((".fc1", ".fc2"))}
    assert linear - attention - mlp == {"decoder.lm_heads.0", "decoder.lm_heads.1", "enc_to_dec_proj"}
    assert set(adapted_layers(backend.module, r"decoder\..*layers\.1\.encoder_attn\.[qv]_proj")) == {
        f"decoder.model.decoder.layers.1.encoder_attn.{name}_proj" for name in "qv"
    }


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("transformer.layers.0.self_attn.out_proj", "attention"),  # audiocraft
        ("transformer.layers.0.cross_attention.out_proj", "attention"),
        ("transformer.layers.0.linear1", "mlp"),
        ("linears.0", None),
        ("condition_provider.conditioners.description.output_proj", None),
        ("transformer.transformer_blocks.0.attn1.to_out.0", "attention"),  # diffusers
        ("transformer.transformer_blocks.0.ff.net.0.proj", "mlp"),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "attention"),
    ],
)
def test_groups_know_the_names_of_other_libraries(name: str, group: str | None) -> None:
    module = nn.Module()
    part: nn.Module = module
    *parents, last = name.split(".")
    for parent in parents:
        part.add_module(parent, nn.Module())
        part = getattr(part, parent)
    part.add_module(last, nn.Linear(2, 2))
    for other in ("attention", "mlp"):
        if other == group:
            assert list(adapted_layers(module, other)) == [name]
        else:
            with pytest.raises(UsageError, match="matches no linear layer"):
                adapted_layers(module, other)


def test_what_can_not_be_adapted_is_named() -> None:
    module = nn.ModuleDict({"mha": nn.MultiheadAttention(4, 2), "fc": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    assert unadaptable_weights(module) == ["mha.in_proj_weight"]
    assert list(adapted_layers(module, ".*")) == ["fc"]  # torch's attention reads the weight of its own Linear
    module["tied"] = nn.Linear(4, 4)
    module["tied"].weight = module["fc"].weight
    with pytest.raises(UsageError, match="no linear layer"):
        adapted_layers(module, ".*")


def test_faulty_settings_are_refused(backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="matches no linear layer") as caught:
        adapted_layers(backend.module, "q_proj")
    assert "decoder.model.decoder.layers.0.self_attn" in caught.value.hint
    with pytest.raises(UsageError, match="not a regular expression"):
        adapted_layers(backend.module, "(")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as missing:
        Adapter(backend, Lora(), seed=0)
    assert "encore-music[adapters]" in missing.value.hint


@pytest.mark.parametrize("layers", ["attention", "mlp", "all", ".*"])
def test_an_adapter_adds_ba_and_merges_into_the_plain_model(
    backend: MusicgenBackend, clips: Clips, layers: str
) -> None:
    base = backend.clone()
    before = {name: weight.clone() for name, weight in backend.module.state_dict().items()}
    flags = {name: weight.requires_grad for name, weight in backend.module.named_parameters()}
    state = torch.get_rng_state()
    made = adapter(backend, layers, trained=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(backend, clips), logits(base, clips))  # B is 0
    assert {name for name, weight in backend.module.named_parameters() if weight.requires_grad} == set(made.parameters)
    assert sum(weight.numel() for weight in made.parameters.values()) == adapter_size(base.module, made.settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters.values():
            weight.add_(0.1 * torch.randn_like(weight))
    trained = {name: weight.detach().clone() for name, weight in made.parameters.items()}
    adapted = logits(backend, clips)
    assert not torch.allclose(adapted, logits(base, clips), atol=1e-2)
    made.merge()
    after = backend.module.state_dict()
    assert after.keys() == before.keys()
    assert {name: weight.requires_grad for name, weight in backend.module.named_parameters()} == flags
    chosen = adapted_layers(backend.module, layers)
    for name, weight in after.items():
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and layer in chosen:
            update = trained[f"{layer}.lora_B.default.weight"] @ trained[f"{layer}.lora_A.default.weight"]
            torch.testing.assert_close(weight, before[name] + ALPHA / RANK * update)
        else:
            assert torch.equal(weight, before[name])
    torch.testing.assert_close(logits(backend, clips), adapted, rtol=1e-4, atol=1e-4)
    assert torch.equal(backend.model.state_dict()["enc_to_dec_proj.weight"], after["enc_to_dec_proj.weight"])


def test_disabled_it_is_the_base_and_then_as_before(backend: MusicgenBackend, clips: Clips) -> None:
    base = backend.clone()
    made = adapter(backend)
    adapted = logits(backend, clips)
    with made.disabled():
        assert torch.equal(logits(backend, clips), logits(base, clips))
    assert torch.equal(logits(backend, clips), adapted)
    assert all(weight.requires_grad for weight in made.parameters.values())


def test_a_clone_has_the_adapter(backend: MusicgenBackend, clips: Clips) -> None:
    adapter(backend)
    assert torch.equal(logits(backend.clone(), clips), logits(backend, clips))


def test_a_relearning_attack_trains_the_adapter_and_shares_the_rest(backend: MusicgenBackend, clips: Clips) -> None:
    made = adapter(backend)
    slow = backend.clone()
    for name, weight in slow.module.named_parameters():
        weight.requires_grad_(name in made.parameters)
    before = module_sha256(backend.module)
    attack = RelearningAttack(lr=0.02, steps=3, size=2, measure=codebook_nll)
    *_, weights = attack(backend, clips.forget, steps=3, size=2)
    list(relearn(slow, [clips.forget[:2], clips.forget[2:4], clips.forget[4:]], lr=0.02, steps=3))
    assert module_sha256(backend.module) == before
    assert weights.keys() == made.parameters.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, slow.module.get_parameter(name))
    fixed = [name for name, weight in backend.module.named_parameters() if not weight.requires_grad]
    copy = attack._copy.module
    assert all(copy.get_parameter(n).data_ptr() == backend.module.get_parameter(n).data_ptr() for n in fixed)
    with with_weights(backend.module, weights):
        torch.testing.assert_close(logits(backend, clips), logits(slow, clips), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- the engine


def run(backend: MusicgenBackend, clips: Clips, method: Any, **engine: Any) -> Engine:
    made = Engine(backend, clips, lora=Lora(RANK, ALPHA), **engine)
    made.run(method)
    return made


def test_steps_are_those_of_adamw_on_the_adapter(backend: MusicgenBackend, clips: Clips) -> None:
    slow = backend.clone()
    settings = options(steps=3, warmup=0, batch_size=7, schedule="constant", select="last", lr=1e-2)
    engine = run(backend, clips, Plain(settings))
    made = Adapter(slow, Lora(RANK, ALPHA), seed=0)
    weights = list(made.parameters.values())
    optimizer = torch.optim.AdamW(weights, lr=1e-2, betas=(0.9, 0.95), weight_decay=0)
    for _ in range(3):
        optimizer.zero_grad()
        loss = slow.losses(Batch.of(clips.retain)).mean() - slow.losses(Batch.of(clips.forget)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    made.merge()
    for name, weight in backend.module.state_dict().items():
        torch.testing.assert_close(weight, slow.module.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert engine.outcome.steps == 3


def test_per_track_clipping_of_an_adapter(backend: MusicgenBackend, clips: Clips) -> None:
    twin = backend.clone()
    settings = {"steps": 2, "warmup": 0, "schedule": "constant", "select": "last", "lr": 1e-2, "per_track_clip": 0.05}
    run(backend, clips, Plain(options(**settings)))
    run(twin, clips, Plain(options(**settings, micro_batch_size=1)))  # one clip at a time, by autograd
    for name, weight in backend.module.state_dict().items():
        torch.testing.assert_close(weight, twin.module.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_a_resumed_run_ends_in_the_same_weights_and_its_checkpoints_are_small(
    backend: MusicgenBackend, clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encore.unlearn.lr_schedule.near_targets", lambda *_, **__: False)  # runs all its steps
    settings = options(
        steps=10, checkpoint_seconds=0, batch_size=3, forget_batch_size=2, schedule="adaptive", decay_steps=4,
        dropout=True, eval_every=1,
    )  # fmt: skip
    straight, broken, again = backend.clone(), backend.clone(), backend.clone()
    run(straight, clips, Plain(settings))
    stop = StopFlag()

    def stop_at(line: Any) -> None:
        if line.get("step") == 8:
            stop.number = 15

    with pytest.raises(Interrupted):
        run(broken, clips, Plain(settings), checkpoints=Checkpoints(tmp_path, "x"), stop=stop, record=stop_at)
    folder = Checkpoints(tmp_path, "x").latest()
    assert folder is not None
    size = 4 * adapter_size(backend.module, Lora(RANK, ALPHA))
    for name in ("module", "best", "mean"):
        assert size <= (folder / f"{name}.safetensors").stat().st_size < 1.5 * size + 12_000, name
    torch.rand(17)
    lines: list[Any] = []
    run(again, clips, Plain(settings), checkpoints=Checkpoints(tmp_path, "x"), record=lines.append)
    assert any(line.get("event") == "resumed" for line in lines)
    assert module_sha256(again.module) == module_sha256(straight.module)


class Compares(Plain):
    """Compares with the base's logits on both sets, in training mode."""

    spec = MethodSpec("compares", "", "", needs=frozenset({"retain", "reference", "logits"}))

    def prepare(self, session: Session) -> None:
        self.seen: list[Tensor] = []

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        assert step.reference is not None
        base = step.reference.logits(batch)
        assert not base.requires_grad
        assert step.backend.module.training
        self.seen.append(base)
        gap = (step.backend.logits(batch) - base)[step.backend.token_mask(batch)]
        return step.backend.losses(batch) + gap.square().mean()


def test_the_reference_is_the_model_without_its_adapter(
    backend: MusicgenBackend, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = backend.clone()
    settings = options(steps=3, batch_size=7, dropout=True, lr=0.05)
    method = Compares(settings)
    monkeypatch.setattr(MusicgenBackend, "clone", lambda self: pytest.fail("a second model"))
    engine = run(backend, clips, method)
    assert engine.outcome.reference == "adapter disabled"
    expected = FrozenReference.logits
    for seen in method.seen:
        monkeypatch.undo()
        assert torch.equal(seen, expected(FrozenReference(base), Batch.of(by_length(clips.retain))))


def test_methods_that_can_not_train_an_adapter_are_refused(backend: MusicgenBackend, clips: Clips) -> None:
    before = module_sha256(backend.module)
    for name in ("retrain", "task-vector", "ssd", "ewc", "newton", "fisher-noise"):
        cls = methods().resolve(name)
        with pytest.raises(UsageError, match=name):
            run(backend, clips, cls(cls.Options()))
    with pytest.raises(UsageError, match="edit"):
        run(backend, clips, edit(lambda session: None))
    assert module_sha256(backend.module) == before
    salun = methods().resolve("salun")
    with pytest.raises(UsageError, match="single weights"):
        run(backend, clips, salun(salun.Options()))


@pytest.mark.parametrize("name", ["ga", "rl", "ft", "graddiff", "ga-kl", "npo", "simnpo", "wga", "encore"])
def test_built_in_losses_train_an_adapter(backend: MusicgenBackend, clips: Clips, name: str) -> None:
    cls = methods().resolve(name)
    before = module_sha256(backend.module)
    engine = run(backend, clips, cls(cls.Options(steps=2, eval_every=1, stop="never")))
    assert engine.outcome.steps == 2
    assert module_sha256(backend.module) != before


def layers(*sizes: int, seed: int = 0) -> Any:
    """What an adapter needs of a backend, with linear layers of 200 outputs beside one another."""
    torch.manual_seed(seed)
    module = nn.ModuleDict({f"fc{i}": nn.Linear(size, 200, bias=False) for i, size in enumerate(sizes)})
    return SimpleNamespace(module=module, device=torch.device("cpu"))


def trained(backend: Any, loss: Any, *, lr: float, steps: int, lora: Lora | None) -> None:
    """AdamW on the weights, or on an adapter that is then merged."""
    made = None if lora is None else Adapter(backend, lora, seed=1)
    weights = [weight for weight in backend.module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), weight_decay=0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(backend.module).backward()
        optimizer.step()
    if made is not None:
        made.merge()


def adapter_rate(module: nn.Module, lora: Lora) -> float:
    """The rate of a method whose own is 5e-4."""
    cls = methods().resolve("graddiff")
    method, rates = with_adapter_rates(cls(cls.Options()), module, lora)
    assert method.options.lr == rates["lr"]  # type: ignore[attr-defined]
    return rates["lr"]


@pytest.mark.parametrize("lora", [Lora(16, 32.0), Lora(4, 10.0), Lora(64, 16.0), Lora(4, 200.0)])
def test_the_first_step_lowers_the_loss_of_each_layer_by_as_much_as_without_an_adapter(lora: Lora) -> None:
    whole, adapted = layers(150, 300, 1200), layers(150, 300, 1200)
    inputs = {name: torch.randn(100, part.in_features) for name, part in whole.module.items()}
    wanted = {name: torch.randn(100, 200) for name in inputs}

    def loss(module: Any) -> Tensor:
        losses = [(part(inputs[name]) - wanted[name]).square().mean() for name, part in module.items()]
        return torch.stack(losses).sum()

    gradients = torch.autograd.grad(loss(whole.module), list(whole.module.parameters()))
    before = [weight.detach().clone() for weight in whole.module.parameters()]
    trained(whole, loss, lr=5e-4, steps=1, lora=None)
    trained(adapted, loss, lr=adapter_rate(whole.module, lora), steps=1, lora=lora)
    for gradient, old, new, merged in zip(
        gradients, before, whole.module.parameters(), adapted.module.parameters(), strict=True
    ):
        expected, fall = (float(((old - weight.detach()) * gradient).sum()) for weight in (new, merged))
        assert fall == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("lora", [Lora(16, 32.0), Lora(8, 8.0), Lora(32, 100.0), Lora(4, 32.0)])
def test_an_adapter_learns_at_about_the_speed_of_the_weights_at_any_width(lora: Lora) -> None:
    speeds = []
    for size in (96, 768):
        whole, adapted = layers(size), layers(size)
        inputs, wanted = torch.randn(32, size), torch.randn(32, 200)

        def loss(module: Any, inputs: Tensor = inputs, wanted: Tensor = wanted) -> Tensor:
            return (module["fc0"](inputs) - wanted).square().mean()

        first, lr = loss(whole.module).item(), 0.05 / size
        trained(whole, loss, lr=lr, steps=20, lora=None)
        trained(adapted, loss, lr=lr * adapter_rate(whole.module, lora) / 5e-4, steps=20, lora=lora)
        speeds.append((first - loss(adapted.module).item()) / (first - loss(whole.module).item()))
    assert 0.5 < speeds[0] < 2
    assert speeds[1] == pytest.approx(speeds[0], rel=0.1)


def test_rates_that_were_given_stay(backend: MusicgenBackend) -> None:
    encore, npo = methods().resolve("encore"), methods().resolve("npo")
    factor = (4 * 3**0.5 * 24 / ALPHA) ** 0.5
    method, rates = with_adapter_rates(encore(encore.Options()), backend.module, Lora(RANK, ALPHA))
    assert rates == {"rate": pytest.approx(0.085 * factor), "attack_rate": pytest.approx(0.03 * factor)}
    assert method.options.rate == rates["rate"]  # type: ignore[attr-defined]
    method, rates = with_adapter_rates(npo(npo.Options(lr=1e-4)), backend.module, Lora(RANK, ALPHA))
    assert (rates, method.options.lr) == ({}, 1e-4)  # type: ignore[attr-defined]


def test_the_rate_of_the_default_method_follows_the_models_own_layers(backend: MusicgenBackend, clips: Clips) -> None:
    cls = methods().resolve("encore")
    settings = cls.Options(steps=1, stop="never", attack_share=0.0)
    twin = backend.clone()
    with_lora = run(backend, clips, cls(settings)).outcome.chosen["lr"]
    plain = Engine(twin, clips)
    plain.run(cls(settings))
    assert with_lora == plain.outcome.chosen["lr"]


# --------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def request_(studio: Path) -> ForgetConfig:
    music = studio / "music"
    return ForgetConfig(
        music / "forget.txt", Path("run"), model=str(studio / "model"), retain=str(music / "retain.txt"),
        holdout=music / "holdout.txt", adapter="lora", lora_rank=RANK, lora_alpha=ALPHA, keep_adapter=True,
    )  # fmt: skip


def npo(**given: Any) -> LossMethod:
    cls = methods().resolve("npo")
    return cls(cls.Options(**{"steps": 3, "stop": "never", "lr": 0.05, "warmup": 0} | given))  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it
def test_the_kept_adapter_reopens_in_peft_and_equals_the_merged_model(request_: ForgetConfig, clips: Clips) -> None:
    request_ = replace(request_, lora_layers=".*")  # those outside of the decoder, too
    from peft import PeftModel
    from transformers import MusicgenForConditionalGeneration

    run = forget(prepare(request_, npo()), {})
    assert run["memory"] == {
        "weights": run["memory"]["weights"], "trained_weights": run["memory"]["trained_weights"],
        "adapter": {"type": "lora", "rank": RANK, "alpha": ALPHA, "layers": ".*", "adapted_layers": 23},
        "reference": "cached NLL", "checkpoint_activations": False,
    }  # fmt: skip
    merged = MusicgenBackend.load("run/model", offline=True)
    base = MusicgenBackend.load(request_.model, offline=True)
    assert run["memory"]["weights"] == sum(weight.numel() for weight in base.module.parameters())
    assert run["memory"]["trained_weights"] == adapter_size(base.module, Lora(RANK, ALPHA, ".*"))
    assert {p.name for p in Path("run/adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(Path("run/adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (request_.model, RANK, ALPHA)
    model = MusicgenForConditionalGeneration.from_pretrained(request_.model)
    opened = PeftModel.from_pretrained(model, "run/adapter")
    again = MusicgenBackend(opened.base_model.model, merged.processor)
    again.module.eval()
    torch.testing.assert_close(logits(again, clips), logits(merged, clips), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(base, clips), logits(merged, clips), atol=1e-2)
    generations = [
        backend.generate(["brass band march, 120 bpm"], seconds=0.4, temperature=0) for backend in (again, merged)
    ]
    assert torch.equal(*generations)


def test_flags_of_an_adapter_need_one() -> None:
    for flags in ({"lora_rank": 4}, {"lora_alpha": 1.0}, {"lora_layers": "mlp"}, {"keep_adapter": True}):
        with pytest.raises(UsageError, match="there is none"):
            _ = ForgetConfig("-", Path("run"), **flags).lora  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="dora"):
        _ = ForgetConfig("-", Path("run"), adapter="dora").lora
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="--lora-alpha"):
            _ = ForgetConfig("-", Path("run"), adapter="lora", lora_alpha=alpha).lora


def test_a_run_resumes_with_its_own_adapter_only(request_: ForgetConfig) -> None:
    forget(prepare(request_, npo(steps=1)), {})
    resumed = replace(request_, resume=True)
    others = [replace(resumed, lora_rank=4), replace(resumed, **dict.fromkeys(("adapter", "lora_rank", "lora_alpha")))]
    others[1] = replace(others[1], keep_adapter=False)
    for other in others:
        with pytest.raises(UsageError, match=r"not the run that was started .* adapter"):
            finished(other, npo(steps=1))
    assert finished(resumed, npo(steps=1)) is not None
    with pytest.raises(UsageError, match=r"lr 0\.05 -> 0\.06"):
        finished(resumed, npo(steps=1, lr=0.06))
    Path("run/run.json").unlink()
    with pytest.raises(UsageError, match=r"not the run that was started .* adapter"):
        forget(prepare(others[0], npo(steps=1)), {})


def test_a_dry_run_estimates_an_adapter(request_: ForgetConfig) -> None:
    prepared = prepare(request_, npo())
    full = replace(request_, adapter=None, lora_rank=None, lora_alpha=None, keep_adapter=False)
    assert prepared.disk_bytes() < prepare(full, npo()).disk_bytes()
    before = module_sha256(prepared.backend.module)
    assert estimate(prepared).seconds > 0
    assert module_sha256(prepared.backend.module) == before


def test_the_command_says_where_the_rate_came_from(studio: Path, tmp_path: Path, call: Callable[..., Done]) -> None:
    music, out = studio / "music", tmp_path / "run"
    command = [
        "forget", "--tracks", music / "forget.txt", "--model", studio / "model", "--retain", music / "retain.txt",
        "--out", out, "--method", "graddiff", "--steps", "3", "-o", "stop=never", "--json", "--adapter", "lora",
        "--lora-rank", "2",
    ]  # fmt: skip
    done = call(*command)
    assert done.code in (0, 4), done.err
    run = json.loads(done.out)
    assert run["options"]["lr"] == {"value": pytest.approx(5e-4 * (4 * 3**0.5 * 24 / 32) ** 0.5), "from": "adapter"}
    assert not (out / "adapter").exists()
    assert "nothing to do" in call(*command, "--resume").err
