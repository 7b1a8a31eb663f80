"""Of a backend: what is saved, copied, drawn anew and trained, and what never changes."""

from __future__ import annotations

import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from encore.api import Backend, Clip
from encore.curvature import CurvatureWarning, UnsupportedParameterError, backend_fisher
from encore.hashing import module_sha256
from encore.testing.backend_subject import BackendSubject
from encore.testing.core import ContractViolation, Suite, named, need, telling
from encore.testing.global_state import Globals, close, disturb

suite: Suite[BackendSubject] = Suite("backend")
PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"}


def frozen_sha256(backend: Backend) -> Mapping[str, str]:
    return {name: module_sha256(part) for name, part in backend.frozen().items()}


@suite.check("parts", "module and the frozen parts share no parameter: what is trained is what module holds")
def parts(subject: BackendSubject) -> None:
    backend = subject.backend
    for name, part in backend.frozen().items():
        need(isinstance(part, nn.Module), f"the frozen {name} is a {type(part).__name__}, not a torch module")
    fixed = {
        _place(weight): f"{part}.{name}"
        for part, of in backend.frozen().items()
        for name, weight in of.named_parameters()
    }
    shared = [
        (name, fixed[_place(weight)]) for name, weight in backend.module.named_parameters() if _place(weight) in fixed
    ]
    said = [f"{own} (also {other})" for own, other in shared]
    need(not shared, f"{named(said)} is in both: a parameter of module that is said to be frozen")


@suite.check("gradients", "every trainable parameter gets a gradient from losses, no frozen one does")
def gradients(subject: BackendSubject) -> None:
    backend = subject.backend
    backend.losses(subject.batch()).sum().backward()
    without = [
        name for name, weight in backend.module.named_parameters() if weight.requires_grad and weight.grad is None
    ]
    odd = [
        name
        for name, weight in backend.module.named_parameters()
        if weight.grad is not None and not weight.grad.isfinite().all()
    ]
    need(
        not without,
        f"no gradient reaches {named(without)}: losses detaches it, or has no use for it and must not require one",
    )
    need(not odd, f"the gradient of {named(odd)} is not finite")
    for part, of in backend.frozen().items():
        moved = [name for name, weight in of.named_parameters() if weight.grad is not None]
        need(not moved, f"a gradient reaches the frozen {part}: {named(moved)}")


@suite.check("training", "a step on losses changes module and leaves the frozen parts bit for bit as they were")
def training(subject: BackendSubject) -> None:
    backend = subject.backend
    before, fixed = module_sha256(backend.module), frozen_sha256(backend)
    backend.module.train()
    optimizer = torch.optim.AdamW(backend.module.parameters(), lr=1e-3)
    backend.losses(subject.batch()).mean().backward()
    optimizer.step()
    backend.module.eval()
    need(module_sha256(backend.module) != before, "a training step changes no weight of module")
    _unchanged(backend, fixed, "a training step")


@suite.check("curvature", "per-sample gradients of every trainable parameter are read exactly, or refused by name")
def curvature(subject: BackendSubject) -> str | None:
    backend = subject.backend
    one, other = subject.clips[1:3]
    if not backend.has_tokens:  # alike, for such a backend may run clips of other lengths or captions apart
        other = Clip(other.track, one.caption, subject.codes(one.codes.shape[-1], seed=9))
    clips = [one, other]
    expected: dict[str, Tensor] = {}
    for clip in clips:
        backend.module.zero_grad(set_to_none=True)
        backend.losses(subject.batch([clip])).sum().backward()
        for name, weight in backend.module.named_parameters():
            if weight.requires_grad:
                square = torch.zeros_like(weight) if weight.grad is None else weight.grad.square()
                expected[name] = expected[name] + square if name in expected else square
    backend.module.zero_grad(set_to_none=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            fisher = backend_fisher(backend, clips, micro_batch_size=2)
        except UnsupportedParameterError as error:
            return f"refused by name: {error.message}"
    missing = expected.keys() - fisher.values.keys()
    need(not missing, f"the Fisher lacks {named(sorted(missing))}")
    scale = max(float(value.max()) for value in expected.values())
    wrong = [
        name
        for name, value in expected.items()
        if float((fisher.values[name] - value).abs().max()) > 1e-3 * float(value.max()) + 1e-7 * scale
    ]
    need(
        not wrong,
        f"the Fisher of {named(wrong)} is not the sum of squares of per-clip gradients: a clip's loss depends on "
        "others, or the batch is not the first dimension",
    )
    slow = [str(one.message) for one in told if issubclass(one.category, CurvatureWarning)]
    first, *more = "; ".join(slow).split("; ")
    return f"{first}, and {len(more)} more" if more else first or None


# ----------------------------------------------------------------------------------------------------- copies, files


@suite.check("save", "a saved model loads with the same weights, and gives the same losses to the last bit")
def save(subject: BackendSubject) -> None:
    backend, batch = subject.backend, subject.batch()
    with torch.no_grad():
        for weight in backend.module.parameters():  # not what was loaded: an unlearned model
            weight.mul_(1.01).add_(1e-3)
    before, fixed = module_sha256(backend.module), frozen_sha256(backend)
    losses = backend.losses(batch).detach()
    with tempfile.TemporaryDirectory() as folder:
        backend.save(Path(folder))
        need(module_sha256(backend.module) == before, "saving changes the weights of module")
        need(any(path.is_file() for path in Path(folder).rglob("*")), "save writes no file")
        with telling("what was saved can't be loaded: load"):
            again = subject.load(folder)
        lost = _differing(backend.module, again.module)
        need(not lost, f"saved and loaded, {named(lost)} of module is not what it was")
        need(frozen_sha256(again) == fixed, "saved and loaded, the frozen parts are not what they were")
        for name in ("sample_rate", "channels", "frame_rate", "codebooks", "codebook_size", "max_frames"):
            need(
                getattr(again, name) == getattr(backend, name), f"saved and loaded, {name} is {getattr(again, name)!r}"
            )
        told = again.losses(batch).detach()
    need(close(told, losses), f"saved and loaded, losses are {told.tolist()} and were {losses.tolist()}")


@suite.check(
    "files", "what is saved runs no code when it is read: safetensors, or what torch.load(weights_only=True) reads"
)
def files(subject: BackendSubject) -> str | None:
    pickles = []
    with tempfile.TemporaryDirectory() as folder:
        subject.backend.save(Path(folder))
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            if not is_pickle(path):
                continue
            try:
                torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:
                raise ContractViolation(
                    f"save writes {path.name}, a pickle that takes more than weights_only=True to read "
                    f"({type(error).__name__}): reading it could run code"
                ) from error
            pickles.append(path.name)
    return f"{', '.join(pickles)} hold tensors and plain values only" if pickles else None


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, also one in torch's zip: by what is in it, and by names that only pickles have."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    with path.open("rb") as file:
        start = file.read(2)
    return path.suffix in PICKLES or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and len(start) == 2)


@suite.check("clone", "a clone is equal, has trainable weights of its own, and shares the frozen parts")
def clone(subject: BackendSubject) -> None:
    backend, batch = subject.backend, subject.batch()
    twin = backend.clone()
    need(type(twin) is type(backend), f"clone returns a {type(twin).__name__}")
    need(module_sha256(twin.module) == module_sha256(backend.module), "a clone's weights are not those it was made of")
    need(close(twin.losses(batch), backend.losses(batch)), "a clone gives other losses")
    own = {_place(weight) for weight in backend.module.parameters()}
    shared = [name for name, weight in twin.module.named_parameters() if _place(weight) in own]
    need(not shared, f"the clone shares {named(shared)} of module: training one would change the other")
    for name, part in backend.frozen().items():
        of_twin = twin.frozen().get(name)
        need(of_twin is not None, f"the clone has no {name}")
        assert of_twin is not None
        mine, others = ([_place(weight) for weight in one.parameters()] for one in (part, of_twin))
        need(mine == others, f"the clone has a {name} of its own: frozen parts are shared, or memory doubles")
    before, losses = module_sha256(backend.module), backend.losses(batch).detach()
    with torch.no_grad():
        for weight in twin.module.parameters():
            weight.add_(0.01)
    need(module_sha256(backend.module) == before, "changing a clone's weights changes the original's")
    need(torch.equal(backend.losses(batch), losses), "changing a clone's weights changes the original's losses")
    need(
        not torch.equal(twin.losses(batch), losses),
        "changing a clone's weights does not change its losses: they are not what it plays with",
    )


@suite.check("reinitialise", "reinitialise draws module's weights anew from its seed, and changes nothing else")
def reinitialise(subject: BackendSubject) -> None:
    backend, batch = subject.backend, subject.batch()
    before, fixed = module_sha256(backend.module), frozen_sha256(backend)
    losses = backend.losses(batch).detach()
    disturb(1)
    shared = Globals()
    backend.reinitialise(1)
    moved = shared.moved()
    first = module_sha256(backend.module)
    need(first != before, "reinitialise changes no weight of module")
    need(not torch.equal(backend.losses(batch), losses), "reinitialise changes no loss")
    _unchanged(backend, fixed, "reinitialise")
    disturb(2)
    backend.reinitialise(1)
    need(module_sha256(backend.module) == first, "reinitialise draws other weights from the same seed")
    backend.reinitialise(2)
    need(module_sha256(backend.module) != first, "reinitialise draws the same weights from two seeds")
    need(not moved, f"reinitialise draws from, or seeds, {moved} shared random generator")


def _unchanged(backend: Backend, before: Mapping[str, str], what: str) -> None:
    changed = [name for name, digest in frozen_sha256(backend).items() if digest != before.get(name)]
    if changed:
        raise ContractViolation(f"{what} changes the frozen {' and '.join(changed)}")


def _differing(module: nn.Module, other: nn.Module) -> list[str]:
    """Names of a state that another module lacks, or has otherwise."""
    theirs = other.state_dict()
    return [
        name
        for name, value in module.state_dict().items()
        if name not in theirs or not torch.equal(value, theirs[name])
    ]


def _place(weight: Tensor) -> tuple[int, tuple[int, ...]]:
    return weight.data_ptr(), tuple(weight.shape)
