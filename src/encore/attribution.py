"""`encore attribute`: which tracks of a catalogue a clip owes most to.

The score of a track is a diagonal influence, as a cosine: with g the gradient of a clip's loss,

    score_n = ⟨g_clip / (F + ε), g_n⟩ / (‖g_clip / (F + ε)‖ ‖g_n‖),

the inner product of TracIn (Pruthi et al., arXiv 2002.08484, with one checkpoint) under the Fisher diagonal F of the
catalogue, ε a share of F's mean. The catalogue is streamed: g_clip / (F + ε) is one direction of `encore.curvature`,
so that no track's gradient is ever stored. Of a track of several windows, the one closest to the clip counts.

Three things were chosen by measurement (`bench/RESULTS.md`, "Attribution"), each for a reason:

- The loss is the NLL of a softmax at temperature 6. At 1, a model that knows a track by heart has next to no gradient
  on it, and what is left points anywhere; flattened, every token of it counts.
- g_n is divided by its norm, else tracks that are merely loud in gradient come first for any clip.
- g_n is taken on the track as the codec plays it back (decoded, encoded again), for that is what has happened to a clip
  that the model made. F is taken on the codes that the model was trained on.

Without a caption, neither side is conditioned. With one, the loss is the mean of the NLLs with and without the own
caption: the two that classifier-free guidance plays from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip
from encore.cache import TensorCache
from encore.curvature import capture, clips_sha256, fisher
from encore.curvature.fisher_stream import evaluating
from encore.curvature.hooks import set_aside_grads
from encore.data.captions import read_tags, sidecar_captions
from encore.data.encode import TrackEncoder
from encore.data.file_info import FileCache
from encore.data.splits import HOLDOUT, open_catalog
from encore.data.tracks import Track
from encore.errors import EncoreError, InputError, UsageError
from encore.hashing import module_sha256
from encore.losses import clip_mean, token_logprobs
from encore.plugins import backends
from encore.reporter import Reporter
from encore.store.environment import pick_device
from encore.store.model_name import model_name, model_sha256
from encore.text import clean_caption

TEMPERATURE = 6.0
DAMPING = 0.003  # ε, relative to F's mean
MICRO_BATCH = 8  # clips a pass


@dataclass(frozen=True)
class Scored:
    """A track of the catalogue, and how much of it is in the clip: 1 is the same direction, 0 is none of it."""

    id: str
    title: str | None
    score: float


@dataclass(frozen=True)
class Attribution:
    """What a clip owes.

    Args:
        caption: what the clip was conditioned on; None where it was scored without one.
        caption_source: "given", "side-car", "tags" or "none".
        tracks: all that were compared, highest score first.
    """

    caption: str | None
    caption_source: str
    tracks: tuple[Scored, ...]


def attribute(
    clip: Path,
    *,
    model: str = "tiny",
    catalog: Path | None = None,
    caption: str | None = None,
    backend: str = "musicgen",
    revision: str | None = None,
    offline: bool = False,
    roots: Sequence[Path] = (),
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Attribution:
    """Score a catalogue's tracks for a clip; those of its split "holdout", which no model has heard, are left out.

    Raises:
        InputError: the clip, the model or a track can't be used.
        UsageError: there is no catalogue, or the model has no tokens.
    """
    reporter = reporter or Reporter()
    chosen = open_catalog(catalog, model, roots)
    if chosen is None:
        raise UsageError("there are no tracks to compare the clip with", "give --catalog FILE")
    device = pick_device(device)
    said, source = find_caption(clip, caption)
    heard_once = Track("the clip", clip, said, FileCache().sha256(clip))
    tracks = [track for track in chosen.tracks() if track.meta.get("split") != HOLDOUT]
    if not tracks:
        raise InputError(f"{chosen.name} holds no track but those of the split {HOLDOUT!r}", "give another --catalog")

    opened = backends().resolve(backend).load(model_name(model), revision=revision, offline=offline, device=device)
    if not opened.has_tokens:
        raise UsageError(f"{opened.name} has no tokens, and a clip is attributed by those")
    cache = TensorCache()
    heard = TrackEncoder(opened, cache).encode(
        [heard_once, *tracks], lambda done, of: reporter.progress("encode tracks", done, of)
    )
    scores = Scores(opened, [one for track in heard[1:] for one in track.clips], conditioned=bool(said), cache=cache)
    (best,) = scores.of([heard[0].clips], reporter)
    ranked = [Scored(track.id, track.title, best[track.id]) for track in tracks]
    ranked.sort(key=lambda one: -one.score)
    return Attribution(said or None, source, tuple(ranked))


def find_caption(clip: Path, given: str | None) -> tuple[str, str]:
    """The caption of a clip, and where it is from: given, side-car, tags; "none" where there is none, which is ""."""
    for source, caption in (
        ("given", lambda: clean_caption(given or "")),
        ("side-car", lambda: next(iter(sidecar_captions(clip, [clip.parent]).texts), "")),
        ("tags", lambda: read_tags(clip).caption()),
    ):
        if found := caption():
            return found, source
    return "", "none"


class Scores:
    """Scores of a catalogue's tracks.

    Args:
        backend: a token model; its module is in evaluation mode meanwhile and stays as it is.
        catalog: the tracks' clips, with the codes that the model was trained on.
        conditioned: whether clips are scored under their captions too, or without any alone.
        cache: keeps the Fisher, by the model's and the clips' hashes, and the tracks' codes as played back.
    """

    def __init__(self, backend: Backend, catalog: Sequence[Clip], *, conditioned: bool, cache: TensorCache) -> None:
        self._backend, self._catalog, self._conditioned, self._cache = backend, catalog, conditioned, cache

    def of(self, clips: Sequence[Sequence[Clip]], reporter: Reporter | None = None) -> list[dict[str, float]]:
        """Track id -> score, for each of the clips, which are given by their windows; one pass over the catalogue.

        Raises:
            EncoreError: a clip's gradient is zero or not finite.
        """
        reporter = reporter or Reporter()
        directions = self._directions(clips, reporter)
        seen: list[Clip] = []
        with (
            evaluating(self._backend.module),
            capture(self._backend.module, directions=directions, norms=True) as taken,
        ):
            for batch in self._batches(self._codec_round_trip(reporter), "compare", reporter):
                self.losses(batch).sum().backward()  # type: ignore[no-untyped-call]
                seen += batch.clips
        norms = taken.sq_norms.sqrt().clamp(min=torch.finfo(torch.float32).tiny)  # [N]
        best: list[dict[str, float]] = [{} for _ in clips]
        for found, cosines in zip(best, (taken.dots.T / norms).tolist(), strict=True):
            for window, cosine in zip(seen, cosines, strict=True):
                found[window.track] = max(cosine, found.get(window.track, -1.0))
        return best

    def losses(self, batch: Batch) -> Tensor:
        """Mean NLL a token at the temperature, [N]."""
        free = self._nll(batch, unconditional=True)
        return (free + self._nll(batch, unconditional=False)) / 2 if self._conditioned else free

    def _nll(self, batch: Batch, *, unconditional: bool) -> Tensor:
        logits = self._backend.logits(batch, unconditional=unconditional)
        mask = self._backend.token_mask(batch)
        return -clip_mean(token_logprobs(logits / TEMPERATURE, batch.codes, mask), mask)

    def _directions(self, clips: Sequence[Sequence[Clip]], reporter: Reporter) -> list[dict[str, Tensor]]:
        """g_clip / (F + ε) of each clip, of norm 1, a parameter."""
        module = self._backend.module
        information = self._fisher(reporter)
        weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        count = sum(value.numel() for value in information.values())
        epsilon = DAMPING * sum(float(value.sum(dtype=torch.float64)) for value in information.values()) / count
        scale = {name: 1 / (value + epsilon).to(weights[name].device) for name, value in information.items()}
        directions = []
        for clip in clips:
            with evaluating(module), set_aside_grads(weights.values()):
                for batch in self._batches(clip):
                    self.losses(batch).sum().backward()  # type: ignore[no-untyped-call]
                raw = {name: w.grad * scale[name] for name, w in weights.items() if w.grad is not None}
            norm = torch.nn.utils.get_total_norm(list(raw.values()))
            if not torch.isfinite(norm) or not norm:
                raise EncoreError("the clip's gradient is zero or not finite", "are the model's weights sound?")
            directions.append({name: value / norm for name, value in raw.items()})
        return directions

    def _fisher(self, reporter: Reporter) -> Mapping[str, Tensor]:
        """F of the catalogue, by the loss that is scored, from the cache where it is there."""

        def make() -> dict[str, Tensor]:
            batches = self._batches(self._catalog, "fisher", reporter)
            return fisher(self._backend.module, batches, self.losses).values

        settings = f"temperature {TEMPERATURE:g}, conditioned {self._conditioned}"
        return self._cache.get_or_make(
            ("attribution fisher", settings, model_sha256(self._backend), clips_sha256(self._catalog)), make
        )

    def _codec_round_trip(self, reporter: Reporter) -> list[Clip]:
        """The catalogue's clips as the codec plays them back."""
        backend = self._backend
        frozen = module_sha256(*backend.frozen().values())
        played = []
        for done, clip in enumerate(self._catalog):
            reporter.progress("play back", done, len(self._catalog))
            codes = clip.codes.cpu().contiguous()
            digest = hashlib.sha256(f"{tuple(codes.shape)}".encode() + codes.numpy().tobytes()).hexdigest()

            def make(codes: Tensor = codes) -> dict[str, Tensor]:
                return {"codes": backend.encode(backend.decode(codes[None].to(backend.device)))[0].to(torch.int16)}

            played.append(replace(clip, codes=self._cache.get_or_make(("played back", frozen, digest), make)["codes"]))
        return [replace(clip, codes=clip.codes.long()) for clip in played]

    def _batches(self, clips: Sequence[Clip], stage: str = "", reporter: Reporter | None = None) -> Iterator[Batch]:
        for start in range(0, len(clips), MICRO_BATCH):
            if reporter is not None:
                reporter.progress(stage, start, len(clips))
            yield Batch.of(clips[start : start + MICRO_BATCH], self._backend.device)
        if reporter is not None:
            reporter.progress(stage, len(clips), len(clips))
