"""MusicGen backends with one fault each. `fault`: the check that must name it, and words of its sentence; `also`: other
checks that can't but notice."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path

import torch
from torch import nn

from encore.api import BackendSpec
from encore.backends.musicgen import MusicgenBackend
from encore.errors import InputError

_calls = itertools.count()


class Broken(MusicgenBackend):
    spec = BackendSpec("musicgen", "", "")
    fault: tuple[str, ...]
    also: tuple[str, ...] = ()


class InTrainingMode(Broken):
    fault = ("mode", "module is in training mode")

    def __init__(self, *given):
        super().__init__(*given)
        self.module.train()


class FrozenIsTrainable(Broken):
    fault = ("mode", "frozen codec", "require a gradient")

    def __init__(self, *given):
        super().__init__(*given)
        self.model.audio_encoder.requires_grad_(True)


class HalfPrecision(Broken):
    fault = ("mode", "not float32")
    also = ("losses", "token_logprobs", "batch_invariance", "gradients", "curvature", "greedy", "save", "reinitialise")

    def __init__(self, *given):
        super().__init__(*given)
        self.module["decoder"].lm_heads[0].to(torch.float64)
        self.module["decoder"].lm_heads[0].register_forward_pre_hook(lambda _, x: (x[0].double(),))


class OtherName(Broken):
    fault = ("spec", "name is 'other'", "'musicgen'")
    name = "other"


class Traceback(Broken):
    fault = ("refusals", "an empty folder", "OSError")

    @classmethod
    def load(cls, model, **given):
        try:
            return super().load(model, **given)
        except InputError as error:
            raise OSError("no config.json") from error


class NoHint(Broken):
    fault = ("refusals", "without a hint")

    @classmethod
    def load(cls, model, **given):
        try:
            return super().load(model, **given)
        except InputError as error:
            raise InputError(error.message) from error


class EncodesToFloat(Broken):
    fault = ("encode", "torch.float32, not torch.int64")

    def encode(self, waveforms):
        return super().encode(waveforms).float()


class EncodesByLoudestInBatch(Broken):
    fault = ("encode", "change with the waveforms encoded beside it")

    def encode(self, waveforms):
        return super().encode(waveforms * (len(waveforms) / waveforms.abs().amax()))


class DecodesTooShort(Broken):
    fault = ("decode", "frames are decoded to")

    def decode(self, codes):
        return super().decode(codes)[..., : codes.shape[-1] * self.hop // 2]


class PadsConditions(Broken):
    fault = ("encode_text", "shape", "alone")

    def encode_text(self, captions):
        return list(nn.utils.rnn.pad_sequence(super().encode_text(captions), batch_first=True))

    def _text_states(self, captions, unconditional):
        MusicgenBackend.encode_text(self, captions)
        own, self.encode_text = self.encode_text, lambda given: MusicgenBackend.encode_text(self, given)
        try:
            return super()._text_states(captions, unconditional)
        finally:
            self.encode_text = own


class GeneratesWithoutTextEmbeddings(Broken):
    fault = ("soft_prompt", "generate does not use")

    def generate(self, captions, **given):
        cached, self.text_embeddings = self.text_embeddings, {}
        try:
            return super().generate(captions, **given)
        finally:
            self.text_embeddings = cached


class LossOfTheBatch(Broken):
    fault = ("losses", "shape []")
    also = (
        "token_logprobs",
        "batch_invariance",
        "curvature",
        "save",
        "determinism",
        "gradients",
        "training",
        "clone",
        "reinitialise",
        "caption",
    )

    def losses(self, batch):
        return super().losses(batch).mean()


class NanLoss(Broken):
    fault = ("losses", "not finite", "nan")
    also = (
        "token_logprobs",
        "determinism",
        "batch_invariance",
        "gradients",
        "training",
        "curvature",
        "save",
        "clone",
        "reinitialise",
        "caption",
        "soft_prompt",
    )

    def losses(self, batch):
        return super().losses(batch) * float("nan")


class WithoutGradient(Broken):
    fault = ("losses", "no gradient")
    also = ("gradients", "training", "curvature")

    def losses(self, batch):
        return super().losses(batch).detach()


class CountsPadding(Broken):
    """The mean is over the padded length."""

    fault = ("batch_invariance", "alone and", "beside others", "padded to")
    also = ("token_logprobs", "curvature")

    def losses(self, batch):
        return -self.token_logprobs(batch).sum((1, 2)) / batch.codes[0].numel()


class AttendsPaddedText(Broken):
    """Text states are padded with zeros and not masked."""

    fault = ("batch_invariance", "alone and", "beside others")
    also = ("curvature",)

    def _text_states(self, captions, unconditional):
        states, mask = super()._text_states(captions, unconditional)
        return states, mask if unconditional else torch.ones_like(mask)


class MaskOnPadding(Broken):
    fault = ("token_mask", "True on the padding")
    also = ("batch_invariance", "curvature")

    def token_mask(self, batch):
        return torch.ones_like(super().token_mask(batch))


class LossIsNotLogits(Broken):
    fault = ("token_logprobs", "losses are", "logits say")

    def losses(self, batch):
        return super().losses(batch) * 1.5


class RawLogits(Broken):
    """Logits are taken for log-probabilities."""

    fault = ("token_logprobs", "log-probability above 0")
    also = ("losses",)

    def token_logprobs(self, batch, *, unconditional=False):
        picked = self.logits(batch, unconditional=unconditional).gather(-1, batch.codes[..., None])[..., 0]
        return picked * self.token_mask(batch)


class Dropout(Broken):
    fault = ("determinism", "torch's shared random generator")
    also = (
        "token_logprobs",
        "batch_invariance",
        "save",
        "clone",
        "reinitialise",
        "greedy",
        "curvature",
        "caption",
        "causality",
        "soft_prompt",
    )

    def logits(self, batch, *, unconditional=False):
        return nn.functional.dropout(super().logits(batch, unconditional=unconditional), 0.2)


class CountsCalls(Broken):
    fault = ("determinism", "two calls of losses differ")
    also = ("token_logprobs", "batch_invariance", "save", "clone", "curvature", "soft_prompt")

    def losses(self, batch):
        return super().losses(batch) * (1 + 0.01 * next(_calls))


class LooksAtIdentity(Broken):
    fault = ("determinism", "equal clips differ")
    also = ("token_logprobs", "batch_invariance", "soft_prompt")

    def losses(self, batch):
        self.seen = getattr(self, "seen", {})
        order = torch.tensor([self.seen.setdefault(clip, len(self.seen)) for clip in batch.clips])
        return super().losses(batch) * (1 + 0.01 * order)


class LeaksTheFuture(Broken):
    """No causal mask: what transformers builds where the attention implementation is not set."""

    fault = ("causality", "later tokens leak")
    also = ("greedy", "batch_invariance", "curvature")

    def logits(self, batch, *, unconditional=False):
        found = super().logits(batch, unconditional=unconditional)
        real = torch.arange(found.shape[2]) < batch.frames[:, None]
        mean = (found * real[:, None, :, None]).sum(2, keepdim=True) / batch.frames[:, None, None, None]
        return found + mean


class LooksAtTheAnswer(Broken):
    """Teacher forcing off by one: a token is predicted from itself."""

    fault = ("causality", "changes what is predicted for its frame")
    also = ("greedy",)

    def logits(self, batch, *, unconditional=False):
        found = super().logits(batch, unconditional=unconditional)
        return found + nn.functional.one_hot(batch.codes, self.codebook_size)


class DeafToCaptions(Broken):
    fault = ("caption", "the same under any caption")
    also = ("greedy", "soft_prompt")

    def logits(self, batch, *, unconditional=False):
        return super().logits(batch, unconditional=True)


class HearsWithoutCaption(Broken):
    fault = ("caption", "unconditional logits", "must ignore")

    def logits(self, batch, *, unconditional=False):
        return super().logits(batch)


class PlaysTooLong(Broken):
    fault = ("generate", "frames were asked for")
    also = ("prompt",)

    def generate(self, captions, *, seconds, **given):
        return super().generate(captions, seconds=seconds + 0.05, **given)


class DrawsFromTheSharedGenerator(Broken):
    fault = ("generate_seed", "torch's shared random generator")
    also = ("greedy",)

    def generate(self, captions, *, seed=0, **given):
        torch.manual_seed(seed)
        return super().generate(captions, seed=seed, **given)


class SeedOfTheBatch(Broken):
    fault = ("generate_seed", "depends on the captions beside it")

    def generate(self, captions, *, seed=0, **given):
        return super().generate(captions, seed=seed + len(captions), **given)


class ForgetsThePrompt(Broken):
    fault = ("prompt", "is not in what is generated")

    def generate(self, captions, *, prompt=None, **given):
        return super().generate(captions, prompt=None, **given)


class NeverGreedy(Broken):
    fault = ("greedy", "two seeds generate different codes")

    def generate(self, captions, *, temperature=1.0, **given):
        return super().generate(captions, temperature=max(temperature, 0.5), **given)


class CodecIsTrained(Broken):
    fault = ("parts", "is in both")
    also = ("gradients", "training", "reinitialise", "mode", "save", "clone")

    def __init__(self, *given):
        super().__init__(*given)
        self.module["codec"] = self.model.audio_encoder


class SpareParameter(Broken):
    fault = ("gradients", "no gradient reaches spare")
    also = ("save",)

    def __init__(self, *given):
        super().__init__(*given)
        self.module.register_parameter("spare", nn.Parameter(torch.ones(3)))


class StepsOnTheCodec(Broken):
    """Batch statistics of a frozen part that follows the module into training mode."""

    fault = ("training", "changes the frozen codec")

    def losses(self, batch):
        if self.module.training:
            with torch.no_grad():
                next(self.model.audio_encoder.parameters()).mul_(1.001)
        return super().losses(batch)


class SavesWhatItLoaded(Broken):
    fault = ("save", "saved and loaded", "is not what it was")

    def __init__(self, *given):
        super().__init__(*given)
        self.first = copy.deepcopy(self.model)

    def save(self, folder):
        self.first.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class LosesWeights(Broken):
    fault = ("save", "can't be loaded")
    also = ()

    def save(self, folder):
        super().save(folder)
        (Path(folder) / "model.safetensors").unlink()


class WritesPickles(Broken):
    fault = ("files", "extra.dat", "could run code")

    def save(self, folder):
        super().save(folder)
        (Path(folder) / "extra.dat").write_bytes(pickle.dumps(Path("settings")))


class CloneSharesWeights(Broken):
    fault = ("clone", "shares", "training one would change the other")

    def clone(self):
        return type(self)(self.model, self.processor)


class CloneCopiesTheCodec(Broken):
    fault = ("clone", "a separate frozen codec")

    def clone(self):
        return type(self)(copy.deepcopy(self.model), self.processor)


class ReinitialisesEverything(Broken):
    fault = ("reinitialise", "changes the frozen codec")

    def reinitialise(self, seed):
        super().reinitialise(seed)
        with torch.no_grad():
            next(self.model.audio_encoder.parameters()).add_(1)


class ReinitialisesUnseeded(Broken):
    fault = ("reinitialise", "two calls of reinitialise with one seed differ")

    def reinitialise(self, seed):
        super().reinitialise(next(_calls))


ALL = [
    one for one in list(globals().values()) if isinstance(one, type) and issubclass(one, Broken) and one is not Broken
]
