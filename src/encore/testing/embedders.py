"""The checks of an embedder."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from functools import cached_property

import torch
from torch import Tensor, nn

from encore.api import Backend, Embedder
from encore.errors import EncoreError, MissingWeightsError, UsageError
from encore.evaluate.embed import resampled
from encore.hashing import module_sha256
from encore.testing.core import CheckResult, ContractViolation, Progress, Skip, Suite, need, raised
from encore.testing.global_state import Globals, apart, close, disturb
from encore.testing.latent_backend import LatentBackend
from encore.testing.small_model import Fixture


class EmbedderSubject:
    """What the checks of an embedder look at.

    Args:
        target: the class, with its `spec`. fixture: the model it is opened beside, and music.
    """

    def __init__(self, target: type[Embedder], fixture: Fixture) -> None:
        self.target, self.fixture = target, fixture

    def undisturbed(self) -> AbstractContextManager[None]:
        return self.fixture.undisturbed()

    @cached_property
    def embedder(self) -> Embedder:
        return self.open(self.fixture.base)

    def open(self, backend: Backend) -> Embedder:
        """Weights are looked for on disk only: a check is no reason to download them."""
        return self.target.open_weights(backend, offline=True)

    @cached_property
    def codes(self) -> Tensor:
        """Codes of three forget clips, [3, K, T]."""
        return torch.stack([clip.codes for clip in self.fixture.clips.forget[:3]])

    @cached_property
    def sounds(self) -> Tensor:
        """The same clips as they are played, mono, [3, S] at the embedder's rate."""
        base = self.fixture.base
        audio = base.decode(self.codes.to(base.device)).mean(1).cpu()
        return resampled(audio, base.sample_rate, self.embedder.sample_rate)


suite: Suite[EmbedderSubject] = Suite("embedder")


def run(
    target: type[Embedder],
    fixture: Fixture,
    *,
    progress: Progress = lambda name, done, of: None,
    only: Collection[str] | None = None,
) -> tuple[CheckResult, ...]:
    """Every check of an embedder beside one small model.

    Args:
        target: the class, its `spec` set. fixture: the model and music. only: names of checks, to run no others.
    """
    return suite.run(EmbedderSubject(target, fixture), progress, only)


@suite.check("open", "open gives an embedder with a sample_rate in Hz", first=True)
def open_(subject: EmbedderSubject) -> None:
    try:
        embedder = subject.embedder
    except MissingWeightsError as error:
        raise Skip(f"its weights are not here: {error.message}") from error
    except EncoreError as error:
        raise ContractViolation(f"it does not open beside {subject.fixture.base.name}: {error.message}") from error
    rate = embedder.sample_rate
    need(type(rate) is int and 1_000 <= rate <= 384_000, f"sample_rate is {rate!r}")


@suite.check("embed", "embed gives finite float32 [N, D] without a gradient for mono waveforms [N, S]")
def embed(subject: EmbedderSubject) -> None:
    found = subject.embedder.embed(subject.sounds)
    need(isinstance(found, Tensor), f"embed returns a {type(found).__name__}, not a tensor")
    need(found.dim() == 2 and len(found) == 3, f"embed returns shape {list(found.shape)} for 3 waveforms")
    need(found.dtype == torch.float32, f"embed returns {found.dtype}")
    need(found.isfinite().all(), "vectors that are not finite")
    need(not found.requires_grad, "vectors have a gradient")


@suite.check("determinism", "two calls give the same vectors, without touching the shared random generators")
def determinism(subject: EmbedderSubject) -> None:
    disturb(1)
    shared = Globals()
    first = subject.embedder.embed(subject.sounds)
    moved = shared.moved()
    disturb(2)
    second = subject.embedder.embed(subject.sounds)
    need(torch.equal(first, second), f"two calls of embed differ by {apart(first, second):.2g}")
    need(not moved, f"embed draws from, or seeds, {moved} shared random generator")


@suite.check("batch invariance", "a waveform's vector depends on that waveform, not on those beside it")
def batch_invariance(subject: EmbedderSubject) -> None:
    together = subject.embedder.embed(subject.sounds)
    alone = torch.cat([subject.embedder.embed(one[None]) for one in subject.sounds])
    need(alone.shape == together.shape, f"alone, vectors have shape {list(alone.shape)}")
    scale = float(together.abs().max())
    need(
        apart(alone, together) <= 1e-3 * scale,
        f"a waveform's vector differs by {apart(alone, together) / scale:.1%} alone from what it is beside others",
    )


@suite.check(
    "sounds", "different sounds get different vectors; silence and other lengths get finite ones of the same width"
)
def sounds(subject: EmbedderSubject) -> None:
    embedder, given = subject.embedder, subject.sounds
    found = embedder.embed(given)
    for i in range(len(found)):
        for j in range(i):
            need(apart(found[i], found[j]) > 1e-6, "two different tracks have one vector")
    for what, sound in (
        ("silence", torch.zeros_like(given[:1])),
        ("half of a sound", given[:1, : given.shape[1] // 2]),
    ):
        vector = embedder.embed(sound)
        need(
            vector.shape == (1, found.shape[1]),
            f"{what} gets shape {list(vector.shape)}, and not {[1, found.shape[1]]}",
        )
        need(vector.isfinite().all(), f"{what} gets a vector that is not finite")


@suite.check("identity", "identity holds name, revision and weight hash: the same where vectors are, another where not")
def identity(subject: EmbedderSubject) -> None:
    own = subject.embedder.identity
    need(type(own) is str and own.strip() == own and own.isprintable() and own, f"identity is {own!r}")
    need(
        re.search(r"\d", own), f"identity is {own!r}, with neither a revision nor a hash: any version would pass for it"
    )
    again = subject.open(subject.fixture.base)
    need(again.identity == own, f"opened again, identity is {again.identity!r} and was {own!r}")
    vectors = subject.embedder.embed(subject.sounds)
    need(torch.equal(again.embed(subject.sounds), vectors), "opened again, it gives other vectors")
    base = subject.fixture.base
    with torch.no_grad():
        for part in base.frozen().values():
            for weight in part.state_dict().values():
                if weight.is_floating_point():
                    weight.mul_(1.1)
    other = subject.open(base)
    if not close(other.embed(subject.sounds), vectors):
        need(other.identity != own, f"beside another codec it gives other vectors under the same identity, {own!r}")


@suite.check("embed_codes", "embed_codes, where there is one, gives a clip's codes the vector of its waveform")
def embed_codes(subject: EmbedderSubject) -> None:
    base, embedder = subject.fixture.base, subject.embedder
    audio = base.decode(subject.codes.to(base.device))
    codes = base.encode(audio)
    found = embedder.embed_codes(codes)
    if found is None:
        raise Skip("it has none: codes are decoded for it")
    heard = embedder.embed(resampled(audio.mean(1).cpu(), base.sample_rate, embedder.sample_rate))
    need(found.shape == heard.shape, f"embed_codes returns shape {list(found.shape)}, embed {list(heard.shape)}")
    need(found.dtype == torch.float32, f"embed_codes returns {found.dtype}")
    scale = float(heard.abs().max())
    worst = apart(found.cpu(), heard) / scale
    need(worst <= 0.05, f"a clip's codes get a vector that is {worst:.0%} off that of its waveform")


@suite.check("embed_text", "embed_text, where it is, gives texts finite float32 vectors in the space of embed's")
def embed_text(subject: EmbedderSubject) -> None:
    embedder, texts = subject.embedder, ["a flute", "drums and bass, loud", "a flute"]
    found = embedder.embed_text(texts)
    if found is None:
        raise Skip("it reads no texts")
    width = subject.embedder.embed(subject.sounds).shape[1]
    need(found.shape == (3, width), f"3 texts get shape {list(found.shape)}, sounds have {width} dimensions")
    need(found.dtype == torch.float32 and not found.requires_grad, f"texts get {found.dtype}, or a gradient")
    need(found.isfinite().all(), "vectors of texts that are not finite")
    need(apart(found[0], found[2]) <= 1e-5 * float(found.abs().max()), "a text has two vectors in one call")
    need(apart(found[0], found[1]) > 1e-6, "two different texts have one vector")
    alone = embedder.embed_text(texts[1:2])
    need(alone is not None and close(alone, found[1:2]), "a text's vector depends on the texts beside it")


@suite.check("tags", "tags, where they are, are probabilities [N, C] of tag_names, a sound's own")
def tags(subject: EmbedderSubject) -> None:
    embedder, sounds = subject.embedder, subject.sounds
    found = embedder.tags(sounds)
    if found is None:
        need(not embedder.tag_names, "it has tag_names, and tags returns None")
        raise Skip("it has no tags")
    names = embedder.tag_names
    need(found.shape == (3, len(names)), f"tags returns shape {list(found.shape)} for {len(names)} tag_names")
    need(len(set(names)) == len(names), "two tags have one name")
    need(found.dtype == torch.float32 and not found.requires_grad, f"tags returns {found.dtype}, or a gradient")
    need(((found >= 0) & (found <= 1)).all(), "tags that are no probabilities")
    need((found.sum(1) > 0).all(), "a sound without any tag's probability")
    alone = torch.cat([embedder.tags(one[None]) for one in sounds])  # type: ignore[misc]
    need(apart(alone, found) <= 1e-3, "a sound's tags depend on the sounds beside it")
    vectors, together = embedder.embed_with_tags(sounds)
    need(together is not None and close(together, found), "embed_with_tags gives other tags than tags")
    need(close(vectors, embedder.embed(sounds)), "embed_with_tags gives other vectors than embed")


@suite.check("backend", "the backend it is opened beside is what it was")
def backend(subject: EmbedderSubject) -> None:
    base = subject.fixture.base
    before = module_sha256(base.module, *base.frozen().values())
    opened = subject.open(base)
    opened.embed(subject.sounds)
    need(module_sha256(base.module, *base.frozen().values()) == before, "it changes weights of the backend")
    need(not base.module.training, "it leaves the backend in training mode")


@suite.check("refusals", "beside a backend that it can't work with, open raises an InputError that says so")
def refusals(subject: EmbedderSubject) -> str | None:
    try:
        opened = subject.open(WithoutCodec(subject.fixture.base))
        opened.embed(subject.sounds)
    except EncoreError as error:
        need(error.message and "\n" not in error.message, f"it refuses in {error.message!r}")
        return f"refused: {error.message}"
    except Exception as error:
        raise ContractViolation(f"beside a backend without a codec it {raised(error)}") from error
    return None


class WithoutCodec(LatentBackend):
    """A backend with nothing frozen that an embedder could use."""

    name = "without a codec"
    has_tokens = True

    def frozen(self) -> Mapping[str, nn.Module]:
        return {}

    def encode(self, waveforms: Tensor) -> Tensor:
        raise UsageError(f"the backend {self.name} can't encode")

    def decode(self, codes: Tensor) -> Tensor:
        raise UsageError(f"the backend {self.name} can't decode")

    def latents(self, codes: Tensor) -> Tensor:
        return Backend.latents(self, codes)
