"""Backends without tokens, with one fault each."""

from __future__ import annotations

from dataclasses import replace

import torch

from encore.errors import UsageError
from encore.testing.fixture import LatentBackend


class Broken(LatentBackend):
    fault: tuple[str, ...]
    also: tuple[str, ...] = ()


class IgnoresNoiseIndex(Broken):
    fault = ("noise_index", "the same at noise_index 0 and 1")
    also = ("predictions",)

    def losses(self, batch):
        return super().losses(replace(batch, noise_index=0))


class NoiseOfTheProcess(Broken):
    fault = ("noise_index", "two calls at noise_index 1 differ")
    also = ("determinism", "batch_invariance", "save", "clone", "curvature", "caption", "predictions", "soft_prompt")

    def losses(self, batch):
        return super().losses(batch) * (1 + 0.1 * torch.rand(()))


class NoiseOfTheBatch(Broken):
    """Item i of a batch gets the i-th noise."""

    fault = ("batch_invariance", "alone and", "beside others")
    also = ("curvature", "predictions")

    def losses(self, batch):
        return super().losses(batch) * (1 + 0.1 * torch.arange(len(batch)))


class HasLogits(Broken):
    fault = ("no_tokens", "logits returns something", "UsageError")

    def logits(self, batch, *, unconditional=False):
        return torch.zeros(*batch.codes.shape, 2)


class RefusesInAnotherWay(Broken):
    fault = ("no_tokens", "token_mask raised NotImplementedError")

    def token_mask(self, batch):
        raise NotImplementedError


class TargetOfTheProcess(Broken):
    fault = ("random_losses", "two calls")

    def random_losses(self, batch, generator):
        return super().random_losses(batch, torch.Generator().manual_seed(torch.seed() % 2**31))


class FixedTarget(Broken):
    fault = ("random_losses", "the same whatever the generator")

    def random_losses(self, batch, generator):
        return super().random_losses(batch, torch.Generator().manual_seed(0))


class PredictsAtOtherNoise(Broken):
    fault = ("predictions", "losses are", "but outputs and targets say")

    def predictions(self, batch):
        return super().predictions(replace(batch, noise_index=0))


class PredictsWithoutGradient(Broken):
    fault = ("predictions", "for outputs, has no gradient")

    def predictions(self, batch):
        outputs, targets = super().predictions(batch)
        return outputs.detach(), targets


class GradientOfNothing(Broken):
    fault = ("predictions", "no gradient with respect to the weights")

    def predictions(self, batch):
        outputs, targets = super().predictions(batch)
        return outputs.detach().requires_grad_(), targets


class OutputsAlone(Broken):
    fault = ("predictions", "outputs and targets")

    def predictions(self, batch):
        return super().predictions(batch)[0]


class PredictsPadding(Broken):
    fault = ("predictions", "targets are not 0 on the padding")

    def predictions(self, batch):
        outputs, targets = super().predictions(batch)
        return outputs, targets + ~batch.frame_mask[:, None, None]


class InfiniteTargets(Broken):
    fault = ("predictions", "for targets, is not finite")

    def predictions(self, batch):
        outputs, targets = super().predictions(batch)
        return outputs, targets / 0


class NoiseOfTheCaption(Broken):
    """Both move with the caption, so that their difference does not."""

    fault = ("predictions", "targets change", "with the captions")

    def predictions(self, batch):
        moved = torch.tensor([len(caption) for caption in batch.captions])[:, None, None, None] / 8
        moved = moved * batch.frame_mask[:, None, None]
        return tuple(values + moved for values in super().predictions(batch))


class WithoutLatents(Broken):
    fault = ("latents", "has latents by definition")

    def latents(self, codes):
        raise UsageError("there are none")


class CodesForLatents(Broken):
    fault = ("encode", "torch.int64, not torch.float32")

    def encode(self, waveforms):
        return super().encode(waveforms).long()


class HasCodebookSize(Broken):
    fault = ("spec", "codebook_size is 32", "0 without tokens")

    def __init__(self, inner):
        super().__init__(inner)
        self.codebook_size = 32


ALL = [one for one in list(globals().values()) if isinstance(one, type) and issubclass(one, Broken)][1:]
