"""Decode an audio file to samples at a model's sample rate and channels; doubtful files are refused.

The result is exactly what FFmpeg decodes, or an error. Order of checks, cheapest first: a regular file, its size, its
container (complete?), declared channels, rate and length; then per block: length, NaN and infinity, peak; last the
declared length, and silence. Memory beyond the result does not grow with a file's length, whatever a header declares.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from encore.data.container_facts import Unsupported
from encore.data.containers import Damage, behind_junk, inspect
from encore.data.open_files import open_regular
from encore.data.pyav import NotAudio, Stream, open_av
from encore.data.resample import Samples, mix, resample
from encore.errors import InputError
from encore.text import printable

MAX_BYTES = 4 << 30
MAX_SECONDS = 3_600.0
MIN_SECONDS = 0.1
MAX_CHANNELS = 32
MAX_SAMPLES = 400_000_000
"""Rate × channels × seconds; an hour of 48 kHz stereo is 345.6 million."""
MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_PEAK = 8.0
"""Full scale is 1; MP3 and float files overshoot it a little. A higher peak means a wrong scale."""
SILENCE = 1e-5
"""A lower peak (-100 dB of full scale) is silence."""


@dataclass(frozen=True)
class Audio:
    """One decoded file.

    Args:
        samples: float32 [C, S].
        sample_rate: Hz of `samples`.
        sha256_pcm: of the decoded samples at the file's rate and channels (float32, little-endian, interleaved), after
            a header with rate and channels; a WAV and its FLAC share it, at any `sample_rate`.
        source_rate: sample rate of the file, Hz.
        source_channels: channels of the file.
        frames_declared: exact number declared by the container; None without one.
        frames_decoded: number of decoded frames.
        format: "wav", "flac", "mp3", "ogg", "aiff", "mp4", "matroska" …, or FFmpeg's name of the container.
    """

    samples: Samples
    sample_rate: int
    sha256_pcm: str
    source_rate: int
    source_channels: int
    frames_declared: int | None
    frames_decoded: int
    format: str

    @property
    def seconds(self) -> float:
        """Length as decoded."""
        return self.frames_decoded / self.source_rate


def load(
    path: Path | str,
    *,
    sample_rate: int,
    channels: int = 1,
    max_seconds: float = MAX_SECONDS,
    allow_silence: bool = False,
) -> Audio:
    """Decode a file, mix it to `channels` and resample it to `sample_rate`.

    FFmpeg's libraries (PyAV) decode every format, as `ffmpeg -i` does; an encoder's delay and padding are trimmed where
    the file declares them.

    Args:
        path: a regular file.
        sample_rate: of the result, Hz.
        channels: of the result: 1 is the mean of all; 2 from mono repeats it; see `resample.mix`.
        max_seconds: longest accepted file.
        allow_silence: accept a silent file.

    Raises:
        InputError: no audio, incomplete, outside the limits above, NaN or infinite samples, silence, or unreadable.
    """
    name = printable(path)
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size == 0:
            raise InputError(f"{name} is empty")
        if size > MAX_BYTES:
            raise InputError(f"{name} is larger than {MAX_BYTES >> 30} GiB", "cut it into pieces")
        try:
            decoder = _open(stream, name, max_seconds)
            _check_declared(decoder, name, max_seconds)
            return _decode(decoder, name, sample_rate, channels, max_seconds, allow_silence)
        except Damage as damage:
            raise InputError(f"{name} is incomplete: it {damage}", "copy it again from its source") from damage
        except Unsupported as kind:
            raise InputError(f"{name} can't be decoded: it {kind}", "convert it to FLAC or WAV") from kind
        except OSError as error:
            raise InputError(f"{name} can't be read: {error.strerror or printable(error)}") from error


def _open(stream: BinaryIO, name: str, max_seconds: float) -> Stream:
    container = inspect(stream)
    if container.frames is not None and container.rate:  # before anything is allocated by an untrusted header
        _check_seconds(container.frames / container.rate, name, max_seconds)
    try:
        try:
            return open_av(stream, container, name)
        except NotAudio:
            hidden = None if container.demuxer else behind_junk(stream)
            if hidden is None:
                raise
            container = hidden
            return open_av(stream, container, name)
    except NotAudio as error:
        if container.demuxer:
            raise InputError(f"{name} can't be decoded: {error}", "the file is damaged, or of another kind") from error
        raise InputError(f"{name} is not in an audio format that Encore reads", "convert it to FLAC or WAV") from error


def _check_declared(decoder: Stream, name: str, max_seconds: float) -> None:
    if not 1 <= decoder.channels <= MAX_CHANNELS:
        raise InputError(
            f"{name} has {decoder.channels or 'no, or too many,'} channels; at most {MAX_CHANNELS} are read"
        )
    if not MIN_RATE <= decoder.rate <= MAX_RATE:
        raise InputError(
            f"{name} has a sample rate of {decoder.rate} Hz; {MIN_RATE:,} to {MAX_RATE:,} Hz are read",
            "the header may be damaged",
        )
    frames = max(decoder.frames or 0, decoder.least)
    _check_seconds(frames / decoder.rate, name, max_seconds)
    _check_samples(frames, decoder.channels, name)


def _check_samples(frames: int, channels: int, name: str) -> None:
    if frames * channels > MAX_SAMPLES:
        raise InputError(
            f"{name} has {frames * channels:,} samples in {channels} channels; at most {MAX_SAMPLES:,} are read",
            "cut it into pieces, or mix it down to stereo",
        )


def _check_seconds(seconds: float, name: str, limit: float) -> None:
    if seconds > limit:
        raise InputError(f"{name} lasts {seconds:,.0f} s; at most {limit:,.0f} s are read", "cut it into pieces")


def _decode(
    decoder: Stream, name: str, sample_rate: int, channels: int, max_seconds: float, allow_silence: bool
) -> Audio:
    digest = hashlib.sha256(f"{decoder.rate} {decoder.channels}\n".encode())
    decoded, peak = 0, 0.0

    def checked() -> Iterator[Samples]:
        nonlocal decoded, peak
        for block in decoder.blocks:
            decoded += len(block)
            _check_seconds(decoded / decoder.rate, name, max_seconds)
            _check_samples(decoded, decoder.channels, name)
            loudest = float(np.abs(block).max(initial=0.0))  # NaN where one sample is
            if not np.isfinite(loudest):
                raise InputError(f"{name} has samples that are NaN or infinite", "render it again")
            peak = max(peak, loudest)
            if peak > MAX_PEAK:
                raise InputError(f"{name} peaks at {peak:.3g} where full scale is 1", "normalise it")
            digest.update(np.ascontiguousarray(block, dtype="<f4").data)
            yield mix(block, channels, name)

    try:
        expected = decoder.frames or (decoder.least and decoder.least + decoder.rate // 5)
        samples = resample(checked(), decoder.rate, sample_rate, channels, expected)
    except MemoryError as error:
        raise InputError(f"{name} does not fit into memory", "cut it into pieces") from error
    if decoded < decoder.least or decoder.frames not in {None, decoded}:
        declared = decoder.least if decoder.frames is None else decoder.frames
        raise Damage(f"declares {declared:,} frames and has {decoded:,}")
    if decoded < MIN_SECONDS * decoder.rate or samples.shape[1] == 0:
        raise InputError(f"{name} has {decoded:,} frames of audio, less than {MIN_SECONDS} s")
    if peak < SILENCE and not allow_silence:
        raise InputError(f"{name} is silent")
    return Audio(
        samples,
        sample_rate,
        digest.hexdigest(),
        decoder.rate,
        decoder.channels,
        decoder.frames,
        decoded,
        decoder.format,
    )
