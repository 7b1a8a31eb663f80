"""Musical similarity of generations for the forget tracks' captions to the forget tracks.

The generations (greedy, sampled, and for a shortened caption) are compared with the tracks. The level of chance comes
from the holdout tracks, which the model can't have memorised: their similarity to the same model's generations for
their own captions. A forget track is flagged if one of its generations is more similar to it than those of 99 % of the
holdout tracks.
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
from encore.metrics.memorization.generations import CaptionGeneration, caption_generations
from encore.metrics.memorization.verbatim import MODELS
from encore.metrics.rows import available_roles, mean_row, not_finite, unmeasured
from encore.metrics.similarity.sequences import bleu_similarities, edit_similarities
from encore.metrics.utility.embedding_distance import cosines

if TYPE_CHECKING:
    from encore.metrics.similarity.music_features import MusicFeatures

SETS: tuple[ClipSet, ...] = ("forget", "holdout")
MIN_SAMPLE_RATE = 5000  # Hz: the highest note of the features is C7
MIN_FINGERPRINT_RATE = 1000  # Hz, Chromaprint's minimum
CHANCE = 0.01  # false-positive rate per track, given enough holdout tracks

Floats = NDArray[np.float64]


class SimilarityMetric(Metric):
    """Base of the similarity metrics: each has one or more `kinds` of similarity, at most 1.

    Rows of a kind, for base, unlearned and gold: `similarity_KIND`, the mean over forget tracks of the most similar
    generation for its captions; and `similarity_KIND_flagged`, the share of tracks whose maximum is above that of 99 %
    of the holdout tracks (above all of them if there are fewer than 99). `details` have the best generation of each
    track, the threshold, all pairs above it, the numbers of `holdout_tracks` and `holdout_pairs`, and the `chance`
    that a held-out track is flagged. `rank` is a track's best rank among all forget and holdout tracks, by similarity
    to one of its generations; 1 is the most similar.
    """

    kinds: tuple[str, ...] = ()

    @abstractmethod
    def similarities(
        self, evaluation: Evaluation, generations: Sequence[Tensor], references: Sequence[Tensor]
    ) -> Mapping[str, Floats]:
        """Similarities of each kind, [P, R].

        Args:
            generations: P code tensors, [K, T] each.
            references: R code tensors, [K, T] each.
        """

    def missing(self, evaluation: Evaluation) -> str:
        """Why the similarity can't be computed; empty if it can."""
        return ""

    def too_short(self, evaluation: Evaluation, codes: Tensor) -> bool:
        """Whether a clip [K, T] is too short; its track is then left out."""
        return False

    def depends(self, evaluation: Evaluation) -> tuple[str, ...]:
        """What the similarities depend on beside codes and codec: library versions, the embedder."""
        return ()

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        why = self.missing(evaluation)
        for model in [] if why else available_roles(evaluation, *MODELS):
            if reason := not_finite(evaluation, model, "forget") or not_finite(evaluation, model, "holdout"):
                yield from (unmeasured(f"similarity_{kind}", model, "forget", reason) for kind in self.kinds)
                continue
            yield from self._compare(evaluation, model)
        if why:
            yield from (unmeasured(f"similarity_{kind}", "unlearned", "forget", why) for kind in self.kinds)

    def _compare(self, evaluation: Evaluation, model: Role) -> Iterator[Result]:
        short = self._short_tracks(evaluation)
        forget, holdout = (
            [generation for generation in caption_generations(evaluation, model, s) if generation.track not in short]
            for s in SETS
        )
        for clips, remaining in zip(SETS, (forget, holdout), strict=True):
            if not remaining:
                why = f"every {clips} track is too short to be compared"
                yield from (unmeasured(f"similarity_{kind}", model, "forget", why) for kind in self.kinds)
                return
        generations = [*forget, *holdout]
        generated = [generation.codes for generation in generations]
        longest = max(codes.shape[-1] for codes in generated)
        forget_clips, holdout_clips = (
            _segments([clip for clip in evaluation.clips[clips] if clip.track not in short], longest) for clips in SETS
        )
        references = [clip.codes for clip in [*forget_clips, *holdout_clips]]

        def compute() -> dict[str, Tensor]:
            matrices = self.similarities(evaluation, generated, references)
            return {kind: torch.from_numpy(matrix) for kind, matrix in matrices.items()}

        first = next(iter(evaluation.models))  # its codec decodes all
        tensors = evaluation.cached_on_disk(
            ("similarity", *self.kinds, len(generated), *self.depends(evaluation)), compute, models=[first],
            clips=[Clip("", "", codes) for codes in [*generated, *references]],
        )  # fmt: skip
        for kind in self.kinds:
            matrix, count = tensors[kind].numpy(), len(forget_clips)
            forget_columns = _by_track(matrix[:, :count], forget_clips)
            holdout_columns = _by_track(matrix[:, count:], holdout_clips)
            pairs, holdout_pairs = _pairs(generations, forget_columns), _pairs(generations, holdout_columns)
            threshold, chance = chance_threshold([max(value for _, value in p) for p in holdout_pairs.values()])
            columns = np.stack([*forget_columns.values(), *holdout_columns.values()], 1)
            ranks = {
                track: min(
                    int((columns[i] > column[i]).sum()) + 1
                    for i, generation in enumerate(forget)
                    if generation.track == track
                )
                for track, column in forget_columns.items()
            }
            details = {
                "threshold": threshold, "holdout_tracks": len(holdout_pairs),
                "holdout_pairs": sum(map(len, holdout_pairs.values())), "chance": chance, "rank": ranks,
                "of": columns.shape[1], **({"too_short": sorted(short)} if short else {}),
            }  # fmt: skip
            yield from self._rows(evaluation, model, kind, pairs, details)

    def _short_tracks(self, evaluation: Evaluation) -> set[str]:
        """Tracks whose first window, which has the length of their generations, is too short."""
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
        best = {track: max(values, key=lambda pair: pair[1]) for track, values in pairs.items()}
        above = [[track, variant, x] for track, values in pairs.items() for variant, x in values if x > threshold]
        flagged = {str(track) for track, _, _ in above}
        tracks = {track: value for track, (_, value) in best.items()}
        yield mean_row(
            f"similarity_{kind}", model, "forget", tracks, evaluation,
            details={**details, "best": {track: variant for track, (variant, _) in best.items()}, "above": above},
        )  # fmt: skip
        low, high = stats.share_interval(len(flagged), len(tracks)) or (None, None)
        chance = details["chance"]
        of = f"{details['holdout_pairs']} pairs of {details['holdout_tracks']} holdout tracks"
        reached = f"by at most 1 % of the {of}" if chance <= CHANCE else f"by none of the {of}"
        yield Result(
            f"similarity_{kind}_flagged", model, "forget", len(flagged) / len(tracks), low, high, n=len(tracks),
            unit="share", per_track=tracks,
            details={"flagged": sorted(flagged), **{k: details[k] for k in ("threshold", "chance", "holdout_tracks")}},
            note=f"the threshold is exceeded {reached} with generations for their own captions; by chance about "
            f"{len(tracks) * chance:.1f} of {len(tracks)} tracks would be flagged",
        )  # fmt: skip


def _segments(clips: Sequence[Clip], frames: int) -> list[Clip]:
    """Clips split into segments of `frames` frames, to compare a generation with each part of a long track.

    A last segment of less than half that length is dropped, unless it is the only one.
    """
    return [
        Clip(clip.track, clip.caption, segment)
        for clip in clips
        for number, segment in enumerate(clip.codes.split(frames, -1))
        if not number or segment.shape[-1] >= frames / 2
    ]


def chance_threshold(values: Sequence[float]) -> tuple[float, float]:
    """A threshold that an exchangeable value exceeds with a probability of at most 1 %, and that probability.

    An exchangeable value exceeds the k-th of n values with probability (n + 1 - k) / (n + 1). With fewer than 99 values
    no threshold reaches 1 %; the highest value is returned, with probability 1 / (n + 1).
    """
    n = len(values)
    k = min(math.ceil((1 - CHANCE) * (n + 1) - 1e-9), n)
    return float(np.sort(values)[k - 1]), (n + 1 - k) / (n + 1)


def _pairs(
    generations: Sequence[CaptionGeneration], columns: Mapping[str, Floats]
) -> dict[str, list[tuple[str, float]]]:
    """Variant and similarity of each generation for a track's own caption, by track."""
    return {
        track: [(g.variant, float(column[i])) for i, g in enumerate(generations) if g.track == track]
        for track, column in columns.items()
    }


def _by_track(matrix: Floats, clips: Sequence[Clip]) -> dict[str, Floats]:
    """The maximum over each track's segments, [P], from one column per segment."""
    columns: dict[str, list[Floats]] = {}
    for clip, column in zip(clips, matrix.T, strict=True):
        columns.setdefault(clip.track, []).append(column)
    return {track: np.max(segments, 0) for track, segments in sorted(columns.items())}


# ----------------------------------------------------------------------------------------------------------- kinds


class MusicSimilarity(SimilarityMetric):
    """`chroma`: harmony over time, in any key and ±6 % of tempo. `melody`: intervals between notes. `onset`: rhythm."""

    kinds = ("chroma", "melody", "onset")

    def missing(self, evaluation: Evaluation) -> str:
        rate = next(iter(evaluation.models.values())).sample_rate
        return f"a sample rate of {rate} Hz is too low for notes" if rate < MIN_SAMPLE_RATE else ""

    def depends(self, evaluation: Evaluation) -> tuple[str, ...]:
        return (version("librosa"),)

    def similarities(
        self, evaluation: Evaluation, generations: Sequence[Tensor], references: Sequence[Tensor]
    ) -> Mapping[str, Floats]:
        from encore.metrics.similarity.music_features import harmony, melody, rhythm

        features = self._features(evaluation, [*generations, *references])
        first, second = features[: len(generations)], features[len(generations) :]
        return {"chroma": harmony(first, second), "melody": melody(first, second), "onset": rhythm(first, second)}

    def _features(self, evaluation: Evaluation, codes: Sequence[Tensor]) -> list[MusicFeatures]:
        """Features of each clip, computed once per distinct clip over all models."""
        from encore.metrics.similarity.music_features import extract_features

        rate = next(iter(evaluation.models.values())).sample_rate
        known: dict[bytes, MusicFeatures] = evaluation.cached("similarity_music", dict)
        keys = [clip.cpu().numpy().tobytes() for clip in codes]
        new = {key: clip for key, clip in zip(keys, codes, strict=True) if key not in known}
        known |= zip(new, extract_features([waveform(evaluation, clip) for clip in new.values()], rate), strict=True)
        return [known[key] for key in keys]


class CodeSimilarity(SimilarityMetric):
    """`bleu`: BLEU of the first codebook's codes. `edit`: 1 - their edit distance / the longer length."""

    kinds = ("bleu", "edit")

    def similarities(
        self, evaluation: Evaluation, generations: Sequence[Tensor], references: Sequence[Tensor]
    ) -> Mapping[str, Floats]:
        first, second = ([codes[0].tolist() for codes in clips] for clips in (generations, references))
        return {"bleu": bleu_similarities(first, second), "edit": edit_similarities(first, second)}


class EmbeddingSimilarity(SimilarityMetric):
    """`embedding`: cosine similarity of the embedder's vectors, centred on the mean of all tracks of the evaluation.

    Without centring, the large component that all vectors share would make any two clips similar.
    """

    kinds = ("embedding",)

    def depends(self, evaluation: Evaluation) -> tuple[str, ...]:
        tracks = [clip for clips in evaluation.clips.values() for clip in clips]
        return (evaluation.embedder.identity if evaluation.embedder else "", clips_sha256(tracks))

    def similarities(
        self, evaluation: Evaluation, generations: Sequence[Tensor], references: Sequence[Tensor]
    ) -> Mapping[str, Floats]:
        sets = [clips for clips, members in evaluation.clips.items() if members]
        centre = np.concatenate([evaluation.embeddings("audio", clips) for clips in sets]).mean(0)
        first, second = (evaluation.embed(clips) - centre for clips in (generations, references))
        return {"embedding": cosines(first, second)}


class FingerprintSimilarity(SimilarityMetric):
    """`fingerprint`: share of aligned Chromaprint frames that agree, as AcoustID compares recordings.

    Requires the system's libchromaprint, through pyacoustid.
    """

    kinds = ("fingerprint",)

    def missing(self, evaluation: Evaluation) -> str:
        import acoustid

        if not acoustid.have_chromaprint:
            return "the system has no libchromaprint"
        rate = next(iter(evaluation.models.values())).sample_rate
        return f"a sample rate of {rate} Hz is too low for a fingerprint" if rate < MIN_FINGERPRINT_RATE else ""

    def depends(self, evaluation: Evaluation) -> tuple[str, ...]:
        return (version("pyacoustid"),)

    def too_short(self, evaluation: Evaluation, codes: Tensor) -> bool:
        return self._fingerprint(evaluation, codes) is None

    def similarities(
        self, evaluation: Evaluation, generations: Sequence[Tensor], references: Sequence[Tensor]
    ) -> Mapping[str, Floats]:
        import acoustid

        first, second = (
            [self._fingerprint(evaluation, codes) for codes in clips] for clips in (generations, references)
        )
        matrix = [[acoustid.compare_fingerprints(a, b) if a and b else 0.0 for b in second] for a in first]
        return {"fingerprint": np.array(matrix)}

    def _fingerprint(self, evaluation: Evaluation, codes: Tensor) -> tuple[float, bytes] | None:
        """Seconds and fingerprint of codes [K, T]; None if they are too short (about 3 s)."""
        import acoustid
        import chromaprint

        rate = next(iter(evaluation.models.values())).sample_rate
        audio = waveform(evaluation, codes)
        samples = (audio.clip(-1, 1) * 32767).astype("<i2").tobytes()
        try:
            fingerprint = acoustid.fingerprint(rate, 1, iter([samples]))
        except acoustid.FingerprintGenerationError:  # shorter than one frame
            return None
        # Without a whole frame the fingerprint is only a header, and `compare_fingerprints` would divide by 0.
        return (len(audio) / rate, fingerprint) if chromaprint.decode_fingerprint(fingerprint)[0] else None


def waveform(evaluation: Evaluation, codes: Tensor) -> NDArray[np.float32]:
    """Decode codes [K, T] to a mono waveform [S]."""
    backend = next(iter(evaluation.models.values()))
    with torch.no_grad():
        return backend.decode(codes[None].to(backend.device))[0].float().mean(0).cpu().numpy()
