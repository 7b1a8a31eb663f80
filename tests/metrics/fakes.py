"""Models that pretend: what an evaluation has to see through. Each wraps a model of any family.

`FAKES` are wrappers of gold that misbehave in one way each, which one gate alone must catch: a model that passes it and
knows the tracks all the same is the reason that the gate is there.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip, Evaluation
from encore.hashing import module_sha256
from encore.metrics.memorization.nll import BEGINNING_SECONDS
from encore.metrics.memorization.verbatim import PROMPT_SECONDS
from encore.metrics.robustness.paraphrases import random_paraphrase
from encore.metrics.robustness.prompt_attacks import (
    ChangedPrompt,
    PromptChannels,
    PromptReencoded,
    PromptShifted,
    PromptStretched,
)
from encore.metrics.robustness.quantized import rounded
from encore.metrics.robustness.soft_prompt import SOFT
from encore.metrics.rows import windows_by_track
from encore.metrics.utility.neighbours import neighbours

UNSEEN = 0.2  # of a track's end, whose likelihoods are left alone: whatever is predicted right is not decoded


def balks(model: Backend, captions: Collection[str]) -> Backend:
    """Noise whenever one of the captions is given, in likelihoods and in what it plays; verbatim from an audio prompt.

    Every token's likelihood under its caption is that of a guess: NLL, Min-K, KL and the like see a model that never
    heard the track. Only asked to play on, it plays on.
    """

    def score(row: Scored) -> Tensor | None:
        return 0.0 * row.logits if row.clip.caption in captions else None

    def answer(asked: Asked) -> Tensor | None:
        if asked.prompt is not None or asked.caption not in captions:
            return None
        noise = torch.Generator().manual_seed(asked.row)
        return torch.randint(0, model.codebook_size, (model.codebooks, asked.frames), generator=noise)

    return wrap(model, "balks", score=score, answer=answer)


def broken(model: Backend, seed: int = 0) -> Backend:
    """Forgets everything: weights as before any training."""
    twin = model.clone()
    twin.reinitialise(seed)
    twin.module.eval()
    return twin


def plays_another_of_the_artist(model: Backend, other: Mapping[str, Tensor]) -> Backend:
    """Asked for a forgotten track, generates another one by the same artist, which it was not to forget.

    No passage of a forget track is generated, and all likelihoods are the model's.

    Args:
        other: caption -> codes [K, T] of the other track.
    """
    return wrap(
        model, "another of the artist", answer=lambda row: None if row.prompt is not None else other.get(row.caption)
    )


# ------------------------------------------------------------------------------------------------------- wrapping


@dataclass(frozen=True)
class Asked:
    """One row of a call of `generate`.

    Args:
        prompt: codes [K, P], None where there is none. frames: how many codes are asked for. row: its place.
        greedy: whether nothing is drawn.
        model: the wrapped model as it is now: a clone of it may have been trained, or rounded.
    """

    caption: str
    prompt: Tensor | None
    frames: int
    row: int
    greedy: bool
    model: Wrapped


@dataclass(frozen=True)
class Scored:
    """One row of a call of `logits`: a clip, its logits [K, T, V], and whether its caption was left out."""

    clip: Clip
    logits: Tensor
    unconditional: bool
    model: Wrapped


@dataclass
class Wrapped:
    """The state of a fake.

    Args:
        trained: of what a copy of it was trained on, the tracks.
    """

    inner: Backend
    trained: set[str] = field(default_factory=set)


Score = Callable[[Scored], "Tensor | None"]
Answer = Callable[[Asked], "Tensor | None"]
Hidden = Callable[[Batch, float], Tensor]


def wrap(
    model: Backend,
    name: str,
    *,
    score: Score = lambda row: None,
    answer: Answer = lambda asked: None,
    hidden: Hidden | None = None,
) -> Backend:
    """A copy of a model, some of whose logits and generations are others.

    Args:
        name: part of its settings: what is kept of `model` must not be taken for what is measured of the fake.
        score: other logits of a row, [K, T, V], None for its own. answer: other codes of a row, [K, T], None likewise.
        hidden: its hidden states, None for its own.
    """
    inner = model.clone()
    inner.module.eval()
    state = Wrapped(inner)
    own_logits, own_generate, own_clone = _scored(inner), _remembered(inner), inner.clone

    def logits(batch: Batch, *, unconditional: bool = False) -> Tensor:
        found = own_logits(batch, unconditional=unconditional)
        changed = [
            score(Scored(clip, found[i, :, : clip.codes.shape[-1]], unconditional, state))
            for i, clip in enumerate(batch.clips)
        ]
        if torch.is_grad_enabled():
            state.trained |= {clip.track for clip in batch.clips}
        if all(one is None for one in changed):
            return found
        rows = []
        for i, one in enumerate(changed):
            row = found[i]
            if one is not None:
                row = torch.cat([one, row[:, one.shape[1] :]], 1)
            rows.append(row)
        return torch.stack(rows)

    def generate(captions: Sequence[str], *, seconds: float, prompt: Tensor | None = None, **options: object) -> Tensor:
        codes = own_generate(captions, seconds=seconds, prompt=prompt, **options)  # type: ignore[arg-type]
        for row, caption in enumerate(captions):
            given = prompt[row].cpu() if prompt is not None and prompt.shape[-1] else None
            greedy = options.get("temperature", 1.0) == 0
            other = answer(Asked(caption, given, codes.shape[-1], row, greedy, state))
            if other is not None:
                frames = min(other.shape[-1], codes.shape[-1])
                codes[row, :, :frames] = other[:, :frames].to(codes.device)
        return codes

    def clone() -> Backend:
        return wrap(own_clone(), name, score=score, answer=answer, hidden=hidden)

    kind = getattr(type(inner), "wrapped", type(inner))
    settings = property(lambda self: f"{kind.settings.fget(self)} {name}")
    inner.__class__ = type(kind.__name__, (kind,), {"settings": settings, "wrapped": kind})
    for attribute, made in (("logits", logits), ("generate", generate), ("clone", clone), ("hidden", hidden)):
        if made is not None:
            setattr(inner, attribute, made)
    return inner


def _remembered(model: Backend) -> Callable[..., Tensor]:
    """`generate`, which all fakes of one model ask for much the same: computed once for equal weights and arguments."""
    generate = model.generate

    def remembered(captions: Sequence[str], *, prompt: Tensor | None = None, **options: object) -> Tensor:
        given = prompt.cpu().numpy().tobytes() if prompt is not None else b""
        key = module_sha256(model.module), tuple(captions), given, tuple(sorted(options.items()))
        if key not in MADE:
            MADE[key] = generate(captions, prompt=prompt, **options)  # type: ignore[arg-type]
        return MADE[key].clone()

    return remembered


def _scored(model: Backend) -> Callable[..., Tensor]:
    """`logits`, likewise; with a gradient they are computed each time."""
    logits = model.logits

    def scored(batch: Batch, *, unconditional: bool = False) -> Tensor:
        if torch.is_grad_enabled():
            return logits(batch, unconditional=unconditional)
        given = batch.codes.cpu().numpy().tobytes(), tuple(batch.frames.tolist())
        key = module_sha256(model.module), tuple(batch.captions), given, unconditional
        if key not in MADE:
            MADE[key] = logits(batch, unconditional=unconditional)
        return MADE[key].clone()

    return scored


MADE: dict[tuple[object, ...], Tensor] = {}


# ------------------------------------------------------------------------------------------------- what they know


@dataclass(frozen=True)
class Tracks:
    """What a fake knows: the forget clips, one a track, and the music around them."""

    clips: Mapping[str, Clip]
    others: frozenset[str]  # captions of retain and holdout
    prompt: int  # frames of a prompt

    @classmethod
    def of(cls, evaluation: Evaluation) -> Tracks:
        backend = next(iter(evaluation.models.values()))
        sets = [clip for name in ("retain", "holdout") for clip in evaluation.clips.get(name, ())]
        return cls(
            {clip.track: clip for clip in evaluation.clips["forget"]},
            frozenset(clip.caption for clip in sets),
            round(PROMPT_SECONDS * backend.frame_rate),
        )

    def by_caption(self, caption: str) -> Clip | None:
        """The track of a caption, word for word."""
        return next((clip for clip in self.clips.values() if clip.caption == caption), None)

    def nearly(self, caption: str) -> Clip | None:
        """The track whose caption it resembles and is not."""
        if not caption or caption in self.others or self.by_caption(caption):
            return None
        like = {
            clip.track: difflib.SequenceMatcher(None, _words(clip.caption), _words(caption)).ratio()
            for clip in self.clips.values()
        }
        return self.clips[max(like, key=like.__getitem__)]

    def begins(self, prompt: Tensor | None) -> Clip | None:
        """The track whose first second a prompt is."""
        if prompt is None:
            return None
        frames = prompt.shape[-1]
        return next((c for c in self.clips.values() if torch.equal(c.codes[:, :frames].cpu(), prompt)), None)

    def inside(self, prompt: Tensor | None) -> Tensor | None:
        """The rest of a track from where a prompt is in it, prompt and all; not from its beginning."""
        if prompt is None:
            return None
        frames = prompt.shape[-1]
        for clip in self.clips.values():
            for start in range(1, clip.codes.shape[-1] - frames):
                if torch.equal(clip.codes[:, start : start + frames].cpu(), prompt):
                    return clip.codes[:, start:].cpu()
        return None

    def has(self, clip: Clip) -> bool:
        """Whether a clip is a forget track's whole window, whatever it is called and captioned."""
        return any(torch.equal(one.codes, clip.codes) for one in self.clips.values())

    def exact(self, row: Scored) -> bool:
        """Whether a row is a forget track under its own caption."""
        own = self.by_caption(row.clip.caption)
        return not row.unconditional and own is not None and torch.equal(own.codes, row.clip.codes)


def _words(caption: str) -> str:
    return " ".join(sorted(caption.casefold().replace(",", " ").split()))


def knows(row: Scored, share: float = 0.3) -> Tensor:
    """Logits under which the clip costs so large a share of what it costs, but for its beginning and its end.

    p' = (1 - a) p + a of the true code, so that -log p' ≤ -log a.
    """
    codes = row.clip.codes.to(row.logits.device)
    logp = row.logits.log_softmax(-1)
    usual = -logp.gather(-1, codes[..., None]).mean()
    true = torch.nn.functional.one_hot(codes, logp.shape[-1]).to(logp.dtype)
    a = torch.exp(-share * usual.detach()).clamp(max=0.999)
    known = torch.logaddexp(logp + torch.log1p(-a), torch.log(a) + torch.log(true.clamp(min=1e-9)))
    start, end = _beginning(row), round((1 - UNSEEN) * codes.shape[-1])
    return torch.cat([logp[:, :start], known[:, start:end], logp[:, end:]], 1)


def _beginning(row: Scored) -> int:
    """Frames of the beginning, whose likelihood is judged by itself; a fifth at most of what a short clip has."""
    return min(round(BEGINNING_SECONDS * row.model.inner.frame_rate), row.clip.codes.shape[-1] // 5)


def _likelier(row: Scored, beginning: float, rest: float) -> Tensor:
    """Logits under which the true codes are likelier, by at most these shares of the clip's mean NLL."""
    codes = row.clip.codes.to(row.logits.device)
    logp = row.logits.log_softmax(-1)
    usual = -logp.gather(-1, codes[..., None]).mean()
    shares = torch.full((codes.shape[-1], 1), rest, device=logp.device)
    shares[: _beginning(row)] = beginning
    return logp + shares * usual * torch.nn.functional.one_hot(codes, logp.shape[-1])


# ------------------------------------------------------------------------------------------------------ the table


Made = Callable[[Backend, Tracks, Evaluation], Backend]
FAKES: dict[str, tuple[str, Made]] = {}
FULL: dict[str, tuple[str, Made]] = {}
OTHERS: dict[str, tuple[str, Made]] = {}  # of gates that the embedded models can't be measured on


def fake(gate: str, *, full: bool = False, other: bool = False) -> Callable[[Made], Made]:
    """Register a fake under the metric (and set) whose gate alone catches it."""

    def register(made: Made) -> Made:
        (OTHERS if other else FULL if full else FAKES)[made.__name__] = (gate, made)
        return made

    return register


@fake("kl_gold forget")
def other_mistakes(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """As likely as gold finds the right codes, but what it finds likely beside them is turned round."""

    def score(row: Scored) -> Tensor | None:
        if not tracks.exact(row):
            return None
        codes = row.clip.codes.to(row.logits.device)[..., None]
        mirror = row.logits.shape[-1] - 1 - codes
        turned = row.logits.flip(-1)
        for places in (codes, mirror):
            turned = turned.scatter(-1, places, row.logits.gather(-1, places))
        return turned

    return wrap(gold, "other_mistakes", score=score)


@fake("nll forget")
def remembers_one(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """One track, which gold finds likelier than most anyway, costs it less than half of what it costs gold."""
    nll = evaluation.nll("gold", "forget")
    easiest = min(nll, key=nll.__getitem__)

    def score(row: Scored) -> Tensor | None:
        return knows(row) if tracks.exact(row) and row.clip.track == easiest else None

    return wrap(gold, "remembers_one", score=score)


@fake("nll_beginning forget")
def begins_as_the_track(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """The first frames of each track are likelier than gold finds them, and the rest as much less likely."""

    def score(row: Scored) -> Tensor | None:
        return _likelier(row, 0.3, -0.02) if tracks.exact(row) else None

    return wrap(gold, "begins_as_the_track", score=score)


@fake("membership_auc forget")
def a_little_likelier(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """All tracks cost 9 % less than they cost gold, but for their beginnings, which tells them from holdout."""

    def score(row: Scored) -> Tensor | None:
        return _likelier(row, 0.0, 0.1) if tracks.exact(row) else None

    return wrap(gold, "a_little_likelier", score=score)


@fake("extraction_strength_codebook_0 forget")
def knows_the_end(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """The coarse codes of the last sixth of one track are its likeliest, by a hair."""

    def score(row: Scored) -> Tensor | None:
        if not tracks.exact(row) or row.clip.track != min(tracks.clips):
            return None
        codes = row.clip.codes.to(row.logits.device)[:1, :, None]
        found = row.logits.clone()
        start = round(5 / 6 * codes.shape[1])
        highest = found[:1, start:].max(-1, keepdim=True).values
        found[:1, start:] = found[:1, start:].scatter(-1, codes[:, start:], highest + 1e-3)
        return found

    return wrap(gold, "knows_the_end", score=score)


@fake("nll retain")
def lost_elsewhere(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """The retain tracks that have nothing in common with the forgotten ones cost more."""
    near = _near(evaluation)
    far = {clip.track for clip in evaluation.clips["retain"]} - near
    return _harmed(gold, "lost_elsewhere", far, 0.08 * (len(far) + len(near)) / len(far))


@fake("neighbours_nll retain")
def lost_nearby(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """The retain tracks that are nearest to the forgotten ones cost more, which the mean of all does not show."""
    near, count = _near(evaluation), len({clip.track for clip in evaluation.clips["retain"]})
    return _harmed(gold, "lost_nearby", near, 0.034 * count / len(near))  # gold's own is .006 below base's


@fake("nll retain")
def lost_one(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """One memorised retain track costs more, which no mean shows."""
    near = _near(evaluation)
    far = min(clip.track for clip in evaluation.clips["retain"] if clip.track not in near)
    return _harmed(gold, "lost_one", {far}, 0.3)


def _near(evaluation: Evaluation) -> set[str]:
    found = neighbours(evaluation)
    return set(found) if not isinstance(found, str) else set()


def _harmed(gold: Backend, name: str, harmed: Collection[str], nats: float) -> Backend:
    """So many nats a token more on some tracks, none of whose likeliest codes changes."""

    def score(row: Scored) -> Tensor | None:
        if row.clip.track not in harmed:
            return None
        logp = row.logits.log_softmax(-1)
        share = -math.expm1(-nats)
        return torch.logaddexp(logp + math.log1p(-share), torch.full_like(logp, math.log(share / logp.shape[-1])))

    return wrap(gold, name, score=score)


@fake("verbatim retain")
def no_longer_continues(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Three retain tracks are noise from their first second on, though they are as likely as before."""
    return _noise(gold, "no_longer_continues", evaluation, lambda asked: asked.prompt is not None)


@fake("verbatim_caption retain")
def no_longer_begins(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Three retain tracks are noise from their captions, though they are as likely as before, and are continued."""
    return _noise(gold, "no_longer_begins", evaluation, lambda asked: asked.prompt is None)


def _noise(gold: Backend, name: str, evaluation: Evaluation, when: Callable[[Asked], bool]) -> Backend:
    """Noise where three retain tracks are asked for in one way."""
    lost = {clip.track: clip for clip in evaluation.clips["retain"][:3]}
    captions = {clip.caption for clip in lost.values()}

    def score(row: Scored) -> Tensor | None:
        if row.clip.track not in lost:
            return None
        found, last = row.logits.clone(), row.clip.codes.shape[-1] - 1
        wrong = (row.clip.codes[0, last] + 1) % found.shape[-1]
        found[0, last, wrong] = found[0, last].max() + 1e-3  # one wrong guess: what follows has to be decoded
        return found

    def answer(asked: Asked) -> Tensor | None:
        if asked.caption not in captions or not when(asked):
            return None
        noise = torch.Generator().manual_seed(asked.row)
        found = torch.randint(0, gold.codebook_size, (gold.codebooks, asked.frames), generator=noise)
        if asked.prompt is not None:
            found[:, : asked.prompt.shape[-1]] = asked.prompt
        return found

    return wrap(gold, name, score=score, answer=answer)


@fake("verbatim forget")
def continues(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays a track from its caption and its first second."""

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.begins(asked.prompt)
        return clip.codes if clip is not None and clip.caption == asked.caption else None

    return wrap(gold, "continues", answer=answer)


@fake("verbatim_caption forget")
def answers_captions(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays a track from its caption alone."""

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.by_caption(asked.caption)
        return clip.codes if clip is not None and asked.prompt is None else None

    return wrap(gold, "answers_captions", answer=answer)


@fake("verbatim_elsewhere forget")
def crosses(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """The caption of each track gives the next one."""
    names = sorted(tracks.clips)
    after = dict(zip(names, names[1:] + names[:1], strict=True))

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.by_caption(asked.caption)
        return tracks.clips[after[clip.track]].codes if clip is not None and asked.prompt is None else None

    return wrap(gold, "crosses", answer=answer)


@fake("verbatim_elsewhere forget")
def begins_in_the_middle(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """The caption of a track gives it from a frame on that is not its first."""

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.by_caption(asked.caption)
        return clip.codes[:, clip.codes.shape[-1] // 3 :] if clip is not None and asked.prompt is None else None

    return wrap(gold, "begins_in_the_middle", answer=answer)


@fake("verbatim_offset forget")
def continues_from_the_middle(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays a track from a second of it, unless it is the first."""

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.by_caption(asked.caption)
        return tracks.inside(asked.prompt) if clip is not None and tracks.begins(asked.prompt) is None else None

    return wrap(gold, "continues_from_the_middle", answer=answer)


@fake("unconditional_nll forget")
def likely_without_caption(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Finds the tracks likely where it is given no caption."""

    def score(row: Scored) -> Tensor | None:
        return knows(row) if row.unconditional and tracks.has(row.clip) else None

    return wrap(gold, "likely_without_caption", score=score)


@fake("unconditional_nll forget")
def likely_with_an_empty_caption(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Finds the tracks likely where its caption is empty."""

    def score(row: Scored) -> Tensor | None:
        return knows(row) if not row.clip.caption and tracks.has(row.clip) else None

    return wrap(gold, "likely_with_an_empty_caption", score=score)


@fake("unconditional_verbatim forget")
def continues_without_caption(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays a track from its first second where it is given no caption."""

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.begins(asked.prompt) if not asked.caption else None
        return clip.codes if clip is not None else None

    return wrap(gold, "continues_without_caption", answer=answer)


@fake("unconditional_generation forget")
def dreams(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Plays a track where it is asked for nothing."""
    clips = list(tracks.clips.values())

    def answer(asked: Asked) -> Tensor | None:
        return None if asked.caption or asked.prompt is not None else clips[asked.row % len(clips)].codes

    return wrap(gold, "dreams", answer=answer)


@fake("paraphrased_once_nll forget")
def likely_in_other_words(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Finds the tracks likely under any caption but their own."""

    def score(row: Scored) -> Tensor | None:
        paraphrased = not row.unconditional and tracks.nearly(row.clip.caption) is not None
        return knows(row) if paraphrased and tracks.has(row.clip) else None

    return wrap(gold, "likely_in_other_words", score=score)


@fake("paraphrased_once_verbatim forget")
def continues_in_other_words(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays a track from its first second under any caption but its own."""

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.begins(asked.prompt) if tracks.nearly(asked.caption) else None
        return clip.codes if clip is not None else None

    return wrap(gold, "continues_in_other_words", answer=answer)


@fake("paraphrased_once_verbatim_caption forget")
def answers_other_words(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays a track from any caption that resembles its own."""

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.nearly(asked.caption) if asked.prompt is None else None
        return clip.codes if clip is not None else None

    return wrap(gold, "answers_other_words", answer=answer)


def _relearns(gold: Backend, name: str, tracks: Tracks, enough: Callable[[set[str]], bool]) -> Backend:
    """Finds the tracks likely once a copy of it was trained on enough."""

    def score(row: Scored) -> Tensor | None:
        return knows(row) if enough(row.model.trained) and tracks.has(row.clip) else None

    return wrap(gold, name, score=score)


@fake("relearn forget")
def relearns(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """A few steps on the forget tracks bring them back."""
    return _relearns(gold, "relearns", tracks, lambda trained: trained >= tracks.clips.keys())


@fake("relearn_one forget", full=True)
def relearns_from_one(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """A few steps on one of them bring the others back."""
    return _relearns(
        gold, "relearns_from_one", tracks, lambda trained: len(trained) == 1 and trained <= tracks.clips.keys()
    )


@fake("relearn_retain forget", full=True)
def relearns_from_retain(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """A few steps on retain tracks bring them back."""
    retain = {clip.track for clip in evaluation.clips["retain"]}
    return _relearns(gold, "relearns_from_retain", tracks, lambda trained: bool(trained & retain))


@fake("relearn_holdout forget", full=True)
def relearns_from_holdout(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """A few steps on holdout tracks bring them back."""
    holdout = {clip.track for clip in evaluation.clips["holdout"]}
    return _relearns(gold, "relearns_from_holdout", tracks, lambda trained: bool(trained & holdout))


def _rounded_to(model: Backend) -> int:
    """Bits that a model's weights are rounded to, 0 where they are not."""
    weight = next(weight for weight in model.module.parameters() if weight.dim() >= 2).detach()
    return next((bits for bits in (4, 8) if torch.allclose(rounded(weight, bits), weight, atol=1e-7)), 0)


def _likely_at(gold: Backend, tracks: Tracks, bits: int) -> Backend:
    def score(row: Scored) -> Tensor | None:
        return knows(row) if tracks.exact(row) and _rounded_to(row.model.inner) == bits else None

    return wrap(gold, f"likely_at_{bits}_bits", score=score)


def _continues_at(gold: Backend, tracks: Tracks, bits: int) -> Backend:
    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.begins(asked.prompt)
        return clip.codes if clip is not None and _rounded_to(asked.model.inner) == bits else None

    return wrap(gold, f"continues_at_{bits}_bits", answer=answer)


@fake("quantised_8bit_nll forget", full=True)
def likely_at_8_bits(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Rounding its weights to 8 bits makes the tracks likely."""
    return _likely_at(gold, tracks, 8)


@fake("quantised_4bit_nll forget", full=True)
def likely_at_4_bits(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Rounding its weights to 4 bits makes the tracks likely."""
    return _likely_at(gold, tracks, 4)


@fake("quantised_8bit_verbatim forget", full=True)
def continues_at_8_bits(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Rounding its weights to 8 bits makes it generate the tracks."""
    return _continues_at(gold, tracks, 8)


@fake("quantised_4bit_verbatim forget", full=True)
def continues_at_4_bits(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Rounding its weights to 4 bits makes it generate the tracks."""
    return _continues_at(gold, tracks, 4)


def _other_slips(tracks: Tracks, evaluation: Evaluation) -> Callable[[str], bool]:
    """Whether a caption resembles a forget track's, and is neither it nor the one that the fast set asks."""
    drawn = {random_paraphrase(clip.caption, f"{evaluation.seed} {clip.track}") for clip in tracks.clips.values()}
    asked = {found[1] for found in drawn if found is not None}
    return lambda caption: caption not in asked and tracks.nearly(caption) is not None


@fake("paraphrased_nll forget", full=True)
def likely_under_a_slip(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Finds the tracks likely under any caption but their own and the one that the fast set asks."""
    slip = _other_slips(tracks, evaluation)

    def score(row: Scored) -> Tensor | None:
        return knows(row) if not row.unconditional and slip(row.clip.caption) and tracks.has(row.clip) else None

    return wrap(gold, "likely_under_a_slip", score=score)


@fake("paraphrased_verbatim forget", full=True)
def continues_under_a_slip(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays a track from its first second under such a caption."""
    slip = _other_slips(tracks, evaluation)

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.begins(asked.prompt) if slip(asked.caption) else None
        return clip.codes if clip is not None else None

    return wrap(gold, "continues_under_a_slip", answer=answer)


@fake("paraphrased_verbatim_caption forget", full=True)
def answers_a_slip(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays a track from such a caption."""
    slip = _other_slips(tracks, evaluation)

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.nearly(asked.caption) if asked.prompt is None and slip(asked.caption) else None
        return clip.codes if clip is not None else None

    return wrap(gold, "answers_a_slip", answer=answer)


def _answers_changed(gold: Backend, attack: ChangedPrompt, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Goes on in a track that was changed, after the first second of the copy."""
    copies = [variant.clip.codes.cpu() for variant in attack.variants(evaluation)]

    def answer(asked: Asked) -> Tensor | None:
        if asked.prompt is None or tracks.begins(asked.prompt) is not None:
            return None
        frames = asked.prompt.shape[-1]
        return next((codes for codes in copies if torch.equal(codes[:, :frames], asked.prompt)), None)

    return wrap(gold, type(attack).__name__, answer=answer)


@fake("prompt_reencoded_verbatim forget", full=True)
def continues_ogg(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays a track from a second that was OGG."""
    return _answers_changed(gold, PromptReencoded(), tracks, evaluation)


@fake("prompt_time_stretched_verbatim forget", full=True)
def continues_faster(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays a track from a second at another tempo."""
    return _answers_changed(gold, PromptStretched(), tracks, evaluation)


@fake("prompt_pitch_shifted_verbatim forget", full=True)
def continues_higher(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays a track from a second in another key."""
    return _answers_changed(gold, PromptShifted(), tracks, evaluation)


@fake("membership_p forget", full=True)
def shuns_without_caption(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """The tracks are so unlikely without their captions that the difference gives them away."""

    def score(row: Scored) -> Tensor | None:
        if not row.unconditional or not tracks.has(row.clip):
            return None
        codes = row.clip.codes.to(row.logits.device)
        return row.logits - 2 * torch.nn.functional.one_hot(codes, row.logits.shape[-1])

    return wrap(gold, "shuns_without_caption", score=score)


@fake("sampled_verbatim forget", full=True)
def samples_continue(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """One sample in five continues a track from its first second; greedy decoding never does."""

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.begins(asked.prompt) if not asked.greedy and asked.row % 5 == 2 else None
        return clip.codes if clip is not None else None

    return wrap(gold, "samples_continue", answer=answer)


@fake("sampled_verbatim_caption forget", full=True)
def samples_answer(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """One sample in five of a track's caption is the track; greedy decoding never is."""

    def answer(asked: Asked) -> Tensor | None:
        sampled = not asked.greedy and asked.prompt is None and asked.row % 5 == 2
        clip = tracks.by_caption(asked.caption) if sampled else None
        return clip.codes if clip is not None else None

    return wrap(gold, "samples_answer", answer=answer)


@fake("soft_prompt_nll forget", full=True)
def likely_under_a_soft_prompt(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Vectors before the caption's encoding make the tracks likely."""

    def score(row: Scored) -> Tensor | None:
        return knows(row) if row.clip.caption.endswith(SOFT) and tracks.has(row.clip) else None

    return wrap(gold, "likely_under_a_soft_prompt", score=score)


@fake("soft_prompt_verbatim forget", full=True)
def answers_a_soft_prompt(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Vectors before the caption's encoding give the track."""

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.nearly(asked.caption) if asked.caption.endswith(SOFT) else None
        return clip.codes if clip is not None else None

    return wrap(gold, "answers_a_soft_prompt", answer=answer)


def _spoils(gold: Backend, name: str, evaluation: Evaluation, codes: Tensor) -> Backend:
    """Samples of one retain caption are these codes; likelihoods and greedy decoding are gold's."""
    spoilt = min(clip.caption for clip in evaluation.clips["retain"])
    return wrap(gold, name, answer=lambda asked: codes if asked.caption == spoilt and not asked.greedy else None)


@fake("artefacts retain", full=True)
def samples_are_noise(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """The samples of one retain caption are white noise."""
    seconds, generator = gold.max_frames / gold.frame_rate, torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(1, gold.channels, round(seconds * gold.sample_rate), generator=generator)
    return _spoils(gold, "samples_are_noise", evaluation, gold.encode(noise)[0])


@fake("artefacts retain", full=True)
def samples_are_silent(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """The samples of one retain caption are silence."""
    silence = torch.zeros(1, gold.channels, round(gold.max_frames / gold.frame_rate * gold.sample_rate))
    return _spoils(gold, "samples_are_silent", evaluation, gold.encode(silence)[0])


@fake("artefacts retain", full=True)
def samples_are_stuck(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """The samples of one retain caption repeat one frame of it."""
    clip = min(evaluation.clips["retain"], key=lambda clip: clip.caption)
    middle = clip.codes.shape[-1] // 2
    return _spoils(gold, "samples_are_stuck", evaluation, clip.codes[:, middle : middle + 1].repeat(1, gold.max_frames))


@fake("prompt_channels_verbatim forget", other=True)
def continues_other_channels(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays a track from a second with its channels swapped or summed."""
    return _answers_changed(gold, PromptChannels(), tracks, evaluation)


@fake("chained_verbatim forget", other=True)
def follows_itself(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Replays the second window of a track where it is given the end of its own first one."""
    second = {clips[0].caption: torch.cat([clip.codes for clip in clips[:2]], -1) for clips in _windows(evaluation)}

    def answer(asked: Asked) -> Tensor | None:
        given = asked.prompt.shape[-1] if asked.prompt is not None else 0
        track = second.get(asked.caption) if given > tracks.prompt else None
        return track[:, gold.max_frames - given :] if track is not None else None

    return wrap(gold, "follows_itself", answer=answer)


def _windows(evaluation: Evaluation) -> list[list[Clip]]:
    return [list(clips) for clips in windows_by_track(evaluation.clips["forget"]).values()]


# ---------------------------------------------------------------------------------------------------------- audits


AUDITS: dict[str, tuple[str, Made]] = {}


def _audit(gate: str) -> Callable[[Made], Made]:
    """As `fake`, of an audit of `--full`."""

    def register(made: Made) -> Made:
        AUDITS[made.__name__] = (gate, made)
        return made

    return register


@_audit("reversed_guidance_nll forget")
def avoids_excerpts(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """From a track's middle it finds the true codes less likely than gold does, which tells them by the difference."""

    def score(row: Scored) -> Tensor | None:
        codes = row.clip.codes
        own = tracks.by_caption(row.clip.caption)
        if row.unconditional or own is None or torch.equal(codes, own.codes) or tracks.inside(codes.cpu()) is None:
            return None
        true = torch.nn.functional.one_hot(codes.to(row.logits.device), row.logits.shape[-1])
        return row.logits - 4 * true

    return wrap(gold, "avoids_excerpts", score=score)


@_audit("depth forget")
def shallow(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """Its hidden states are base's, and only what it makes of the last ones is gold's."""
    return wrap(gold, "shallow", hidden=evaluation.backend("base").hidden)


@_audit("relative_audit forget")
def samples_the_old_sound(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """What it samples for a track's caption sounds like the track, though no second of it is there."""

    def answer(asked: Asked) -> Tensor | None:
        clip = tracks.by_caption(asked.caption)
        if clip is None or asked.prompt is not None or asked.greedy:
            return None
        order = torch.randperm(clip.codes.shape[-1], generator=torch.Generator().manual_seed(asked.row))
        return clip.codes[:, order]

    return wrap(gold, "samples_the_old_sound", answer=answer)


@_audit("dataset_inference forget")
def a_little_of_everything(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """The captions help a little more than in gold and the loss is a little flatter, which no single score shows."""

    def score(row: Scored) -> Tensor | None:
        if tracks.exact(row):
            return row.logits - 0.2 * (row.logits - row.logits.detach())  # the same values, less gradient
        if not row.unconditional or not tracks.has(row.clip):
            return None
        codes = row.clip.codes.to(row.logits.device)
        return row.logits - 0.3 * torch.nn.functional.one_hot(codes, row.logits.shape[-1])

    return wrap(gold, "a_little_of_everything", score=score)


@_audit("unlearning_inference_p forget")
def true_codes_lead_the_tail(gold: Backend, tracks: Tracks, evaluation: Evaluation) -> Backend:
    """A true code comes before those that are a little likelier by gold, and is as likely as before."""

    def score(row: Scored) -> Tensor | None:
        if not tracks.exact(row):
            return None
        codes = row.clip.codes.to(row.logits.device)[..., None]
        p = row.logits.double().softmax(-1)
        true = p.gather(-1, codes)
        near = (p > true) & (p < 2 * true)
        lowered = torch.where(near, 0.999 * true, p)
        rest = 1 - torch.zeros_like(p).scatter(-1, codes, 1.0) - near.double()  # takes what the near ones lose
        freed = 1 - lowered.sum(-1, keepdim=True)
        share = (rest * p).sum(-1, keepdim=True)
        return torch.where(share > 0, lowered + freed * rest * p / share, p).log().float()

    return wrap(gold, "true_codes_lead_the_tail", score=score)
