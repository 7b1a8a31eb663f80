"""Does a simple prompt bring back the harmony, the melody, the rhythm of a forgotten track?

What a model plays for the forget tracks' captions (greedily, in several draws, and for a shorter caption) is compared
with the tracks. How alike a track and a play of its own caption are by chance is seen where nothing can be remembered:
in what the same model plays, asked in the same ways, for the holdout tracks' captions. A track is named where a pair of
its own is more alike than any of 99 % of the holdout tracks.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encore import stats
from encore.api import Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.curvature.fisher import clips_sha256
from encore.metrics.memorization.generations import Play, plays
from encore.metrics.memorization.verbatim import MODELS
from encore.metrics.rows import given, mean_row, not_finite, unmeasured
from encore.metrics.similarity.sequences import bleu_similarities, edit_similarities

if TYPE_CHECKING:
    from encore.metrics.similarity.music_features import MusicFeatures

SETS: tuple[ClipSet, ...] = ("forget", "holdout")
LEAST_RATE = 5000  # Hz of a model's sound: the highest note that is listened for is C7
PRINTED_RATE = 1000  # Hz, below which Chromaprint takes no sound
CHANCE = 0.01  # that a track nobody heard is named, where there are holdout tracks enough

Floats = NDArray[np.float64]


class Likeness(Metric):
    """Base of the metrics of likeness: each has its `kinds` of similarity, from 0 (or less) to 1.

    Rows of a kind, for base, unlearned and gold: `likeness_KIND`, the mean over forget tracks of the most alike play of
    its own captions; and `likeness_KIND_named`, the share of tracks whose best is above that of 99 % of the holdout
    tracks (of fewer than 99, above all). `details` name the best play of each track, the threshold, all pairs above it,
    from how many `holdout_tracks` and `holdout_pairs` it is, and the `chance` that a track nobody heard is named.
    `rank` is the best place that a track has among all forget and holdout tracks, by their likeness to one of its own
    captions' plays: top 1 is 1.
    """

    kinds: tuple[str, ...] = ()

    @abstractmethod
    def similarities(
        self, evaluation: Evaluation, played: Sequence[Tensor], references: Sequence[Tensor]
    ) -> Mapping[str, Floats]:
        """Of each kind, how alike each played clip is to each reference, codes [K, T] all: P and R -> [P, R]."""

    def missing(self, evaluation: Evaluation) -> str:
        """Why nothing can be compared; empty where it can."""
        return ""

    def too_short(self, evaluation: Evaluation, codes: Tensor) -> bool:
        """Whether a clip [K, T] is too short to be compared; its track is then left out."""
        return False

    def depends(self, evaluation: Evaluation) -> tuple[str, ...]:
        """What the similarities depend on beside codes and the codec: libraries by version, the embedder."""
        return ()

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        why = self.missing(evaluation)
        for model in [] if why else given(evaluation, *MODELS):
            broken = not_finite(evaluation, model, "forget") or not_finite(evaluation, model, "holdout")
            if broken:
                yield from (unmeasured(f"likeness_{kind}", model, "forget", broken) for kind in self.kinds)
                continue
            yield from self._compared(evaluation, model)
        if why:
            yield from (unmeasured(f"likeness_{kind}", "unlearned", "forget", why) for kind in self.kinds)

    def _compared(self, evaluation: Evaluation, model: Role) -> Iterator[Result]:
        short = self._short(evaluation)
        asked, unasked = ([play for play in plays(evaluation, model, s) if play.track not in short] for s in SETS)
        for clips, left in zip(SETS, (asked, unasked), strict=True):
            if not left:
                why = f"every {clips} track is too short to be compared"
                yield from (unmeasured(f"likeness_{kind}", model, "forget", why) for kind in self.kinds)
                return
        everybody = [*asked, *unasked]
        played = [play.codes for play in everybody]
        longest = max(codes.shape[-1] for codes in played)
        known, unheard = (
            _pieces([clip for clip in evaluation.clips[clips] if clip.track not in short], longest) for clips in SETS
        )
        references = [clip.codes for clip in [*known, *unheard]]

        def compared() -> dict[str, Tensor]:
            matrices = self.similarities(evaluation, played, references)
            return {kind: torch.from_numpy(matrix) for kind, matrix in matrices.items()}

        first = next(iter(evaluation.models))  # whose codec everybody hears with
        found = evaluation.cached_on_disk(
            ("likeness", *self.kinds, len(played), *self.depends(evaluation)), compared, models=[first],
            clips=[Clip("", "", codes) for codes in [*played, *references]],
        )  # fmt: skip
        for kind in self.kinds:
            matrix = found[kind].numpy()
            alike, by_chance = _by_track(matrix[:, : len(known)], known), _by_track(matrix[:, len(known) :], unheard)
            pairs, unheard_pairs = _own(everybody, alike), _own(everybody, by_chance)
            threshold, chance = level([max(value for _, value in own) for own in unheard_pairs.values()])
            everything = np.stack([*alike.values(), *by_chance.values()], 1)
            ranks = {
                track: min(
                    int((everything[i] > column[i]).sum()) + 1 for i, play in enumerate(asked) if play.track == track
                )
                for track, column in alike.items()
            }
            details = {
                "threshold": threshold, "holdout_tracks": len(unheard_pairs),
                "holdout_pairs": sum(map(len, unheard_pairs.values())), "chance": chance, "rank": ranks,
                "of": everything.shape[1], **({"too_short": sorted(short)} if short else {}),
            }  # fmt: skip
            yield from self._rows(evaluation, model, kind, pairs, details)

    def _short(self, evaluation: Evaluation) -> set[str]:
        """Tracks whose first window, which is as long as their generations, can't be compared."""
        first = {clip.track: clip for name in SETS for clip in reversed(evaluation.clips[name])}
        return {track for track, clip in first.items() if self.too_short(evaluation, clip.codes)}

    def _rows(
        self,
        evaluation: Evaluation,
        model: Role,
        kind: str,
        pairs: Mapping[str, Sequence[tuple[str, float]]],
        details: Mapping[str, Any],
    ) -> Iterator[Result]:
        threshold = details["threshold"]
        best = {track: max(found, key=lambda pair: pair[1]) for track, found in pairs.items()}
        above = [[track, asked, value] for track, found in pairs.items() for asked, value in found if value > threshold]
        named = {str(track) for track, _, _ in above}
        tracks = {track: value for track, (_, value) in best.items()}
        told = {**details, "best": {track: asked for track, (asked, _) in best.items()}, "above": above}
        yield mean_row(f"likeness_{kind}", model, "forget", tracks, evaluation, details=told)
        low, high = stats.share_interval(len(named), len(tracks)) or (None, None)
        chance = details["chance"]
        of = f"{details['holdout_pairs']} pairs of {details['holdout_tracks']} holdout tracks"
        reached = f"by at most 1 % of the {of}" if chance <= CHANCE else f"by none of the {of}"
        yield Result(
            f"likeness_{kind}_named", model, "forget", len(named) / len(tracks), low, high, n=len(tracks), unit="share",
            per_track=tracks,
            details={"named": sorted(named), **{k: details[k] for k in ("threshold", "chance", "holdout_tracks")}},
            note=f"the threshold is exceeded {reached} with plays of their own captions; by chance alone about "
            f"{len(tracks) * chance:.1f} of {len(tracks)} tracks would be named",
        )  # fmt: skip


def _pieces(clips: Sequence[Clip], frames: int) -> list[Clip]:
    """Clips cut to pieces of so many frames, so that what is played is compared with each part of a long track.

    A last piece of less than half is left out, but for a clip that is no longer itself.
    """
    return [
        Clip(clip.track, clip.caption, piece)
        for clip in clips
        for number, piece in enumerate(clip.codes.split(frames, -1))
        if not number or piece.shape[-1] >= frames / 2
    ]


def level(values: Sequence[float]) -> tuple[float, float]:
    """What one more such value exceeds with a chance of 1 % at most, and that chance.

    The k-th of n values is exceeded by one that is exchangeable with them with a chance of (n + 1 - k) / (n + 1): fewer
    than 99 have no such level, and their highest stands for it, which one in n + 1 exceeds.
    """
    n = len(values)
    k = min(math.ceil((1 - CHANCE) * (n + 1) - 1e-9), n)
    return float(np.sort(values)[k - 1]), (n + 1 - k) / (n + 1)


def _own(played: Sequence[Play], alike: Mapping[str, Floats]) -> dict[str, list[tuple[str, float]]]:
    """Of each track the plays that its own caption was given for, how it was asked, and how alike they are."""
    return {
        track: [(play.asked, float(column[i])) for i, play in enumerate(played) if play.track == track]
        for track, column in alike.items()
    }


def _by_track(matrix: Floats, clips: Sequence[Clip]) -> dict[str, Floats]:
    """Columns of pieces -> of each track the highest over its pieces, [P]."""
    columns: dict[str, list[Floats]] = {}
    for clip, column in zip(clips, matrix.T, strict=True):
        columns.setdefault(clip.track, []).append(column)
    return {track: np.max(found, 0) for track, found in sorted(columns.items())}


# ----------------------------------------------------------------------------------------------------------- kinds


class LikenessMusic(Likeness):
    """`chroma`: harmony over time, in any key and ±6 % of tempo. `melody`: intervals between notes. `onset`: rhythm."""

    kinds = ("chroma", "melody", "onset")

    def missing(self, evaluation: Evaluation) -> str:
        rate = next(iter(evaluation.models.values())).sample_rate
        return f"{rate} Hz are too few to hear notes" if rate < LEAST_RATE else ""

    def depends(self, evaluation: Evaluation) -> tuple[str, ...]:
        return (version("librosa"),)

    def similarities(
        self, evaluation: Evaluation, played: Sequence[Tensor], references: Sequence[Tensor]
    ) -> Mapping[str, Floats]:
        from encore.metrics.similarity.music_features import harmony, melody, rhythm

        everything = self._hear(evaluation, [*played, *references])
        one, two = everything[: len(played)], everything[len(played) :]
        return {"chroma": harmony(one, two), "melody": melody(one, two), "onset": rhythm(one, two)}

    def _hear(self, evaluation: Evaluation, codes: Sequence[Tensor]) -> list[MusicFeatures]:
        """Each distinct clip is heard once, whatever the model: tracks, and what several models play alike."""
        from encore.metrics.similarity.music_features import hear

        rate = next(iter(evaluation.models.values())).sample_rate
        heard: dict[bytes, MusicFeatures] = evaluation.cached("likeness_music", dict)
        names = [one.cpu().numpy().tobytes() for one in codes]
        new = {name: one for name, one in zip(names, codes, strict=True) if name not in heard}
        heard |= zip(new, hear([waveform(evaluation, one) for one in new.values()], rate), strict=True)
        return [heard[name] for name in names]


class LikenessCodes(Likeness):
    """`bleu`: n-grams of the first codebook's codes. `edit`: 1 - their edit distance over the longer length."""

    kinds = ("bleu", "edit")

    def similarities(
        self, evaluation: Evaluation, played: Sequence[Tensor], references: Sequence[Tensor]
    ) -> Mapping[str, Floats]:
        one, two = ([codes[0].tolist() for codes in chosen] for chosen in (played, references))
        return {"bleu": bleu_similarities(one, two), "edit": edit_similarities(one, two)}


class LikenessEmbedding(Likeness):
    """`embedding`: cosine of the embedder's vectors, less the mean of all tracks that are known to the evaluation.

    An embedder's vectors share a large part, which without that would make any two clips alike.
    """

    kinds = ("embedding",)

    def depends(self, evaluation: Evaluation) -> tuple[str, ...]:
        everything = [clip for chosen in evaluation.clips.values() for clip in chosen]
        return (evaluation.embedder.identity if evaluation.embedder else "", clips_sha256(everything))

    def similarities(
        self, evaluation: Evaluation, played: Sequence[Tensor], references: Sequence[Tensor]
    ) -> Mapping[str, Floats]:
        sets = [clips for clips, chosen in evaluation.clips.items() if chosen]
        centre = np.concatenate([evaluation.embeddings("audio", clips) for clips in sets]).mean(0)
        one, two = (evaluation.embed(chosen) - centre for chosen in (played, references))
        return {"embedding": _unit(one) @ _unit(two).T}


class LikenessFingerprint(Likeness):
    """`fingerprint`: share of aligned Chromaprint frames that agree, as AcoustID compares recordings.

    Takes the system's libchromaprint, through pyacoustid.
    """

    kinds = ("fingerprint",)

    def missing(self, evaluation: Evaluation) -> str:
        import acoustid

        if not acoustid.have_chromaprint:
            return "the system has no libchromaprint"
        rate = next(iter(evaluation.models.values())).sample_rate
        return f"{rate} Hz are too few for a fingerprint" if rate < PRINTED_RATE else ""

    def depends(self, evaluation: Evaluation) -> tuple[str, ...]:
        return (version("pyacoustid"),)

    def too_short(self, evaluation: Evaluation, codes: Tensor) -> bool:
        return self._print(evaluation, codes) is None

    def similarities(
        self, evaluation: Evaluation, played: Sequence[Tensor], references: Sequence[Tensor]
    ) -> Mapping[str, Floats]:
        import acoustid

        one, two = ([self._print(evaluation, codes) for codes in chosen] for chosen in (played, references))
        matrix = [[acoustid.compare_fingerprints(a, b) if a and b else 0.0 for b in two] for a in one]
        return {"fingerprint": np.array(matrix)}

    def _print(self, evaluation: Evaluation, codes: Tensor) -> tuple[float, bytes] | None:
        """Seconds and fingerprint of codes [K, T]; None where they are too short for one (some 3 s)."""
        import acoustid
        import chromaprint

        rate = next(iter(evaluation.models.values())).sample_rate
        audio = waveform(evaluation, codes)
        samples = (audio.clip(-1, 1) * 32767).astype("<i2").tobytes()
        try:
            found = acoustid.fingerprint(rate, 1, iter([samples]))
        except acoustid.FingerprintGenerationError:  # of a clip shorter than one frame
            return None
        # Of a clip without a whole frame the fingerprint is a header alone, which `compare_fingerprints` divides by.
        return (len(audio) / rate, found) if chromaprint.decode_fingerprint(found)[0] else None


def waveform(evaluation: Evaluation, codes: Tensor) -> NDArray[np.float32]:
    """Codes [K, T] as the codec plays them, mono, [S]."""
    backend = next(iter(evaluation.models.values()))
    with torch.no_grad():
        return backend.decode(codes[None].to(backend.device))[0].float().mean(0).cpu().numpy()


def _unit(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)
