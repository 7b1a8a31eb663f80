"""`encore attribute`: rank the tracks of a catalogue by their influence on a generated clip.

The score of a track is a diagonal influence, as a cosine: with g the gradient of a clip's loss,

    score_n = ⟨g_clip / (F + ε), g_n⟩ / (‖g_clip / (F + ε)‖ ‖g_n‖),

the inner product of TracIn (Pruthi et al., arXiv 2002.08484, with one checkpoint) under the Fisher diagonal F of the
catalogue, ε a share of F's mean. The catalogue is streamed: g_clip / (F + ε) is one direction of `encore.curvature`,
so no track's gradient is stored. The score of a track is the largest over its windows.

Three choices were made by measurement (`benchmarks/RESULTS.md`, "Attribution"):

- The loss is the NLL of a softmax at temperature 6. At 1, a memorised track has almost no gradient, in a random
  direction; with flattened probabilities every token contributes.
- g_n is divided by its norm, else tracks with a large gradient rank first for any clip.
- g_n is computed on the track decoded and encoded again by the codec, as a generated clip is. F is computed on the
  codes that the model was trained on.

Without a caption, neither side is conditioned. With one, the loss is the mean of the NLLs with and without the
caption, the two distributions that classifier-free guidance samples from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip
from encore.curvature import capture, clips_sha256, fisher
from encore.curvature.fisher_stream import evaluating
from encore.curvature.hooks import set_aside_grads
from encore.data.captions import read_tags, sidecar_captions
from encore.data.encode import TrackEncoder
from encore.data.encoded_tracks import EncodedTrack, clips_of
from encore.data.file_info import FileCache
from encore.data.shards import ShardTracks
from encore.data.splits import HOLDOUT, OptionalTracks, open_catalog
from encore.data.tracks import Track
from encore.errors import EncoreError, InputError, UsageError, together
from encore.hashing import module_sha256
from encore.losses import token_cross_entropy
from encore.plugins import backends
from encore.reporter import Reporter
from encore.store.environment import pick_device
from encore.store.model_name import model_sha256, open_model
from encore.tensor_cache import TensorCache
from encore.text import clean_caption

TEMPERATURE = 6.0
DAMPING = 0.003  # ε, relative to F's mean
MICRO_BATCH = 8  # clips per pass


@dataclass(frozen=True)
class Scored:
    """A track of the catalogue with its score, a cosine: 1 is the same direction, 0 no influence."""

    id: str
    title: str | None
    score: float


@dataclass(frozen=True)
class Attribution:
    """The ranking of tracks for a clip.

    Args:
        caption: of the clip; None where it was scored without one.
        caption_source: "given", "side-car", "tags" or "none".
        tracks: all compared tracks, highest score first.
        skipped: errors of the tracks that were left out.
    """

    caption: str | None
    caption_source: str
    tracks: tuple[Scored, ...]
    skipped: tuple[str, ...] = ()


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
    skip_unreadable: bool = False,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Attribution:
    """Score a catalogue's tracks for a clip; its split "holdout", which no model was trained on, is left out.

    Args:
        clip: the audio file.
        model: folder or hub name.
        catalog: None is that of the embedded model.
        caption: of the clip; None looks for a side-car file or tags.
        backend: name of the model family.
        revision: of a hub model.
        offline: use downloaded files only.
        roots: further folders that the catalogue's files may be in.
        skip_unreadable: leave out tracks that can't be read.
        device: as in `encore.store.environment.pick_device`.
        reporter: receives progress.

    Raises:
        InputError: the clip, the model or a track can't be used.
        UsageError: there is no catalogue, or the model has no tokens.
    """
    reporter = reporter or Reporter()
    opened = open_catalog(catalog, model, roots)
    if opened is None:
        raise UsageError("there are no tracks to compare the clip with", "give --catalog FILE")
    device = pick_device(device)
    text, source = find_caption(clip, caption)
    query = Track("the clip", clip, text, FileCache().sha256(clip))
    lost: list[InputError] = []  # errors of the tracks that are left out
    tracks = opened.tracks(errors=lost if skip_unreadable else None)
    if isinstance(tracks, ShardTracks):
        tracks = tracks.of_split(HOLDOUT, others=True)
    else:
        tracks = [track for track in tracks if track.meta.get("split") != HOLDOUT]
    if not tracks:
        if lost:
            raise together(lost)
        raise InputError(f"{opened.name} holds no track but those of the split {HOLDOUT!r}", "give another --catalog")

    loaded = open_model(backends().resolve(backend), model, revision=revision, offline=offline, device=device)
    if not loaded.has_tokens:
        raise UsageError(f"{loaded.name} has no tokens, which attribution needs")
    cache = TensorCache()
    encoder = TrackEncoder(loaded, cache)
    streamed = encoder.stream(tracks) if isinstance(tracks, ShardTracks) else None
    (encoded_query,) = encoder.encode([query])
    encoded: Sequence[EncodedTrack] = ()
    if streamed is None:
        optional = OptionalTracks(tracks if skip_unreadable else ())
        encoded = encoder.encode(
            tracks, lambda done, of: reporter.progress("encode tracks", done, of), skip=optional.skip
        )
        lost += optional.lost
        if not encoded:
            raise together(lost)
        tracks = [each.track for each in encoded]
    scores = Scores(loaded, clips_of(encoded if streamed is None else streamed), conditioned=bool(text), cache=cache)
    (best,) = scores.of([encoded_query.clips], reporter)
    ranked = [Scored(track.id, track.title, best[track.id]) for track in tracks]
    ranked.sort(key=lambda scored: -scored.score)
    return Attribution(text or None, source, tuple(ranked), tuple(error.message for error in lost))


def find_caption(clip: Path, given: str | None) -> tuple[str, str]:
    """The caption of a clip and its source: "given", "side-car" or "tags"; an empty caption and "none" without one."""
    for source, caption in (
        ("given", lambda: clean_caption(given or "")),
        ("side-car", lambda: next(iter(sidecar_captions(clip, [clip.parent]).texts), "")),
        ("tags", lambda: read_tags(clip).caption()),
    ):
        if text := caption():
            return text, source
    return "", "none"


class Scores:
    """Scores of a catalogue's tracks.

    Args:
        backend: a token model; its weights are not changed.
        catalog: the tracks' clips, with the codes that the model was trained on.
        conditioned: score with and without captions, not only without.
        cache: of the Fisher diagonal, by hashes of model and clips, and of the tracks' re-encoded codes.
    """

    def __init__(self, backend: Backend, catalog: Sequence[Clip], *, conditioned: bool, cache: TensorCache) -> None:
        self._backend, self._catalog, self._conditioned, self._cache = backend, catalog, conditioned, cache
        self._frozen = module_sha256(*backend.frozen().values())

    def of(self, clips: Sequence[Sequence[Clip]], reporter: Reporter | None = None) -> list[dict[str, float]]:
        """Score all tracks for some clips, in one pass over the catalogue.

        Args:
            clips: windows of each clip.
            reporter: receives progress.

        Returns:
            Track id -> score, for each clip.

        Raises:
            EncoreError: a clip's gradient is zero or not finite.
        """
        reporter = reporter or Reporter()
        directions = self._directions(clips, reporter)
        seen: list[str] = []  # track of each clip
        with (
            evaluating(self._backend.module),
            capture(self._backend.module, directions=directions, norms=True) as captured,
        ):
            for batch in self._batches(self._catalog, "compare", reporter):
                again = Batch.of([self._reencoded(clip) for clip in batch.clips], self._backend.device)
                self.losses(again).sum().backward()  # type: ignore[no-untyped-call]
                seen += [clip.track for clip in batch.clips]
        norms = captured.sq_norms.sqrt().clamp(min=torch.finfo(torch.float32).tiny)  # [N]
        best: list[dict[str, float]] = [{} for _ in clips]
        for scores, cosines in zip(best, (captured.dots.T / norms).tolist(), strict=True):
            for track, cosine in zip(seen, cosines, strict=True):
                scores[track] = max(cosine, scores.get(track, -1.0))
        return best

    def losses(self, batch: Batch) -> Tensor:
        """Mean NLL per token at the temperature, nats, [N]."""
        free = self._nll(batch, unconditional=True)
        return (free + self._nll(batch, unconditional=False)) / 2 if self._conditioned else free

    def _nll(self, batch: Batch, *, unconditional: bool) -> Tensor:
        logits = self._backend.logits(batch, unconditional=unconditional)
        mask = self._backend.token_mask(batch)
        return token_cross_entropy(logits / TEMPERATURE, batch.codes, mask)

    def _directions(self, clips: Sequence[Sequence[Clip]], reporter: Reporter) -> list[dict[str, Tensor]]:
        """g_clip / (F + ε) of each clip by parameter, scaled to norm 1."""
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
                raise EncoreError("the clip's gradient is zero or not finite", "check the model's weights")
            directions.append({name: value / norm for name, value in raw.items()})
        return directions

    def _fisher(self, reporter: Reporter) -> Mapping[str, Tensor]:
        """Fisher diagonal of the catalogue for `losses`, cached."""

        def make() -> dict[str, Tensor]:
            batches = self._batches(self._catalog, "fisher", reporter)
            return fisher(self._backend.module, batches, self.losses).values

        settings = f"temperature {TEMPERATURE:g}, conditioned {self._conditioned}"
        return self._cache.get_or_make(
            ("attribution fisher", settings, model_sha256(self._backend), clips_sha256(self._catalog)), make
        )

    def _reencoded(self, clip: Clip) -> Clip:
        """A clip decoded and encoded again."""
        backend = self._backend
        codes = clip.codes.cpu().contiguous()
        digest = hashlib.sha256(f"{tuple(codes.shape)}".encode() + codes.numpy().tobytes()).hexdigest()

        def make() -> dict[str, Tensor]:
            with torch.no_grad():
                return {"codes": backend.encode(backend.decode(codes[None].to(backend.device)))[0].to(torch.int16)}

        again = self._cache.get_or_make(("re-encoded", self._frozen, digest), make)["codes"]
        return replace(clip, codes=again.long())

    def _batches(self, clips: Sequence[Clip], stage: str = "", reporter: Reporter | None = None) -> Iterator[Batch]:
        for start in range(0, len(clips), MICRO_BATCH):
            if reporter is not None:
                reporter.progress(stage, start, len(clips))
            yield Batch.of(clips[start : start + MICRO_BATCH], self._backend.device)
        if reporter is not None:
            reporter.progress(stage, len(clips), len(clips))
