"""Of a backend: what it says of itself, what it refuses, its codec, its text encoder."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import nn

from encore.api import Backend
from encore.errors import EncoreError, InputError, UsageError
from encore.testing.backend_subject import CAPTIONS, BackendSubject
from encore.testing.core import ContractViolation, Suite, Unusable, named, need, raised
from encore.testing.global_state import apart, close

suite: Suite[BackendSubject] = Suite("backend")


@suite.check(
    "load", "load opens a model in evaluation mode and float32, its module trainable, its frozen parts not", first=True
)
def load(subject: BackendSubject) -> None:
    try:
        backend = subject.backend
    except InputError as error:
        raise Unusable(error.message, error.hint) from error
    except EncoreError as error:
        raise ContractViolation(f"{subject.model} could not be loaded: {error.message}") from error
    need(isinstance(backend, subject.target), f"load returned a {type(backend).__name__}")
    need(isinstance(backend.module, nn.Module), f"module is a {type(backend.module).__name__}, not a torch module")


@suite.check("mode", "a loaded model is in evaluation mode, its module trainable and float32, its frozen parts not")
def mode(subject: BackendSubject) -> str | None:
    backend = subject.load()  # whatever other checks have done to the shared one
    parts = {"module": backend.module, **backend.frozen()}
    training = [name for name, part in parts.items() if any(inner.training for inner in part.modules())]
    need(not training, f"after loading, {' and '.join(training)} is in training mode")
    weights = dict(backend.module.named_parameters())
    need(weights, "module has no parameters")
    fixed = [name for name, weight in weights.items() if not weight.requires_grad]
    need(len(fixed) < len(weights), "no parameter of module requires a gradient")
    odd = [name for name, weight in weights.items() if weight.dtype != torch.float32]
    need(not odd, f"{named(odd)} of module is not float32")
    for name, part in backend.frozen().items():
        loose = [inner for inner, weight in part.named_parameters() if weight.requires_grad]
        need(not loose, f"the frozen {name} has {len(loose)} parameters that require a gradient")
    return f"{named(fixed)} of module requires no gradient, and stays as it is" if fixed else None


@suite.check("spec", "name is the spec's, and rates, channels, codebooks and frames are positive numbers")
def spec(subject: BackendSubject) -> None:
    backend = subject.backend
    need(
        backend.name == subject.target.spec.name,
        f"name is {backend.name!r}, the spec's is {subject.target.spec.name!r}",
    )
    for field in ("sample_rate", "channels", "codebooks", "max_frames"):
        value = getattr(backend, field)
        need(isinstance(value, int) and value > 0, f"{field} is {value!r}")
    need(backend.frame_rate > 0 and math.isfinite(backend.frame_rate), f"frame_rate is {backend.frame_rate!r}")
    size, wanted = backend.codebook_size, "2 or more" if backend.has_tokens else "0 without tokens"
    need(size >= 2 if backend.has_tokens else size == 0, f"codebook_size is {size!r}, and must be {wanted}")
    need(isinstance(backend.device, torch.device), f"device is {backend.device!r}, not a torch.device")
    need(
        isinstance(backend.text_embeddings, dict),
        f"text_embeddings is a {type(backend.text_embeddings).__name__}, not a dict",
    )
    need(backend.unit, f"unit is {backend.unit!r}, and must say what losses are in")


@suite.check("refusals", "what is no model of this family is refused with an InputError: a sentence, and a hint")
def refusals(subject: BackendSubject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        empty, odd = Path(folder, "empty"), Path(folder, "odd")
        for path in (empty, odd):
            path.mkdir()
        (odd / "config.json").write_text('{"model_type": "conformance-check"}')
        (odd / "model.safetensors").write_bytes(b"no weights")
        for what, given in (("an empty folder", empty), ("a folder of something else", odd)):
            try:
                subject.target.load(str(given), offline=True)
            except InputError as error:
                need(error.message and "\n" not in error.message, f"{what} is refused in {error.message!r}")
                need(error.hint, f"{what} is refused without a hint: {error.message}")
            except Exception as error:
                raise ContractViolation(f"given {what}, load {raised(error)}") from error
            else:
                raise ContractViolation(f"given {what}, load returns a model")


# ---------------------------------------------------------------------------------------------------- codec and text


@suite.check("encode", "encode gives codes int64 [N, K, T] below codebook_size, or latents float32 [N, K, T]")
def encode(subject: BackendSubject) -> None:
    backend, sound = subject.backend, subject.sound()
    codes = backend.encode(sound)
    wanted = torch.int64 if backend.has_tokens else torch.float32
    need(codes.dtype == wanted, f"encode returns {codes.dtype}, not {wanted}")
    need(
        codes.dim() == 3 and codes.shape[:2] == (len(sound), backend.codebooks),
        f"encode returns shape {list(codes.shape)} for {len(sound)} waveforms and {backend.codebooks} codebooks",
    )
    expected = sound.shape[-1] / backend.sample_rate * backend.frame_rate
    need(
        abs(codes.shape[-1] - expected) <= max(2.0, 0.02 * expected),
        f"encode returns {codes.shape[-1]} frames for a waveform of {expected:.1f}",
    )
    if backend.has_tokens:
        low, high = int(codes.min()), int(codes.max())
        need(
            low >= 0 and high < backend.codebook_size,
            f"codes from {low} to {high}, codebook_size {backend.codebook_size}",
        )
    else:
        need(codes.isfinite().all(), "latents that are not finite")
    need(not codes.requires_grad, "encode returns a tensor with a gradient: the codec is frozen")
    need(torch.equal(codes, backend.encode(sound)), "two calls of encode give different codes")
    alone = torch.cat([backend.encode(one[None]) for one in sound])
    if backend.has_tokens:
        same = float((alone == codes).float().mean())
        need(same > 0.98, f"{1 - same:.0%} of a waveform's codes change with the waveforms encoded beside it")
    else:
        need(
            close(alone, codes, 1e-3), f"a waveform's latents change by {apart(alone, codes):.2g} with those beside it"
        )


@suite.check("decode", "decode gives finite waveforms [N, C, S] as long as the codes, the same every time")
def decode(subject: BackendSubject) -> None:
    backend = subject.backend
    codes = subject.batch(subject.clips[:1]).codes
    audio = backend.decode(codes)
    need(audio.dim() == 3 and audio.shape[:2] == (1, backend.channels), f"decode returns shape {list(audio.shape)}")
    need(
        audio.is_floating_point() and bool(audio.isfinite().all()),
        f"decode returns {audio.dtype}, or what is not finite",
    )
    frames = audio.shape[-1] / backend.sample_rate * backend.frame_rate
    need(
        abs(frames - codes.shape[-1]) <= max(2.0, 0.02 * frames),
        f"{codes.shape[-1]} frames are decoded to {frames:.1f}",
    )
    need(torch.equal(audio, backend.decode(codes)), "two calls of decode give different waveforms")


@suite.check("latents", "latents gives float [N, D, T] for codes [N, K, T], or raises UsageError")
def latents(subject: BackendSubject) -> str | None:
    backend, codes = subject.backend, subject.batch(subject.clips[:2]).codes
    try:
        found = backend.latents(codes)
    except UsageError as error:
        need(backend.has_tokens, f"a backend without tokens has latents by definition, but raises: {error.message}")
        return f"refused: {error.message}"
    need(found.is_floating_point() and found.dim() == 3, f"latents returns {found.dtype} of shape {list(found.shape)}")
    need(
        found.shape[0] == len(codes) and found.shape[-1] == codes.shape[-1],
        f"latents returns shape {list(found.shape)} for codes {list(codes.shape)}",
    )
    need(found.isfinite().all(), "latents that are not finite")
    return None


@suite.check("condition", "condition gives one frozen [L, D] a caption, whatever captions are beside it")
def encode_text(subject: BackendSubject) -> None:
    backend: Backend = subject.load()  # one that has kept no encodings yet
    captions = [*CAPTIONS, CAPTIONS[0]]
    found = backend.encode_text(captions)
    need(len(found) == len(captions), f"condition returns {len(found)} encodings for {len(captions)} captions")
    shapes = [list(one.shape) for one in found]
    need(all(len(shape) == 2 for shape in shapes), f"condition returns shapes {shapes}, and must return [L, D] each")
    need(len({shape[1] for shape in shapes}) == 1, f"encodings of different widths: {shapes}")
    need(all(one.isfinite().all() for one in found), "an encoding is not finite")
    need(not any(one.requires_grad for one in found), "encodings have a gradient: the text encoder is frozen")
    need(torch.equal(found[0], found[-1]), "one caption has two encodings")
    kept = set(CAPTIONS) - set(backend.text_embeddings)
    need(not kept, "encodings are not kept in text_embeddings, so that each is computed again in every step")
    alone = subject.load().encode_text(CAPTIONS[:1])[0]
    need(
        alone.shape == found[0].shape,
        f"a caption's encoding has shape {list(found[0].shape)} beside longer ones and {list(alone.shape)} alone",
    )
    need(close(alone, found[0]), f"a caption's encoding changes by {apart(alone, found[0]):.2g} with those beside it")
