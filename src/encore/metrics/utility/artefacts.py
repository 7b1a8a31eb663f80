"""Artefacts of generations: silence, clipping, noise and loops that base's own generations do not have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encore.api import Backend, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.memorization.verbatim import MODELS
from encore.metrics.rows import available_roles, mean_row, no_clips, not_finite, unmeasured
from encore.metrics.utility.embedding_distance import first_window_indices, generation_clips, mean_per_track

Floats = NDArray[np.float64]
FRAME_SECONDS = 0.032  # of silence and spectra
BELOW_BASE = 24.0  # dB by which a silent frame is below the median frame of base's generations
CLIPPED = 0.999  # amplitude from which on a sample is clipped
LEAST_LAG_SECONDS = 0.25  # of a loop
MARGINS: Mapping[str, float] = {"silence": 0.25, "clipping": 0.01, "flatness": 0.1, "flux": 0.035, "loops": 0.1}
LOOP = 0.95  # highest limit of loops, unless a track or base repeats as exactly: codes that repeat give .98 or more
KINDS: Mapping[str, str] = {"flatness": "noise", "flux": "noise"}  # other measures are kinds of their own
SETS: tuple[ClipSet, ...] = ("retain", "forget")


class Artefacts(Metric):
    """Share of generations from captions with silence, clipping, noise or loops beyond base's generations.

    A model may keep its retain NLL and generate noise all the same. Five measures of each generation's audio x, whose
    frames have 32 ms:

    - silence: share of frames whose root mean square is 24 dB below the median frame of base's generations;
    - clipping: share of samples with |x| ≥ .999;
    - flatness: spectral flatness (Wiener entropy), the geometric over the arithmetic mean of the power spectrum,
      averaged over frames; white noise .56 (Gray and Markel, IEEE Trans. ASSP 22, 1974);
    - flux: 1 - cosine of the magnitude spectra of two consecutive frames, averaged; white noise .21 (1 - π/4, as
      magnitudes are Rayleigh-distributed), and random codes too, whose spectra are not flat;
    - loops: the highest normalised autocorrelation 2 Σ x(t) x(t + τ) / Σ (x(t)² + x(t + τ)²) at lags τ from 0.25 s to
      half of the generation; 1 for an exact repetition or a constant tone.

    Spectra are of frames that are not silent. Music has all of them to some degree, so base sets the scale: a
    generation is flagged where a measure is above the highest of base's generations for the same captions by more than
    `MARGINS`. For loops the retain and forget tracks count as well, because base's few generations would call music a
    loop (of the embedded ones loops reach .56, of a tune that returns .80); that limit is at most .95, unless a track
    or base itself repeats as exactly. Rows `artefacts` have the share of flagged generations, of retain and forget
    captions; `details["flagged"]` has track, kind ("noise" for flatness and flux), measure and figure; rows
    `artefacts_MEASURE` have the means.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        if reason := not_finite(evaluation, "base", "retain"):
            yield unmeasured("artefacts", "base", "retain", reason, unit="share")
            return
        silent = _silent_level(evaluation)
        sets = [clips for clips in SETS if evaluation.clips.get(clips)]
        of_base = [_measures(evaluation, "base", clips, silent) for clips in sets]
        highest = {name: max(float(one[name].max()) for one in of_base) for name in MARGINS}
        highest["loops"] = max(highest["loops"], *(_most_repeated(evaluation, clips, silent) for clips in sets))
        limits = {name: highest[name] + margin for name, margin in MARGINS.items()}
        if highest["loops"] < LOOP:
            limits["loops"] = min(limits["loops"], LOOP)
        for clips in SETS:
            if not evaluation.clips.get(clips):
                yield no_clips("artefacts", clips, unit="share")
                continue
            for model in available_roles(evaluation, *MODELS):
                if reason := not_finite(evaluation, model, clips):
                    yield unmeasured("artefacts", model, clips, reason, unit="share")
                else:
                    yield from _rows(evaluation, model, clips, _measures(evaluation, model, clips, silent), limits)


def _rows(
    evaluation: Evaluation, model: Role, clips: ClipSet, measures: Mapping[str, Floats], limits: Mapping[str, float]
) -> Iterator[Result]:
    members = generation_clips(evaluation, clips)
    flagged = [
        (clip.track, KINDS.get(name, name), name, float(measures[name][i]))
        for i, clip in enumerate(members) for name in MARGINS if measures[name][i] > limits[name]
    ]  # fmt: skip
    spoilt = np.any([measures[name] > limits[name] for name in MARGINS], 0).astype(float)
    yield Result(
        "artefacts", model, clips, float(spoilt.mean()), n=len(members), unit="share", direction="lower",
        per_track=mean_per_track(members, spoilt.tolist()),
        details={"flagged": [list(entry) for entry in flagged], "limits": dict(limits)},
    )  # fmt: skip
    for name, values in measures.items():
        means = mean_per_track(members, values.tolist())
        yield mean_row(f"artefacts_{name}", model, clips, means, evaluation, direction="base")


@torch.no_grad()
def _decoded(backend: Backend, sequences: Iterable[Tensor]) -> Iterator[Floats]:
    """The waveform [C, S] of each sequence of codes [K, T]."""
    for codes in sequences:
        yield backend.decode(codes[None].to(backend.device))[0].double().cpu().numpy()


def _measures(evaluation: Evaluation, model: Role, clips: ClipSet, silent: float) -> dict[str, Floats]:
    """Each measure of a model's generations, [N], in the order of `generation_clips`."""

    def measure() -> dict[str, Tensor]:
        backend = evaluation.backend(model)
        waveforms = _decoded(backend, evaluation.generations(model, clips))
        measured = [measures_of(audio, backend.sample_rate, silent) for audio in waveforms]
        return {name: torch.tensor([of_one[name] for of_one in measured], dtype=torch.float64) for name in MARGINS}

    key = ("artefacts", clips, silent)
    found = evaluation.cached_on_disk(key, measure, models=[model], clips=evaluation.clips[clips])
    return {name: found[name].numpy() for name in MARGINS}


def _most_repeated(evaluation: Evaluation, clips: ClipSet, silent: float) -> float:
    """Highest `loops` of a set's tracks, of as many frames as base generates."""

    def measure() -> dict[str, Tensor]:
        backend = evaluation.backend("base")
        frames = max(codes.shape[-1] for codes in evaluation.generations("base", clips))
        tracks = [evaluation.clips[clips][i].codes[:, :frames] for i in first_window_indices(evaluation, clips)]
        loops = [measures_of(audio, backend.sample_rate, silent)["loops"] for audio in _decoded(backend, tracks)]
        return {"": torch.tensor(loops, dtype=torch.float64).amax()}

    key = ("artefacts_tracks", clips, silent)
    return float(evaluation.cached_on_disk(key, measure, models=["base"], clips=evaluation.clips[clips])[""])


def _silent_level(evaluation: Evaluation) -> float:
    """Root mean square below which a frame is silent, from base's generations."""

    def measure() -> dict[str, Tensor]:
        backend = evaluation.backend("base")
        waveforms = _decoded(backend, evaluation.generations("base", "retain"))
        levels = [_levels(_frames(audio.mean(0), backend.sample_rate)) for audio in waveforms]
        return {"": torch.from_numpy(np.concatenate(levels))}

    key = ("artefacts_levels", "retain")
    levels = evaluation.cached_on_disk(key, measure, models=["base"], clips=evaluation.clips["retain"])[""]
    return float(np.median(levels.numpy())) * 10 ** (-BELOW_BASE / 20)


def measures_of(audio: Floats, sample_rate: int, silent: float) -> dict[str, float]:
    """The measures of one waveform; audio that is not finite counts as noise.

    Args:
        audio: [C, S].
        sample_rate: Hz.
        silent: root mean square below which a frame is silent.
    """
    if not np.isfinite(audio).all():
        return dict.fromkeys(MARGINS, 0.0) | {"flatness": 1.0, "flux": 1.0}
    mono = audio.mean(0)
    frames = _frames(mono, sample_rate)
    loud = _levels(frames) >= silent
    spectra = np.abs(np.fft.rfft(frames * np.hanning(frames.shape[1]), axis=1))[:, 1:]
    return {
        "silence": float(1 - loud.mean()),
        "clipping": float((np.abs(audio) >= CLIPPED).mean()),
        "flatness": _flatness(spectra[loud]),
        "flux": _flux(spectra, loud),
        "loops": _repetition(mono, round(LEAST_LAG_SECONDS * sample_rate)) if loud.any() else 0.0,
    }


def _frames(audio: Floats, sample_rate: int) -> Floats:
    """Audio [S] as frames [F, samples], without a rest."""
    size = max(4, min(round(FRAME_SECONDS * sample_rate), len(audio)))
    return np.resize(audio, (max(1, len(audio) // size), size))


def _levels(frames: Floats) -> Floats:
    return np.asarray(np.sqrt((frames**2).mean(1)))


def _flatness(spectra: Floats) -> float:
    """Mean spectral flatness of magnitudes [F, bins]; 0 without frames."""
    if not len(spectra):
        return 0.0
    power = spectra**2 + 1e-20
    return float((np.exp(np.log(power).mean(1)) / power.mean(1)).mean())


def _flux(spectra: Floats, loud: NDArray[np.bool_]) -> float:
    """Mean change of the spectrum from a frame to the next, both loud; 0 without such a pair."""
    directions = spectra / np.maximum(np.linalg.norm(spectra, axis=1, keepdims=True), 1e-20)
    changes = 1 - (directions[1:] * directions[:-1]).sum(1)[loud[1:] & loud[:-1]]
    return float(changes.mean()) if len(changes) else 0.0


def _repetition(audio: Floats, least_lag: int) -> float:
    """Highest normalised autocorrelation at lags from `least_lag` to half of the audio."""
    count = len(audio)
    lags = np.arange(max(1, least_lag), count // 2 + 1)
    products = np.fft.irfft(np.abs(np.fft.rfft(audio, 2 * count)) ** 2)[lags]
    energy = np.concatenate([[0.0], np.cumsum(audio**2)])
    both = energy[count] - energy[lags] + energy[count - lags]
    ratios = 2 * products[both > 0] / both[both > 0]
    return float(ratios.max(initial=0.0))
