"""Methods with one fault each. `fault`: the check that must name it, and words of its sentence; `also`: other checks
that can't but notice; `needs`: what its spec declares."""

from __future__ import annotations

import itertools
import random
import socket
import time
from pathlib import Path

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import nn

from encore.api import EditMethod, MethodSpec
from encore.losses import clip_mean, kl_divergence
from encore.methods.ewc import Ewc
from encore.methods.ga_kl import GaKl
from encore.methods.graddiff import GradDiff
from encore.methods.npo import Npo
from encore.methods.ssd import Ssd
from encore.options import Options

_calls = itertools.count()


class Broken:
    fault: tuple[str, ...]
    also: tuple[str, ...] = ()
    needs = frozenset({"retain"})


class TakesAnyOption(Broken, GradDiff):
    fault = ("options", 'extra="forbid"')

    class Options(GradDiff.Options):
        model_config = ConfigDict(extra="ignore")


class UndescribedOption(Broken, GradDiff):
    fault = ("options", "speed", "no description")

    class Options(GradDiff.Options):
        speed: float = 1.0


class OptionWithoutDefault(Broken, GradDiff):
    fault = ("options", "no defaults", "speed")
    also = ("losses", "independence", "micro_batches", "two_steps")

    class Options(GradDiff.Options):
        speed: float = Field(description="how fast")


class MeanOverTheBatch(Broken, GradDiff):
    fault = ("losses", "forget_loss returns shape []")
    also = ("two_steps", "independence", "micro_batches")

    def forget_loss(self, step, batch):
        return super().forget_loss(step, batch).mean()


class NanLoss(Broken, GradDiff):
    fault = ("losses", "retain_loss is not finite")
    also = ("two_steps", "independence", "micro_batches")

    def retain_loss(self, step, batch):
        return super().retain_loss(step, batch).log().sqrt() * float("nan")


class Detached(Broken, GradDiff):
    fault = ("losses", "forget_loss has no gradient")
    also = ("two_steps", "micro_batches", "independence")

    def forget_loss(self, step, batch):
        return super().forget_loss(step, batch).detach()


class PenaltyAWeight(Broken, GradDiff):
    fault = ("losses", "penalty returns")
    also = ("two_steps",)

    def penalty(self, step):
        return next(step.backend.module.parameters()).square().sum(0)


class CentredOnTheBatch(Broken, GradDiff):
    """As advantages are: each loss less the batch's mean."""

    fault = ("independence", "forget_loss of a clip is", "beside another")
    also = ("micro_batches", "two_steps")

    def forget_loss(self, step, batch):
        losses = super().forget_loss(step, batch)
        return losses - losses.mean()


class DividedByTheBatch(Broken, GradDiff):
    fault = ("independence", "alone and", "beside another")
    also = ("micro_batches",)

    def retain_loss(self, step, batch):
        return super().retain_loss(step, batch) / len(batch)


class KlOverPadding(Broken, GaKl):
    """A KL that is averaged over the padded length: a trap of methods.md."""

    fault = ("independence", "of a short clip is", "alone and")
    also = ("micro_batches",)
    needs = frozenset({"retain", "reference", "logits"})

    def retain_loss(self, step, batch):
        mask = step.backend.token_mask(batch)
        kl = kl_divergence(step.reference.logits(batch), step.backend.logits(batch), mask) + mask * 0.1
        return kl.mean((1, 2))


class GradientOfTheBatch(Broken, GradDiff):
    """The value is a clip's own; its gradient is weighted by the batch."""

    fault = ("micro_batches", "gradient of forget_loss", "not the sum")
    also = ("without_tokens",)

    def forget_loss(self, step, batch):
        losses = super().forget_loss(step, batch)
        return losses + (len(batch) - 1) * (losses - losses.detach())


class Crashes(Broken, GradDiff):
    fault = ("two_steps", "does not run", "ZeroDivisionError", "broken_methods.py, line")
    also = ("losses", "independence", "micro_batches")

    def forget_loss(self, step, batch):
        return super().forget_loss(step, batch) * (1 / (len(batch) - len(batch)))


class ChangesNothing(Broken, EditMethod):
    fault = ("two_steps", "changes no weight")
    also = ("needs",)
    Options = Options

    def edit(self, session):
        list(session.retain)


class LeavesNan(Broken, EditMethod):
    fault = ("two_steps", "not finite")
    also = ("needs",)
    Options = Options

    def edit(self, session):
        list(session.retain)
        with torch.no_grad():
            next(session.backend.module.parameters()).div_(0)


class AddsParameters(Broken, EditMethod):
    """Adapters that were not merged."""

    fault = ("model", "adds parameters", "adapter")
    also = ("save",)
    Options = Options

    def edit(self, session):
        list(session.retain)
        with torch.no_grad():
            next(session.backend.module.parameters()).mul_(0.9)
        session.backend.module.register_parameter("adapter", nn.Parameter(torch.zeros(2)))


class LeavesTheModelFrozen(Broken, EditMethod):
    fault = ("model", "require no gradient")
    Options = Options

    def edit(self, session):
        list(session.retain)
        with torch.no_grad():
            for weight in session.backend.module.parameters():
                weight.mul_(0.99)
        session.backend.module.requires_grad_(False)


class TouchesTheCodec(Broken, GradDiff):
    fault = ("frozen_parts", "changes the frozen codec")
    also = ("save",)

    def prepare(self, session):
        with torch.no_grad():
            next(session.backend.frozen()["codec"].parameters()).mul_(1.5)


class TouchesTheReference(Broken, Npo):
    """It keeps its moving average in what must stay the base."""

    fault = ("reference", "changes the reference model")
    needs = frozenset({"retain", "reference"})

    def prepare(self, session):
        with torch.no_grad():
            for weight in getattr(session.reference, "_inner", session.reference).module.parameters():
                weight.mul_(0.99)


class WritesIntoClips(Broken, GradDiff):
    fault = ("clips", "writes into the codes of 4 clips")
    also = ("determinism", "resume", "independence", "micro_batches", "random_numbers", "without_holdout")

    def forget_loss(self, step, batch):
        for clip in batch.clips:
            clip.codes.add_(1).remainder_(step.backend.codebook_size)
        return super().forget_loss(step, batch)


class TellsTheTime(Broken, GradDiff):
    fault = ("determinism", "two runs from one seed")
    also = ("independence", "micro_batches", "random_numbers", "resume")

    def forget_loss(self, step, batch):
        return super().forget_loss(step, batch) * (1 + time.perf_counter() % 1)


class DrawsFromTorch(Broken, GradDiff):
    fault = ("random_numbers", "forget_loss", "torch's shared")
    also = ("independence", "micro_batches", "resume", "determinism")

    def forget_loss(self, step, batch):
        return super().forget_loss(step, batch) * torch.rand(len(batch))


class TrainsWithOneThatDrawsFromTorch(Broken, EditMethod):
    fault = ("random_numbers", "forget_loss", "torch's shared")
    also = ("resume",)
    Options = GradDiff.Options

    def edit(self, session):
        session.train(DrawsFromTorch(self.options))


class DrawsFromNumpy(Broken, Ssd):
    fault = ("random_numbers", "edit", "numpy's shared")
    needs = frozenset({"retain", "fisher"})

    def edit(self, session):
        super().edit(session)
        with torch.no_grad():
            next(session.backend.module.parameters()).mul_(float(np.random.rand()))  # noqa: NPY002


class DrawsFromPython(Broken, GradDiff):
    fault = ("random_numbers", "shared random generators")
    also = ("independence", "micro_batches", "resume")

    def retain_loss(self, step, batch):
        return super().retain_loss(step, batch) * (0.5 + random.random())


class ReadsTheReferenceUndeclared(Broken, Npo):
    fault = ("needs", "reads step.reference", "lack 'reference'")
    also = ("losses", "independence", "micro_batches", "two_steps")


class TakesAFisherUndeclared(Broken, Ewc):
    fault = ("needs", "reads session.fisher", "lack 'fisher'")
    also = ("losses", "independence", "micro_batches", "two_steps")


class NeedsTooMuch(Broken, GradDiff):
    """A reference model copied and never used: a trap of methods.md."""

    fault = ("needs", "needs fisher and reference", "does not read")
    needs = frozenset({"retain", "reference", "fisher"})


class NeedsRetainUndeclared(Broken, GradDiff):
    fault = ("without_retain", "reads session.retain", "without retain clips it does not run", "lack 'retain'")
    also = ("two_steps",)
    needs = frozenset()

    def prepare(self, session):
        self.mean = sum(len(clip.codes) for clip in session.retain) / len(session.retain)


class NeedsHoldoutUndeclared(Broken, GradDiff):
    fault = ("without_holdout", "reads step.holdout_nll", "lack 'holdout'")

    def forget_loss(self, step, batch):
        return (step.holdout_nll + 1.0 - step.backend.losses(batch)).relu()


class NeedsTokensUndeclared(Broken, GradDiff):
    fault = ("without_tokens", "reads backend.logits", "lack 'logits'")

    def forget_loss(self, step, batch):
        return clip_mean(step.backend.token_logprobs(batch), step.backend.token_mask(batch))


class CountsCodes(Broken, GradDiff):
    fault = ("without_tokens", "does not run on a backend without tokens", "bincount")

    def prepare(self, session):
        self.counts = torch.bincount(torch.cat([clip.codes.flatten() for clip in session.retain]))


class WritesAFile(Broken, GradDiff):
    fault = ("files", "writes", "losses.txt")

    def penalty(self, step):
        Path(f"/tmp/encore-{id(self)}-losses.txt").write_text("0")


class CallsHome(Broken, GradDiff):
    fault = ("files", "connects to", "127.0.0.1")

    def prepare(self, session):
        with socket.socket() as wire:
            wire.connect_ex(("127.0.0.1", 9))


class KeepsStateBetweenSteps(Broken, GradDiff):
    fault = ("resume", "resumed ends in other weights")
    also = ("independence", "micro_batches")

    def prepare(self, session):
        self.step = 0

    def penalty(self, step):
        self.step += 1

    def retain_loss(self, step, batch):
        return super().retain_loss(step, batch) * (1 + self.step)


class PreparesAtRandom(Broken, GradDiff):
    """Another half of retain in every process."""

    fault = ("determinism", "two runs from one seed")
    also = ("resume", "random_numbers")

    def prepare(self, session):
        order = random.Random(next(_calls)).sample(range(len(session.retain)), 4)
        session.retain = [session.retain[i] for i in order]


def of_spec(broken: type) -> type:
    """The class with its spec, as the registry gives it."""
    broken.spec = MethodSpec("broken", "", "", needs=broken.needs)
    return broken


ALL = [of_spec(one) for one in list(globals().values()) if isinstance(one, type) and issubclass(one, Broken)][1:]
