"""Decoding through PyAV (the `aac` extra): AAC, ALAC, WMA, Matroska and what else libsndfile doesn't read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from encore.audio.text import printable
from encore.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from encore.audio.decode import Stream
    from encore.audio.shape import Samples


def open_av(stream: BinaryIO, name: str, block: int) -> Stream:
    """Open the first audio stream of a file.

    Args:
        stream: the open file. name: how messages call it. block: frames at a time, about.

    Raises:
        InputError: PyAV finds no audio in it.
        MissingExtraError: PyAV is not installed.
    """
    from encore.audio.decode import Stream

    try:
        import av
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is of a format that only PyAV reads, and it is not installed", 'pip install "encore-music[aac]"'
        ) from error
    try:
        container: Any = av.open(stream, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise InputError(f"{name} can't be decoded: {printable(error)}", "the file is damaged, or no audio") from error
    if not container.streams.audio:
        container.close()
        raise InputError(f"{name} has no audio in it")
    track = container.streams.audio[0]
    rate, channels = int(track.rate or 0), int(track.channels or 0)
    seconds = track.duration * track.time_base if track.duration and track.time_base else None
    frames = int(seconds * rate) if seconds and seconds > 0 else None

    def blocks() -> Iterator[Samples]:
        # Interleaved float32 at the file's own rate: the resampler only changes the sample format.
        convert = av.AudioResampler(format="flt", layout=track.layout, rate=rate, frame_size=block)
        try:
            for frame in container.decode(track):
                for part in convert.resample(frame):
                    yield _samples(part, channels)
            for part in convert.resample(None):
                yield _samples(part, channels)
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise InputError(f"{name} is damaged: {printable(error)}", "copy it again from its source") from error
        finally:
            container.close()

    return Stream(rate, channels, frames, str(container.format.name), blocks())


def _samples(frame: Any, channels: int) -> Samples:
    array: Samples = frame.to_ndarray().reshape(-1, channels).astype(np.float32, copy=False)
    return array
