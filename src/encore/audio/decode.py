"""Decoding: an audio file to samples at the rate and channels a model wants, with everything doubtful refused.

Order of checks, cheapest first: a regular file, its size, its container (is it whole?), declared channels, rate and
length, then block by block: length again, NaN and infinity, peak, silence. Memory is bounded by the caps, whatever a
header says.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from encore.audio.containers import Container, Damage, inspect
from encore.audio.files import open_regular
from encore.audio.shape import Samples, mix, resample
from encore.audio.text import printable
from encore.errors import InputError

MAX_BYTES = 4 << 30
MAX_SECONDS = 3_600.0
MIN_SECONDS = 0.1
MAX_CHANNELS = 32
MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_PEAK = 8.0
"""Full scale is 1; MP3 and float files overshoot it a little. Beyond this the scale itself is wrong."""
SILENCE = 1e-5
"""A peak below -100 dB of full scale: nothing to hear, nothing to forget."""
BLOCK = 16_384
"""Frames decoded at a time."""

_EXACT = frozenset({"wav", "aiff", "flac", "ogg"})
"""Formats whose decoded length is the declared one, to the frame."""


@dataclass(frozen=True)
class Audio:
    """One decoded file.

    Args:
        samples: float32 [C, S].
        sample_rate: Hz of `samples`.
        sha256_pcm: of the decoded samples as the file has them (its own rate and channels, float32, little-endian,
            interleaved), after a header with rate and channels; so a WAV and its FLAC share it, at any `sample_rate`.
        source_rate, source_channels: the file's own.
        frames_declared: by the container; None where it doesn't say. frames_decoded: what came out.
        format: "wav", "flac", "mp3", "ogg", "aiff" or PyAV's name of the container.
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


@dataclass
class Stream:
    """An open decoder: what it declares, and its blocks, float32 [frames, channels]."""

    rate: int
    channels: int
    frames: int | None
    format: str
    blocks: Iterator[Samples]


def load(
    path: Path | str,
    *,
    sample_rate: int,
    channels: int = 1,
    max_seconds: float = MAX_SECONDS,
    allow_silence: bool = False,
) -> Audio:
    """Decode a file, mix it to `channels` and resample it to `sample_rate`.

    libsndfile reads WAV, RF64, Wave64, AIFF, FLAC, MP3, Ogg Vorbis and Opus; anything else goes to PyAV.

    Args:
        path: a regular file. channels: 1 is the mean of all; 2 from mono is twice the same; see `shape.mix`.

    Raises:
        InputError: no audio, not whole, out of the limits above, NaN or infinite samples, silence.
        MissingExtraError: a format only PyAV reads, and PyAV is not installed.
    """
    name = printable(path)
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size == 0:
            raise InputError(f"{name} is empty")
        if size > MAX_BYTES:
            raise InputError(f"{name} is larger than {MAX_BYTES >> 30} GiB", "cut it into pieces")
        container = _container(stream, name)
        decoder = _open(stream, container, name, max_seconds)
        declared = container.frames if decoder.frames is None else decoder.frames
        _check_declared(decoder, container, name, max_seconds)
        return _decode(decoder, declared, name, sample_rate, channels, max_seconds, allow_silence)


def _container(stream: BinaryIO, name: str) -> Container:
    try:
        container = inspect(stream)
    except Damage as damage:
        raise InputError(f"{name} is not whole: it {damage}", "copy it again from its source") from damage
    if container is None:
        raise InputError(f"{name} is not audio that Encore knows", "its first bytes are of no audio format")
    return container


def _open(stream: BinaryIO, container: Container, name: str, max_seconds: float) -> Stream:
    if container.kind == "other":
        from encore.audio.av import open_av

        stream.seek(0)
        return open_av(stream, name, BLOCK)
    if container.frames is not None and container.rate:  # before libsndfile allocates or seeks by a lying header
        _check_seconds(container.frames / container.rate, name, max_seconds)
    return _open_soundfile(stream, container, name)


def _open_soundfile(stream: BinaryIO, container: Container, name: str) -> Stream:
    import soundfile

    try:
        # By descriptor: the name may not be UTF-8, and the file that was checked is the file that is decoded.
        os.lseek(stream.fileno(), 0, os.SEEK_SET)  # a seek of the buffered stream may move only within its buffer
        file = soundfile.SoundFile(stream.fileno(), closefd=False)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} can't be decoded: {_reason(error)}", "the file is damaged, or of another kind"
        ) from error

    def blocks() -> Iterator[Samples]:
        with file:
            while True:
                try:
                    block: Samples = file.read(BLOCK, dtype="float32", always_2d=True)
                except soundfile.SoundFileError as error:
                    raise InputError(f"{name} is damaged: {_reason(error)}", "copy it again from its source") from error
                if not len(block):
                    return
                yield block

    # A headerless MP3's length is libsndfile's estimate; the walk over its frames counted.
    frames = file.frames if 0 < file.frames < 2**62 else None
    return Stream(file.samplerate, file.channels, frames, container.kind, blocks())


def _reason(error: Exception) -> str:
    # libsndfile's own words, without the descriptor's number that soundfile puts before them
    return printable(getattr(error, "error_string", error)).rstrip(".")


def _check_declared(decoder: Stream, container: Container, name: str, max_seconds: float) -> None:
    if not 1 <= decoder.channels <= MAX_CHANNELS:
        raise InputError(f"{name} has {decoder.channels} channels; at most {MAX_CHANNELS} are read")
    if not MIN_RATE <= decoder.rate <= MAX_RATE:
        raise InputError(
            f"{name} has a sample rate of {decoder.rate} Hz; {MIN_RATE:,} to {MAX_RATE:,} Hz are read",
            "the header may be damaged",
        )
    for frames in (decoder.frames, container.frames):
        if frames is not None:
            _check_seconds(frames / decoder.rate, name, max_seconds)


def _check_seconds(seconds: float, name: str, limit: float) -> None:
    if seconds > limit:
        raise InputError(f"{name} lasts {seconds:,.0f} s; at most {limit:,.0f} s are read", "cut it into pieces")


def _decode(
    decoder: Stream,
    declared: int | None,
    name: str,
    sample_rate: int,
    channels: int,
    max_seconds: float,
    allow_silence: bool,
) -> Audio:
    digest = hashlib.sha256(f"{decoder.rate} {decoder.channels}\n".encode())
    decoded, peak = 0, 0.0

    def checked() -> Iterator[Samples]:
        nonlocal decoded, peak
        for block in decoder.blocks:
            decoded += len(block)
            _check_seconds(decoded / decoder.rate, name, max_seconds)
            if not np.isfinite(block).all():
                raise InputError(f"{name} has samples that are no numbers (NaN or infinite)", "render it again")
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
            if peak > MAX_PEAK:
                raise InputError(f"{name} peaks at {peak:.3g} where full scale is 1", "normalise it")
            digest.update(np.ascontiguousarray(block, dtype="<f4").tobytes())
            yield mix(block, channels, name)

    try:
        samples = resample(checked(), decoder.rate, sample_rate, channels)
    except MemoryError as error:
        raise InputError(f"{name} does not fit into memory", "cut it into pieces") from error
    # One MP3 frame of slack: decoders differ in whether they drop the encoder's padding.
    slack = 1152 if decoder.format == "mp3" else decoder.rate // 10 if decoder.format not in _EXACT else 0
    if declared is not None and decoded < declared - slack:
        raise InputError(
            f"{name} is not whole: it declares {declared:,} frames and gives {decoded:,}",
            "copy it again from its source",
        )
    if decoded < MIN_SECONDS * decoder.rate or samples.shape[1] == 0:
        raise InputError(f"{name} has {decoded:,} frames of audio, less than {MIN_SECONDS} s")
    if peak < SILENCE and not allow_silence:
        raise InputError(f"{name} is silent")
    return Audio(
        samples, sample_rate, digest.hexdigest(), decoder.rate, decoder.channels, declared, decoded, decoder.format
    )
