"""Artefacts of generations: silence, clipping, noise and loops that base's own generations do not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from encore.api import ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.memorization.verbatim import MODELS
from encore.metrics.rows import available_roles, mean_row, no_clips, not_finite, unmeasured
from encore.metrics.utility.embedding_distance import generation_clips, mean_per_track

Floats = NDArray[np.float64]
FRAME_SECONDS = 0.05  # in which silence is looked for
SILENT = 10 ** (-60 / 20)  # root mean square of a silent frame, relative to full scale
CLIPPED = 0.999  # amplitude from which on a sample is clipped
WINDOW = 1024  # samples per spectrum
LEAST_LAG_SECONDS = 0.25  # of a loop
MARGINS: Mapping[str, float] = {"silence": 0.25, "clipping": 0.01, "noise": 0.1, "loops": 0.25}  # beyond base's highest
SETS: tuple[ClipSet, ...] = ("retain", "forget")


class Artefacts(Metric):
    """Share of generations from captions with silence, clipping, noise or loops beyond base's generations.

    A model may keep its retain NLL and generate noise all the same. Four measures of each generation's audio x:

    - silence: share of 50 ms frames whose root mean square is below -60 dB of full scale;
    - clipping: share of samples with |x| ≥ .999;
    - noise: spectral flatness (Wiener entropy; Gray and Markel, IEEE Trans. ASSP 22, 1974), the geometric over the
      arithmetic mean of the power spectrum, averaged over spectra of 1024 samples that are not silent; white noise .56;
    - loops: the highest normalised autocorrelation 2 Σ x(t) x(t + τ) / Σ (x(t)² + x(t + τ)²) at lags τ from 0.25 s to
      half of the generation; 1 for an exact repetition or a constant tone.

    Music has all of them to some degree, so base sets the scale: a generation is named where a measure is above the
    highest of base's generations for retain captions by more than a margin (`MARGINS`). Rows `artefacts` have the share
    of named generations, of retain and forget captions; `details["named"]` has track, measure and figure. Further rows
    `artefacts_silence`, `_clipping`, `_noise`, `_loops` have the means.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        if reason := not_finite(evaluation, "base", "retain"):
            yield unmeasured("artefacts", "base", "retain", reason, unit="share")
            return
        highest = {name: float(of_all.max()) for name, of_all in _measures(evaluation, "base", "retain").items()}
        for clips in SETS:
            if not evaluation.clips.get(clips):
                yield no_clips("artefacts", clips, unit="share")
                continue
            for model in available_roles(evaluation, *MODELS):
                if reason := not_finite(evaluation, model, clips):
                    yield unmeasured("artefacts", model, clips, reason, unit="share")
                else:
                    yield from _rows(evaluation, model, clips, highest)


def _rows(evaluation: Evaluation, model: Role, clips: ClipSet, highest: Mapping[str, float]) -> Iterator[Result]:
    measures, members = _measures(evaluation, model, clips), generation_clips(evaluation, clips)
    limits = {name: highest[name] + margin for name, margin in MARGINS.items()}
    named = [
        (clip.track, name, float(measures[name][i]))
        for i, clip in enumerate(members) for name in MARGINS if measures[name][i] > limits[name]
    ]  # fmt: skip
    tracks = {track for track, _, _ in named}
    spoilt = np.any([measures[name] > limits[name] for name in MARGINS], 0).astype(float)
    yield Result(
        "artefacts", model, clips, float(spoilt.mean()), n=len(members), unit="share", direction="lower",
        per_track=mean_per_track(members, spoilt.tolist()),
        details={"named": [list(entry) for entry in named], "tracks": sorted(tracks), "limits": limits},
    )  # fmt: skip
    for name, values in measures.items():
        means = mean_per_track(members, values.tolist())
        yield mean_row(f"artefacts_{name}", model, clips, means, evaluation, direction="base")


def _measures(evaluation: Evaluation, model: Role, clips: ClipSet) -> dict[str, Floats]:
    """Each measure of a model's generations, [N], in the order of `generation_clips`."""
    return evaluation.cached(("artefacts", model, clips), lambda: _listen(evaluation, model, clips))


@torch.no_grad()
def _listen(evaluation: Evaluation, model: Role, clips: ClipSet) -> dict[str, Floats]:
    backend = evaluation.backend(model)
    measured = []
    for codes in evaluation.generations(model, clips):
        audio = backend.decode(codes[None].to(backend.device))[0].double().cpu().numpy()  # [C, S]
        measured.append(measures_of(audio, backend.sample_rate))
    return {name: np.array([of_one[name] for of_one in measured]) for name in MARGINS}


def measures_of(audio: Floats, sample_rate: int) -> dict[str, float]:
    """The measures of one waveform; audio that is not finite counts as noise.

    Args:
        audio: [C, S].
        sample_rate: Hz.
    """
    if not np.isfinite(audio).all():
        return {"silence": 0.0, "clipping": 0.0, "noise": 1.0, "loops": 0.0}
    mono = audio.mean(0)
    return {
        "silence": _silence(mono, round(FRAME_SECONDS * sample_rate)),
        "clipping": float((np.abs(audio) >= CLIPPED).mean()),
        "noise": _flatness(mono),
        "loops": _repetition(mono, round(LEAST_LAG_SECONDS * sample_rate)),
    }


def _silence(audio: Floats, frame: int) -> float:
    frame = max(1, min(frame, len(audio)))
    frames = audio[: len(audio) // frame * frame].reshape(-1, frame)
    return float((np.sqrt((frames**2).mean(1)) < SILENT).mean())


def _flatness(audio: Floats) -> float:
    """Mean spectral flatness of the spectra that are not silent; 0 if all are."""
    size = min(WINDOW, len(audio))
    segments = np.lib.stride_tricks.sliding_window_view(audio, size)[:: max(1, size // 2)]
    segments = segments[np.sqrt((segments**2).mean(1)) >= SILENT]
    if not len(segments):
        return 0.0
    power = np.abs(np.fft.rfft(segments * np.hanning(size), axis=1))[:, 1:] ** 2 + 1e-12
    return float((np.exp(np.log(power).mean(1)) / power.mean(1)).mean())


def _repetition(audio: Floats, least_lag: int) -> float:
    """Highest normalised autocorrelation at lags from `least_lag` to half of the audio; 0 of silence."""
    count = len(audio)
    lags = np.arange(least_lag, count // 2 + 1)
    if not len(lags) or np.sqrt((audio**2).mean()) < SILENT:
        return 0.0
    products = np.fft.irfft(np.abs(np.fft.rfft(audio, 2 * count)) ** 2)[lags]
    energy = np.concatenate([[0.0], np.cumsum(audio**2)])
    both = energy[count] - energy[lags] + energy[count - lags]
    ratios = 2 * products[both > 0] / both[both > 0]
    return max(0.0, float(ratios.max(initial=0.0)))
