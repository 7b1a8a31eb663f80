"""The checks of an embedder."""

from __future__ import annotations

import copy
import re
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from encore.api import Backend, Embedder
from encore.errors import EncoreError, MissingWeightsError, UsageError
from encore.evaluate.embed import resampled
from encore.hashing import module_sha256
from encore.testing.core import CheckResult, ContractViolation, Skip, during, need, run_checks
from encore.testing.fixture import Fixture, Subject
from encore.testing.state import apart, close, need_tensor, repeated


def run(target: type[Embedder], fixture: Fixture, **how: Any) -> tuple[CheckResult, ...]:
    """Check an embedder beside one small model; see `run_checks`."""
    return run_checks(CHECKS, EmbedderSubject(target, fixture), first=check_open, **how)


class EmbedderSubject(Subject):
    """An embedder opened beside the base, and three forget clips."""

    def open(self, backend: Backend) -> Embedder:
        """Weights are loaded from disk only: a check must not download them."""
        return self.target.open_weights(backend, offline=True)

    @cached_property
    def embedder(self) -> Embedder:
        return self.open(self.fixture.base)

    @cached_property
    def audio(self) -> Tensor:
        """Three decoded clips, [3, C, S] at the backend's rate."""
        codes = torch.stack([clip.codes for clip in self.fixture.clips.forget[:3]])
        return self.fixture.base.decode(codes.to(self.fixture.base.device))

    @cached_property
    def waveforms(self) -> Tensor:
        """The same clips mono, [3, S] at the embedder's rate."""
        return resampled(self.audio.mean(1).cpu(), self.fixture.base.sample_rate, self.embedder.sample_rate)


def check_open(subject: EmbedderSubject) -> None:
    """open gives an embedder with a sample_rate in Hz."""
    try:
        rate = subject.embedder.sample_rate
    except MissingWeightsError as error:
        raise Skip(f"its weights are not on disk: {error.message}") from error
    except EncoreError as error:
        raise ContractViolation(f"it does not open beside {subject.fixture.base.name}: {error.message}") from error
    need(type(rate) is int and 1_000 <= rate <= 384_000, f"sample_rate is {rate!r}")


def check_embed(subject: EmbedderSubject) -> None:
    """embed gives finite float32 [N, D] without a gradient for mono waveforms [N, S]."""
    need_tensor("embed", subject.embedder.embed(subject.waveforms), (3, None), torch.float32, gradient=False)


def check_determinism(subject: EmbedderSubject) -> None:
    """Two calls give the same vectors, and do not move the shared random generators."""
    repeated("embed", lambda: subject.embedder.embed(subject.waveforms))


def check_batch_invariance(subject: EmbedderSubject) -> None:
    """A waveform's vector depends on that waveform, not on those beside it."""
    together = subject.embedder.embed(subject.waveforms)
    alone = torch.cat([subject.embedder.embed(waveform[None]) for waveform in subject.waveforms])
    need(alone.shape == together.shape, f"alone, vectors have shape {list(alone.shape)}")
    difference = apart(alone, together) / float(together.abs().max())
    need(difference <= 1e-3, f"a waveform's vector differs by {difference:.1%} alone from what it is beside others")


def check_sounds(subject: EmbedderSubject) -> None:
    """Different sounds get different vectors; silence and other lengths get finite ones of the same width."""
    vectors, first = subject.embedder.embed(subject.waveforms), subject.waveforms[:1]
    distances = [apart(vectors[i], vectors[j]) for i in range(3) for j in range(i)]
    need(min(distances) > 1e-6, "two different tracks have one vector")
    for name, waveform in (("silence", torch.zeros_like(first)), ("half a clip", first[:, : first.shape[1] // 2])):
        need_tensor(f"embed of {name}", subject.embedder.embed(waveform), (1, vectors.shape[1]))


def check_identity(subject: EmbedderSubject) -> None:
    """identity holds name, revision and weight hash: the same where vectors are, another where not."""
    base, identity, vectors = subject.fixture.base, subject.embedder.identity, subject.embedder.embed(subject.waveforms)
    need(
        type(identity) is str and identity.isprintable() and identity.strip() == identity != "",
        f"identity is {identity!r}",
    )
    need(re.search(r"\d", identity), f"identity is {identity!r}, with neither a revision nor a hash")
    again = subject.open(base)
    need(again.identity == identity, f"opened again, identity is {again.identity!r} and was {identity!r}")
    need(torch.equal(again.embed(subject.waveforms), vectors), "opened again, it gives other vectors")
    with torch.no_grad():
        for part in base.frozen().values():
            for weight in part.state_dict().values():
                if weight.is_floating_point():
                    weight.mul_(1.1)
    other = subject.open(base)
    same = close(other.embed(subject.waveforms), vectors)
    need(
        same or other.identity != identity,
        f"beside another codec it gives other vectors under the same identity, {identity!r}",
    )


def check_embed_codes(subject: EmbedderSubject) -> None:
    """embed_codes, where implemented, gives a clip's codes the vector of its waveform."""
    vectors = subject.embedder.embed_codes(subject.fixture.base.encode(subject.audio))
    if vectors is None:
        raise Skip("it is not implemented: codes are decoded first")
    expected = subject.embedder.embed(subject.waveforms)
    need_tensor("embed_codes", vectors, tuple(expected.shape), torch.float32)
    worst = apart(vectors.cpu(), expected) / float(expected.abs().max())
    need(worst <= 0.05, f"a clip's codes get a vector that is {worst:.0%} off that of its waveform")


def check_embed_text(subject: EmbedderSubject) -> None:
    """embed_text, where implemented, gives texts finite float32 vectors in the space of embed's."""
    embedder, texts = subject.embedder, ["a flute", "drums and bass, loud", "a flute"]
    vectors = embedder.embed_text(texts)
    if vectors is None:
        raise Skip("it reads no texts")
    width = embedder.embed(subject.waveforms).shape[1]
    need_tensor("embed_text", vectors, (3, width), torch.float32, gradient=False)
    need(apart(vectors[0], vectors[2]) <= 1e-5 * float(vectors.abs().max()), "a text has two vectors in one call")
    need(apart(vectors[0], vectors[1]) > 1e-6, "two different texts have one vector")
    alone = embedder.embed_text(texts[1:2])
    need(alone is not None and close(alone, vectors[1:2]), "a text's vector depends on the texts beside it")


def check_tags(subject: EmbedderSubject) -> None:
    """tags, where implemented, are probabilities [N, C] of tag_names, from the waveform alone."""
    embedder, waveforms, names = subject.embedder, subject.waveforms, subject.embedder.tag_names
    tags = embedder.tags(waveforms)
    if tags is None:
        need(not names, "it has tag_names, and tags returns None")
        raise Skip("it has no tags")
    need_tensor("tags", tags, (3, len(set(names))), torch.float32, gradient=False)
    need(((tags >= 0) & (tags <= 1)).all() and (tags.sum(1) > 0).all(), "tags are no probabilities")
    alone = torch.cat([embedder.tags(waveform[None]) for waveform in waveforms])  # type: ignore[misc]
    need(close(alone, tags, 1e-3), "a waveform's tags depend on the waveforms beside it")
    vectors, together = embedder.embed_with_tags(waveforms)
    need(together is not None and close(together, tags), "embed_with_tags gives other tags than tags")
    need(close(vectors, embedder.embed(waveforms)), "embed_with_tags gives other vectors than embed")


def check_backend(subject: EmbedderSubject) -> None:
    """It does not change the backend that it is opened beside."""
    base = subject.fixture.base
    before = module_sha256(base.module, *base.frozen().values())
    subject.open(base).embed(subject.waveforms)
    need(module_sha256(base.module, *base.frozen().values()) == before, "it changes weights of the backend")
    need(not base.module.training, "it leaves the backend in training mode")


def check_refusals(subject: EmbedderSubject) -> str | None:
    """It works beside a backend without a codec, or refuses it with a clear error."""

    def refuse(*_: Any) -> None:
        raise UsageError("the backend has no codec")

    bare = copy.copy(subject.fixture.base)
    vars(bare).update(frozen=dict, encode=refuse, decode=refuse, latents=refuse)
    with during("beside a backend without a codec it"):
        try:
            subject.open(bare).embed(subject.waveforms)
        except EncoreError as error:
            need(error.message and "\n" not in error.message, f"it refuses in {error.message!r}")
            return f"refused: {error.message}"
    return None


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
