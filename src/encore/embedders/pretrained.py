"""Base of embedders on transformers' pretrained networks: weights from a folder or the hub, and windows."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoFeatureExtractor

from encore.api import Backend, Embedder
from encore.errors import InputError, MissingWeightsError
from encore.hashing import module_sha256
from encore.hub import fetchable, pretrained, quiet_transformers, tried

PROVENANCE = ("_name_or_path", "_commit_hash", "transformers_version")  # of settings: where they are from


class Pretrained(Embedder):
    """A network of transformers with its feature extractor, in evaluation mode and float32.

    Audio longer than the network's window is cut into windows of that length that overlap evenly and cover all of it;
    its vector and tags are the means over them.

    Attributes:
        default: weights where none are named.
        network_class: of transformers.
        seconds: length of a window.
    """

    default: ClassVar[str]
    network_class: ClassVar[Any]
    seconds: float

    def __init__(self, network: Any, extractor: Any, identity: str, device: torch.device) -> None:
        self.network, self.extractor, self.identity = network, extractor, identity
        self.device = device
        self.sample_rate = int(extractor.sampling_rate)

    @classmethod
    def open(cls, backend: Backend) -> Pretrained:
        return cls.open_weights(backend)

    @classmethod
    @quiet_transformers()
    def open_weights(cls, backend: Backend, model: str = "", *, offline: bool = False) -> Pretrained:
        model = model or cls.default
        source, _, revision = (model, "", "") if Path(model).is_dir() else model.partition("@")
        where: dict[str, Any] = {"revision": revision or None}
        kind = InputError if Path(model).is_dir() else MissingWeightsError
        where |= {"what": f" for the embedder {cls.spec.name}", "hint": _hint(cls, model), "kind": kind}
        where["local_files_only"] = offline or not fetchable(source, revision or None)
        network, loading = pretrained(
            cls.network_class, source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **where
        )
        processor = cls.read_processor(source, where)
        if loading["missing_keys"]:
            first = sorted(loading["missing_keys"])[0]
            raise InputError(f"{model} has not all weights of the embedder {cls.spec.name}: {first} is missing")
        commit = getattr(network.config, "_commit_hash", None)
        name = Path(source).resolve().name if Path(source).is_dir() else source
        at = f"@{commit[:12]}" if commit else ""
        network = network.requires_grad_(False).eval()
        settings = _settings_sha256(network.config, getattr(processor, "feature_extractor", processor))
        identity = f"{cls.spec.name}/1 {name}{at} sha256:{module_sha256(network)[:16]} settings:{settings[:8]}"
        with tried(f"can't use {model} for the embedder {cls.spec.name}", _hint(cls, model), kind):
            opened = cls(network.to(backend.device), processor, identity, backend.device)
            # some settings fail only when the network is used
            opened.embed_with_tags(torch.zeros(1, opened.sample_rate // 10))
        return opened

    @classmethod
    def read_processor(cls, source: str, where: dict[str, Any]) -> Any:
        """The feature extractor, or a processor with one."""
        return pretrained(AutoFeatureExtractor, source, **where)

    # --------------------------------------------------------------------------------------------------- embedding

    @abstractmethod
    def embed_windows(self, windows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Windows [S] of at most `seconds` -> vectors [N, D] and tags [N, C] on any device."""

    def pooled(self, vectors: Tensor) -> Tensor:
        """The vector [D] of audio from those of its windows, [W, D]."""
        return vectors.mean(0)

    @torch.no_grad()
    def embed_with_tags(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        vectors, tags = [], []
        for waveform in waveforms:  # one at a time, so that the batch does not even change the rounding
            parts = windows(waveform.float().cpu(), round(self.seconds * self.sample_rate))
            window_vectors, window_tags = self.embed_windows(parts)
            vectors.append(self.pooled(window_vectors).float().cpu())
            tags.append(window_tags.mean(0).float().cpu())
        return torch.stack(vectors), torch.stack(tags)

    def embed(self, waveforms: Tensor) -> Tensor:
        return self.embed_with_tags(waveforms)[0]

    def tags(self, waveforms: Tensor) -> Tensor:
        return self.embed_with_tags(waveforms)[1]


def windows(waveform: Tensor, length: int) -> list[Tensor]:
    """Cut [S] into the fewest evenly spaced windows of `length` samples that cover it; unchanged where not longer."""
    last = len(waveform) - length
    if last <= 0:
        return [waveform]
    count = -(-len(waveform) // length)
    starts = [round(i * last / (count - 1)) for i in range(count)]
    return [waveform[start : start + length] for start in starts]


def _settings_sha256(*parts: Any) -> str:
    """Hash of the settings that affect the vectors, such as mel scale and activations."""
    known = [{key: value for key, value in part.to_dict().items() if key not in PROVENANCE} for part in parts]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _hint(cls: type[Pretrained], model: str) -> str:
    if Path(model).is_dir():
        return "it needs config.json, model.safetensors and the processor's files, as save_pretrained writes them"
    name = cls.spec.name
    return f"download it with `hf download {model}`, leave --offline out, or name a folder: --embedder {name}=FOLDER"
