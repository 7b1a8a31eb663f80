"""Base of embedders whose weights were released as one file at an address, not on a hub."""

from __future__ import annotations

import pickle
import re
import urllib.request
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from encore.api import Backend, Embedder
from encore.errors import InputError, MissingWeightsError
from encore.hashing import module_sha256
from encore.hub import TIMEOUT


class Released(Embedder):
    """A network in evaluation mode and float32, with weights from a given file or the released one.

    The released file is read from, or downloaded to, torch.hub's checkpoint folder, as the authors' packages do. Files
    are read by `torch.load(weights_only=True)`, or as safetensors.

    Attributes:
        address: of the released file; a hash in its name, as in torch.hub, is checked after the download.
    """

    address: ClassVar[str]

    def __init__(self, network: nn.Module, identity: str, device: torch.device) -> None:
        self.network, self.identity, self.device = network.to(device), identity, device

    @classmethod
    @abstractmethod
    def network_of(cls, weights: Mapping[str, Tensor]) -> nn.Module:
        """The network that a released state dict belongs to, with its weights.

        Raises:
            KeyError, RuntimeError: it has other names or shapes.
        """

    @classmethod
    def open(cls, backend: Backend) -> Released:
        return cls.open_weights(backend)

    @classmethod
    def open_weights(cls, backend: Backend, model: str = "", *, offline: bool = False) -> Released:
        path = Path(model) if model else cls._released(offline)
        try:
            network = cls.network_of(_state_dict(path)).requires_grad_(False).eval()
        except UNREADABLE as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")
            raise InputError(f"{path} has no weights of the embedder {cls.spec.name}: {line}", cls._hint()) from error
        return cls(network, f"{cls.spec.name}/1 sha256:{module_sha256(network)[:16]}", backend.device)

    @classmethod
    def _released(cls, offline: bool) -> Path:
        """The released file on disk."""
        name = cls.address.rpartition("/")[2]
        path = Path(torch.hub.get_dir(), "checkpoints", name)
        if path.is_file():
            return path
        try:
            if offline:
                raise OSError("fetching is off")
            with urllib.request.urlopen(cls.address, timeout=TIMEOUT):
                pass  # a test with a timeout, which torch's download has not
            path.parent.mkdir(parents=True, exist_ok=True)
            checked = re.search(r"-([0-9a-f]{8,})\.", name)
            torch.hub.download_url_to_file(cls.address, str(path), checked and checked[1], progress=False)
        except (OSError, RuntimeError) as error:
            raise MissingWeightsError(
                f"the weights of the embedder {cls.spec.name} are not here and can't be fetched: {error}", cls._hint()
            ) from error
        return path

    @classmethod
    def _hint(cls) -> str:
        return f"download {cls.address}, and name the file: --embedder {cls.spec.name}=FILE"


UNREADABLE = (  # a file that is no checkpoint, and what torch raises where shapes don't fit together
    OSError, EOFError, pickle.UnpicklingError, SafetensorError,
    LookupError, RuntimeError, TypeError, ValueError, AssertionError,
)  # fmt: skip


def _state_dict(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return {name: value.float() for name, value in load_file(path).items()}
    weights = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError("it is not a state dict: names and tensors")
    return {str(name): value.float() for name, value in weights.items()}
