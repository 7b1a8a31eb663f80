"""Embedders with one fault each."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from encore.api import EmbedderSpec
from encore.embedders.latents import Latents
from encore.errors import InputError

_calls = itertools.count()


class Broken(Latents):
    fault: tuple[str, ...]
    also: tuple[str, ...] = ()

    def embed_codes(self, codes: Tensor) -> Tensor | None:
        return super().embed_codes(codes)


class RefusesAll(Broken):
    fault = ("open", "does not open beside musicgen", "no room")

    @classmethod
    def open(cls, backend):
        raise InputError("no room")


class RateInKilohertz(Broken):
    fault = ("open", "sample_rate is 8")

    def __init__(self, backend):
        super().__init__(backend)
        self.sample_rate = 8


class FramesNotVectors(Broken):
    fault = ("embed", "shape [3, 192, 1]")
    also = ("sounds", "embed_codes")

    def embed(self, waveforms):
        return super().embed(waveforms)[..., None]


class Doubles(Broken):
    fault = ("embed", "torch.float64")

    def embed(self, waveforms):
        return super().embed(waveforms).double()


class WithGradient(Broken):
    fault = ("embed", "embed has a gradient")

    def embed(self, waveforms):
        return super().embed(waveforms).requires_grad_()


class DrawsNoise(Broken):
    fault = ("determinism", "two calls of embed differ")
    also = ("batch_invariance", "identity", "embed_codes", "sounds")

    def embed(self, waveforms):
        found = super().embed(waveforms)
        return found + torch.rand(found.shape)


class SeedsTheProcess(Broken):
    fault = ("determinism", "torch's shared random generator")

    def embed(self, waveforms):
        torch.manual_seed(0)
        return super().embed(waveforms)


class NormalisedOverTheBatch(Broken):
    fault = ("batch_invariance", "alone")
    also = ("sounds", "embed_codes", "embed")

    def embed(self, waveforms):
        found = super().embed(waveforms)
        return found - found.mean(0)


class Deaf(Broken):
    fault = ("sounds", "one vector")
    also = ("embed_codes",)

    def embed(self, waveforms):
        return torch.ones(len(waveforms), 16)


class DividesByLoudness(Broken):
    fault = ("sounds", "silence", "not finite")
    also = ("embed_codes",)

    def embed(self, waveforms):
        return super().embed(waveforms) / waveforms.abs().amax(1, keepdim=True)


class WidthOfTheSound(Broken):
    fault = ("sounds", "half a clip returns shape")
    also = ("embed_codes", "identity")

    def embed(self, waveforms):
        found = super().embed(waveforms)
        return torch.cat([found, found.repeat(1, waveforms.shape[1] // 4000)], 1)


class NameForIdentity(Broken):
    fault = ("identity", "neither a revision nor a hash")

    def __init__(self, backend):
        super().__init__(backend)
        self.identity = "latents"


class OtherIdentityEachTime(Broken):
    fault = ("identity", "opened again")

    def __init__(self, backend):
        super().__init__(backend)
        self.identity += str(next(_calls))


class IdentityWithoutWeights(Broken):
    fault = ("identity", "other vectors under the same identity")

    def __init__(self, backend):
        super().__init__(backend)
        self.identity = "latents/1"


class CodesEmbedOtherwise(Broken):
    fault = ("embed_codes", "off that of its waveform")

    def embed_codes(self, codes):
        return super().embed_codes(codes) * 1.5

    def embed(self, waveforms):
        return super().embed(waveforms) / 1.5


class TextsInASpaceOfTheirOwn(Broken):
    fault = ("embed_text", "shape [3, 2], not [3, 192]")

    def embed_text(self, texts):
        return torch.tensor([[len(text), 1.0] for text in texts])


class ReadsNothing(Broken):
    fault = ("embed_text", "two different texts have one vector")

    def embed_text(self, texts):
        return torch.ones(len(texts), 192)


class LogitsForTags(Broken):
    fault = ("tags", "no probabilities")
    tag_names = ("loud", "soft")

    def tags(self, waveforms):
        return torch.stack([waveforms.std(1), -waveforms.std(1)], 1)


class NamesWithoutTags(Broken):
    fault = ("tags", "tags returns None")
    tag_names = ("loud", "soft")


class TagsOfAnotherSound(Broken):
    fault = ("tags", "embed_with_tags gives other tags")
    tag_names = ("loud",)

    def tags(self, waveforms):
        return waveforms.std(1, keepdim=True).sigmoid()

    def embed_with_tags(self, waveforms):
        return self.embed(waveforms), 1 - self.tags(waveforms)


class ChangesTheCodec(Broken):
    fault = ("backend", "changes weights of the backend")
    also = ("determinism", "identity", "batch_invariance", "embed_codes")

    def embed(self, waveforms):
        with torch.no_grad():
            next(self._backend.frozen()["codec"].parameters()).mul_(1.01)
        return super().embed(waveforms)


class Traceback(Broken):
    fault = ("refusals", "KeyError", "codec")

    def __init__(self, backend):
        backend.frozen()["codec"]
        super().__init__(backend)


ALL = [one for one in list(globals().values()) if isinstance(one, type) and issubclass(one, Broken)]
for one in ALL:
    one.spec = EmbedderSpec("broken", "", "")
ALL = ALL[1:]
