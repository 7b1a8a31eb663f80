"""The checks of a backend that train it, copy it, save it or draw its weights again."""

from __future__ import annotations

import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from encore.api import Backend, Clip
from encore.curvature import CurvatureWarning, UnsupportedParameterError, backend_fisher
from encore.hashing import module_sha256
from encore.testing.backend_subject import BackendSubject, storage
from encore.testing.core import during, listed, need
from encore.testing.state import apart, close, frozen_sha256, repeated

PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"}


def check_gradients(subject: BackendSubject) -> None:
    """Every trainable parameter gets a finite gradient from losses, no frozen one does."""
    backend = subject.backend
    backend.losses(subject.batch()).sum().backward()
    weights = {name: weight for name, weight in backend.module.named_parameters() if weight.requires_grad}
    without = [name for name, weight in weights.items() if weight.grad is None]
    need(not without, f"no gradient reaches {listed(without)}: losses does not use it, so it must not require one")
    odd = [name for name, weight in weights.items() if weight.grad is not None and not weight.grad.isfinite().all()]
    need(not odd, f"the gradient of {listed(odd)} is not finite")
    reached = [name for name, m in backend.frozen().items() if any(w.grad is not None for w in m.parameters())]
    need(not reached, f"a gradient reaches the frozen {listed(reached)}")


def check_training(subject: BackendSubject) -> None:
    """A step on losses changes module, and no frozen part."""
    backend, before = subject.backend, module_sha256(subject.backend.module)
    with _frozen_unchanged(backend, "a training step"):
        backend.module.train()
        optimizer = torch.optim.AdamW(backend.module.parameters(), lr=1e-3)
        backend.losses(subject.batch()).mean().backward()
        optimizer.step()
    need(module_sha256(backend.module) != before, "a training step changes no weight of module")


def check_curvature(subject: BackendSubject) -> str | None:
    """Per-sample gradients of every trainable parameter are read exactly, or refused by name."""
    backend = subject.backend
    first, second = subject.clips[1:3]
    if not backend.has_tokens:  # such a backend may run clips of different lengths or captions apart
        second = Clip(second.track, first.caption, subject.codes(first.codes.shape[-1], seed=9))
    weights = {name: weight for name, weight in backend.module.named_parameters() if weight.requires_grad}
    expected = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for clip in (first, second):
        backend.module.zero_grad(set_to_none=True)
        backend.losses(subject.batch([clip])).sum().backward()
        for name, weight in weights.items():
            expected[name] += 0 if weight.grad is None else weight.grad.square()
    backend.module.zero_grad(set_to_none=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fisher = backend_fisher(backend, [first, second], micro_batch_size=2).values
        except UnsupportedParameterError as error:
            return f"refused by name: {error.message}"
    missing = sorted(expected.keys() - fisher.keys())
    need(not missing, f"the Fisher diagonal lacks {listed(missing)}")
    scale = max(float(value.max()) for value in expected.values())
    limits = {name: 1e-3 * float(value.max()) + 1e-7 * scale for name, value in expected.items()}
    wrong = [name for name, value in expected.items() if apart(fisher[name], value) > limits[name]]
    reason = "a clip's loss depends on others, or the batch is not the first dimension"
    need(not wrong, f"the Fisher diagonal of {listed(wrong)} is not the sum over clips of squared gradients: {reason}")
    return listed([str(w.message) for w in caught if issubclass(w.category, CurvatureWarning)]) or None


@torch.no_grad()
def check_save(subject: BackendSubject) -> None:
    """A saved model loads with the same weights and losses."""
    backend, batch = subject.backend, subject.batch()
    for weight in backend.module.parameters():  # an unlearned model, not the one that was loaded
        weight.mul_(1.01).add_(1e-3)
    losses, before = backend.losses(batch), backend.module.state_dict()
    digest = module_sha256(backend.module)
    with tempfile.TemporaryDirectory() as folder:
        backend.save(Path(folder))
        need(module_sha256(backend.module) == digest, "saving changes the weights of module")
        with during("what was saved can't be loaded: load"):
            loaded = subject.load(folder)
    after = loaded.module.state_dict()
    lost = [name for name, value in before.items() if name not in after or not torch.equal(value, after[name])]
    need(not lost, f"saved and loaded, {listed(lost)} of module is not what it was")
    need(frozen_sha256(loaded) == frozen_sha256(backend), "saved and loaded, the frozen parts differ")
    for name in ("sample_rate", "channels", "frame_rate", "codebooks", "codebook_size", "max_frames"):
        value = getattr(loaded, name)
        need(value == getattr(backend, name), f"saved and loaded, {name} is {value!r}")
    need(close(loaded.losses(batch), losses), "saved and loaded, losses are not what they were")


def check_files(subject: BackendSubject) -> str | None:
    """Saved files run no code when read: safetensors, or what torch.load(weights_only=True) reads."""
    with tempfile.TemporaryDirectory() as folder:
        subject.backend.save(Path(folder))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        need(files, "save writes no file")
        pickles = [path for path in files if is_pickle(path)]
        for path in pickles:
            with during(f"save writes {path.name}, a pickle that could run code when read: torch.load"):
                torch.load(path, map_location="cpu", weights_only=True)
    return f"{listed([path.name for path in pickles])} hold tensors and plain values only" if pickles else None


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, also one in torch's zip, by its content or its suffix."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    with path.open("rb") as file:
        start = file.read(2)
    return path.suffix in PICKLES or start in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@torch.no_grad()
def check_clone(subject: BackendSubject) -> None:
    """A clone is equal, has separate trainable weights, and shares the frozen parts."""
    backend, batch = subject.backend, subject.batch()
    twin, losses = backend.clone(), backend.losses(batch)
    need(type(twin) is type(backend), f"clone returns a {type(twin).__name__}")
    need(module_sha256(twin.module) == module_sha256(backend.module), "a clone has other weights")
    need(close(twin.losses(batch), losses), "a clone gives other losses")
    memory = {storage(weight) for weight in backend.module.parameters()}
    shared = [name for name, weight in twin.module.named_parameters() if storage(weight) in memory]
    need(not shared, f"the clone shares {listed(shared)} of module: training one would change the other")
    ours, theirs = ({n: [*map(storage, p.parameters())] for n, p in b.frozen().items()} for b in (backend, twin))
    copied = [name for name in ours if ours[name] != theirs.get(name)]
    need(not copied, f"the clone has a separate frozen {listed(copied)}, which takes memory twice")
    for weight in twin.module.parameters():
        weight.add_(0.01)
    need(torch.equal(backend.losses(batch), losses), "changing a clone's weights changes the original's losses")
    need(not torch.equal(twin.losses(batch), losses), "changing a clone's weights does not change its losses")


@torch.no_grad()
def check_reinitialise(subject: BackendSubject) -> None:
    """reinitialise draws module's weights from its seed, and changes nothing else."""
    backend, batch = subject.backend, subject.batch()

    def weights(seed: int) -> Tensor:
        backend.reinitialise(seed)
        return torch.cat([weight.flatten() for weight in backend.module.parameters()])

    losses = backend.losses(batch)
    with _frozen_unchanged(backend, "reinitialise"):
        first = repeated("reinitialise with one seed", lambda: weights(1))
    need(not torch.equal(backend.losses(batch), losses), "reinitialise changes no loss")
    need(not torch.equal(first, weights(2)), "reinitialise draws the same weights from two seeds")


@contextmanager
def _frozen_unchanged(backend: Backend, action: str) -> Iterator[None]:
    before = frozen_sha256(backend)
    yield
    changed = [name for name, digest in frozen_sha256(backend).items() if digest != before.get(name)]
    need(not changed, f"{action} changes the frozen {listed(changed)}")


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
