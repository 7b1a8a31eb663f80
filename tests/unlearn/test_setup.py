"""What both `encore forget` and `encore train` settle before a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from encore.backends.musicgen import MusicgenBackend
from encore.errors import UsageError
from encore.plugins import methods
from encore.unlearn.adapter import adapter_size
from encore.unlearn.config import ForgetConfig, Lora, RunConfig, TrainConfig
from encore.unlearn.setup import check_method, check_settings, disk_bytes, settle, with_adapter_origin
from encore.unlearn.training import RATE, Training

CONFIGS = [ForgetConfig, TrainConfig]


def config(**given: Any) -> RunConfig:
    return TrainConfig(Path("list.txt"), Path("run"), **given)


@pytest.mark.parametrize("cls", CONFIGS)
def test_both_have_the_same_flags_of_a_device_and_an_adapter(cls: type[Any]) -> None:
    flags = cls(Path("list.txt"), Path("run"), adapter="lora", lora_rank=4, roots=(Path("a"),)).flags()
    assert (flags["tracks"], flags["out"], flags["roots"], flags["lora_rank"]) == ("list.txt", "run", ["a"], 4)
    assert cls("-", Path("run"), adapter="lora", lora_rank=4).lora == Lora(rank=4)
    assert cls("-", Path("run")).lora is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "abacus"}, "abacus"),
        ({"precision": "fp23"}, "fp23"),
        ({"backend": "abacus"}, "abacus"),
        ({"checkpoint_activations": "maybe"}, "give auto, on or off"),
        ({"adapter": "dora"}, "lora is the only kind"),
        ({"lora_rank": 3}, "give --adapter lora"),
        ({"fsdp": True}, "there is one"),
        ({"weights": "fp8"}, "give fp32 or bf16"),
        ({"optimizer_states": "4bit"}, "give fp32 or 8bit"),
        ({"weights": "bf16", "precision": "fp32"}, "leave --precision out"),
    ],
)
def test_what_can_not_be_used_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_settings(config(**given))
    assert message in f"{caught.value.message} {caught.value.hint}"
    check_settings(config())


def test_methods_that_can_not_train_parts_are_refused() -> None:
    weighed = methods().resolve("ewc")
    with pytest.raises(UsageError, match="Fisher"):
        check_method(config(adapter="lora"), weighed(weighed.Options()))
    with pytest.raises(UsageError, match="--fsdp"):
        check_method(config(fsdp=True), weighed(weighed.Options()))
    with pytest.raises(UsageError, match="--weights bf16"):
        check_method(config(weights="bf16"), weighed(weighed.Options()))
    signs = methods().resolve("npo")
    with pytest.raises(UsageError, match="8bit is an AdamW"):
        check_method(config(optimizer_states="8bit"), signs(signs.Options(optim="sign")))
    check_method(config(weights="bf16"), Training(Training.Options()))
    check_method(config(adapter="lora"), Training(Training.Options()))
    check_method(config(fsdp=True), Training(Training.Options()))


def test_rates_that_are_not_given_are_those_of_an_adapter(backend: MusicgenBackend) -> None:
    def rate(**options: Any) -> Any:
        recipe = Training(Training.Options(**options))
        request = config(adapter="lora", lora_rank=3, lora_alpha=7.5, lora_layers=r".*layers\.0\.fc1")
        return settle(request, recipe, backend, recipe.default_rates)

    inputs = backend.module.get_submodule("decoder.model.decoder.layers.0.fc1").in_features
    factor = math.sqrt(4 * math.sqrt(3) * inputs / 7.5)
    setup = rate()
    assert setup.adapter_rates == {"rate": pytest.approx(factor * RATE)}
    assert setup.method.options.rate == setup.adapter_rates["rate"]
    assert with_adapter_origin({"lr": "cli"}, setup.adapter_rates) == {"lr": "cli", "rate": "adapter"}
    assert rate(rate=0.5).method.options.rate == 0.5
    assert rate(lr=1e-3).method.options.lr == 1e-3
    plain = Training(Training.Options())
    whole = settle(config(), plain, backend, plain.default_rates)
    assert (whole.method, whole.adapter_rates) == (plain, {})


def test_auto_precision_knows_the_size_of_the_model(backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encore.store.environment._cpu_has_bf16", lambda: True)
    recipe = Training(Training.Options())
    assert settle(config(device="cpu"), recipe, backend).precision == "fp32"
    monkeypatch.setattr("encore.store.environment.LARGE", 1000)
    assert settle(config(device="cpu"), recipe, backend).precision == "bf16"
    assert settle(config(device="cpu", precision="fp32"), recipe, backend).precision == "fp32"


def test_checkpoints_of_an_adapter_are_small(backend: MusicgenBackend) -> None:
    weights = sum(weight.numel() for weight in backend.module.parameters())
    frozen = sum(weight.numel() for part in backend.frozen().values() for weight in part.parameters())
    whole = disk_bytes(config(), backend, checkpoints=3, copies=5)
    assert whole == 4 * (15 * weights + weights + frozen)
    adapted = disk_bytes(config(adapter="lora"), backend, checkpoints=3, copies=5)
    assert adapted == 4 * (15 * adapter_size(backend.module, Lora()) + weights + frozen)


def test_the_model_of_an_adapter_says_what_it_leaves_out(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encore.unlearn.setup.unadaptable_weights", lambda _: ["a.matrix", "another"])
    recipe = Training(Training.Options())
    (note,) = settle(config(adapter="lora"), recipe, backend).notes
    assert "leaves 2 matrices as they are" in note
    assert "a.matrix and others" in note
    monkeypatch.setattr("encore.unlearn.activations._device_bytes", lambda _: 1)
    assert "--checkpoint-activations off" in settle(config(), recipe, backend).notes[0]
    assert settle(config(), recipe, backend).checkpoint_activations
    assert not settle(config(checkpoint_activations="off"), recipe, backend).checkpoint_activations
