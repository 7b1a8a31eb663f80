"""LoRA (Hu et al., arXiv 2106.09685) by peft: a linear layer's weight W stays as it is, and (α / r) B A is added to it.

Only A [r, in] and B [out, r] are trained, so that gradients, moments, best weights and checkpoints are small. The
result is merged into W, and is then a model like any other.
"""

from __future__ import annotations

import importlib.util
import math
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from encore.api import Backend, EditMethod, Method
from encore.errors import MissingExtraError, UsageError
from encore.unlearn.config import Lora

MethodT = TypeVar("MethodT", bound=Method)
ADAPTER_NAME = "default"  # peft's name of the only adapter of a module
LAYERS = {  # --lora-layers -> what a part of a layer's name looks like in transformers, audiocraft and diffusers
    "attention": re.compile(r".*(attn|attention).*", re.IGNORECASE),
    "mlp": re.compile(r"mlp|ffn?|fc\d*|linear\d*|feed_?forward", re.IGNORECASE),
}
RATES = frozenset({"lr", "rate", "attack_rate"})  # options of methods that are learning rates
A_RATE = 4.0  # κ of `rate_factor`
MATRIX_LAYERS = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)


class Adapter:
    """An adapter in a backend's module. Until it is merged, its weights alone are trained.

    Args:
        backend: its module is changed in place.
        settings: of the adapter.
        seed: of the initial A, whose size `rate_factor` explains. B begins at 0: the model computes what it did before.

    Attributes:
        settings: of the adapter.
        parameters: the trained weights, by name in the module.

    Raises:
        MissingExtraError: peft is not installed.
        UsageError: the settings fit no layer.
    """

    def __init__(self, backend: Backend, settings: Lora, *, seed: int) -> None:
        check_peft()
        layers = adapted_layers(backend.module, settings.layers)
        self._layers, factor = list(layers), rate_factor(layers.values(), settings.alpha)
        from peft import LoraConfig, LoraModel

        self.settings, self._module = settings, backend.module
        self._trained = {name for name, weight in self._module.named_parameters() if weight.requires_grad}
        config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=self._layers)  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[backend.device] if backend.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self._tuner: Any = LoraModel(self._module, config, ADAPTER_NAME)
        for name in self._layers:
            layer: Any = self._module.get_submodule(name)
            with torch.no_grad():  # peft's A is uniform in ±1/√n, with a standard deviation of 1/√(3 n)
                layer.lora_A[ADAPTER_NAME].weight.mul_(math.sqrt(3) * layer.in_features / (settings.alpha * factor))
        self._module.eval()  # peft's layers begin in training mode
        self.parameters = {name: weight for name, weight in self._module.named_parameters() if weight.requires_grad}
        self._saved: dict[str, Tensor] = {}

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside the context the module computes without the adapter."""
        layers: list[Any] = [self._module.get_submodule(name) for name in self._layers]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def merge(self) -> None:
        """Add the adapter to the weights, and leave the module with the layers that it had before."""
        self._saved = {name: weight.detach().cpu().clone() for name, weight in self.parameters.items()}
        self._tuner.merge_and_unload()
        self._restore_gradients()

    def remove(self) -> None:
        """Leave the module as it was before there was an adapter."""
        self._tuner.unload()
        self._restore_gradients()

    def _restore_gradients(self) -> None:
        for name, weight in self._module.named_parameters():
            weight.requires_grad_(name in self._trained)

    def save(self, folder: Path, *, base: str, revision: str | None = None) -> None:
        """Write the merged adapter in peft's format, for `peft.PeftModel.from_pretrained(base model, folder)`.

        Args:
            folder: an existing folder.
            base: name of the model that it was trained on.
            revision: of the base on the hub.
        """
        from peft import LoraConfig

        config = LoraConfig(  # with whole names: peft shortens them as far as the module that it is given allows
            r=self.settings.rank, lora_alpha=self.settings.alpha, target_modules=self._layers,  # type: ignore[arg-type]
            base_model_name_or_path=base, revision=revision, inference_mode=True,
        )  # fmt: skip
        config.save_pretrained(str(folder))
        weights = {f"base_model.model.{_plain(name)}": weight for name, weight in self._saved.items()}
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def as_dict(self) -> dict[str, Any]:
        """The record for `run.json`."""
        return {"type": "lora", **asdict(self.settings), "adapted_layers": len(self._layers)}


def check_peft() -> None:
    """Check that adapters can be used.

    Raises:
        MissingExtraError: peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("adapters need peft, which is not installed", 'pip install "encore-music[adapters]"')


def adapted_layers(module: nn.Module, layers: str) -> dict[str, nn.Linear]:
    """The linear layers that an adapter is put into, by name.

    Args:
        module: without an adapter.
        layers: see `Lora`.

    Raises:
        UsageError: no layer is meant, or it is not a regular expression.
    """
    # A subclass may compute something else; torch's own attention reads the weight, and would pass over the adapter.
    # A weight that another layer shares can't be changed for one of them.
    uses = Counter(id(weight) for part in module.modules() for weight in part._parameters.values())
    linear = {
        name: part for name, part in module.named_modules() if type(part) is nn.Linear and uses[id(part.weight)] == 1
    }
    try:
        chosen = {name: part for name, part in linear.items() if _is_chosen(name, layers)}
    except re.error as error:
        raise UsageError(
            f"--lora-layers {layers!r} is not a regular expression: {error}",
            "attention, mlp and all are names of groups",
        ) from error
    if not chosen:
        names = list(linear)
        some = f"its linear layers are {', '.join(names[:3])} … {names[-1]}" if names else "it has no linear layers"
        raise UsageError(f"--lora-layers {layers!r} matches no linear layer of this model", some)
    return chosen


def _is_chosen(name: str, layers: str) -> bool:
    if layers not in (*LAYERS, "all"):
        return re.fullmatch(layers, name) is not None
    groups = [group for group, pattern in LAYERS.items() if any(map(pattern.fullmatch, name.split(".")))]
    return bool(groups) and layers in ("all", groups[0])  # what is in an attention is of its group


def adapter_size(module: nn.Module, settings: Lora) -> int:
    """Number of weights that an adapter would train."""
    layers = adapted_layers(module, settings.layers).values()
    return sum(settings.rank * (layer.in_features + layer.out_features) for layer in layers)


def unadaptable_weights(module: nn.Module) -> list[str]:
    """Trained matrices that are not weights of a layer, by name: LoRA can't be put into them."""
    return [
        f"{name}.{key}" if name else key
        for name, part in module.named_modules()
        if not isinstance(part, MATRIX_LAYERS)
        for key, weight in part.named_parameters(recurse=False)
        if weight.ndim > 1 and weight.requires_grad
    ]


def refuse_unadaptable(method: Method) -> None:
    """Check that a method can train an adapter.

    Raises:
        UsageError: it changes weights itself, weighs them by a Fisher diagonal, or rounds them.
    """
    name = method.spec.name
    if isinstance(method, EditMethod):
        raise UsageError(
            f"method {name!r} changes the model's weights itself, and does not train an adapter",
            "leave --adapter out, or choose a method that is a loss, such as encore or npo",
        )
    if getattr(method.options, "robust_to", None) is not None:
        raise UsageError(
            "--robust-to rounds the weights that are trained, and with an adapter these are not the model's",
            "leave --adapter or --robust-to out",
        )
    if "fisher" in method.spec.needs:
        raise UsageError(
            f"method {name!r} weighs single weights by their Fisher diagonal, which is 0 for half of a new adapter",
            "leave --adapter out, or choose another method, such as encore or npo",
        )


def rate_factor(layers: Collection[nn.Linear], alpha: float) -> float:
    """f, by which learning rates are multiplied with an adapter: √(κ √3 n / α), n the inputs of the median layer.

    Together with the initial size of A it makes the first AdamW step lower the loss by as much as without an adapter,
    in every layer and at any rank. Let G [out, n] be the gradient of a weight, and g the typical norm of its rows.

    - Without an adapter a step of rate η is -η sign(G), and lowers the loss by η ‖G‖₁ ≈ η √(2/π) out √n g.
    - With one, A random with standard deviation σ and B = 0, a step of rate f η makes B = -f η sign(G Aᵀ), and lowers
      the loss by (α / r) f η ‖G Aᵀ‖₁ ≈ (α / r) f η √(2/π) out r σ g. The two are equal where σ = √n / (α f).

    An update of the same root mean square would do √(n / r) times less, as most of it is in random directions.

    f is still undetermined, and decides how fast A learns. The part of A that is learnt grows along the gradient by f η
    √n per step, and exceeds the random part after σ / (f η √n) = 1 / (α f² η) steps. For rates η that fall as 1 / n,
    this is the same point of a run at any width where f² is proportional to n: f² = κ √3 n / α. To AdamW this is the
    same as peft's A (σ = 1/√(3 n)) trained at κ η, with B at √3 n / α times η. The ratio of these rates is 1.7 for n =
    128 and 28 for n = 2048 (α 32); LoRA+ (Hayou et al., arXiv 2402.12354) shows that it must grow with n, and advises
    16. α has no effect on a run whose rates follow this rule.

    With κ = 4 an adapter learns at about the speed of the weights (`benchmarks/RESULTS.md`, with what was tried). f is
    5.3 for n = 128 and 21 for n = 2048 (α 32).

    Args:
        layers: that the adapter is put into.
        alpha: α.
    """
    inputs = statistics.median(layer.in_features for layer in layers)
    return math.sqrt(A_RATE * math.sqrt(3) * inputs / alpha)


def with_adapter_rates(
    method: MethodT, module: nn.Module, settings: Lora, defaults: Mapping[str, float] | None = None
) -> tuple[MethodT, dict[str, float]]:
    """The method with the learning rates of an adapter (`rate_factor`), for those that the user has not set.

    Args:
        method: has not run yet.
        module: without an adapter.
        settings: of the adapter.
        defaults: rates that the method uses where its option is None, by option.

    Returns:
        The method, and the rates by option.
    """
    options = method.options
    factor = rate_factor(adapted_layers(module, settings.layers).values(), settings.alpha)
    rates = {}
    for name in RATES - options.model_fields_set:
        value = getattr(options, name, None)
        value = (defaults or {}).get(name) if value is None else value
        if isinstance(value, float):
            rates[name] = factor * value
    return type(method)(options.model_copy(update=rates)), rates


def _plain(name: str) -> str:
    """The name of an adapter's weight as peft writes it."""
    return name.replace(f".{ADAPTER_NAME}.weight", ".weight")
