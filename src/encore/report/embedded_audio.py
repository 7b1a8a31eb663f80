"""Audio small enough to travel inside a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from encore.errors import InputError

# First what every browser supports and what is encoded to the same bytes every time; not every libsndfile has it.
FORMATS = (("MP3", "MPEG_LAYER_III", "audio/mpeg"), ("OGG", "VORBIS", "audio/ogg"))
LONGEST = 30.0  # seconds of a sample that are embedded
SMALL = 0.7  # 0 is the best quality, 1 the smallest file


def data_uri(samples: Any, rate: int) -> str:
    """Samples [S] or [S, C] at `rate` Hz, compressed, as the address of a page's audio element.

    Raises:
        InputError: the installed libsndfile can't write any of the formats at this rate.
    """
    samples = np.asarray(samples)[: round(LONGEST * rate)]
    for format_, subtype, media in FORMATS:
        buffer = io.BytesIO()
        try:
            soundfile.write(buffer, samples, rate, format=format_, subtype=subtype, compression_level=SMALL)
        except (soundfile.LibsndfileError, ValueError):
            continue
        return f"data:{media};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    raise InputError(f"audio of {rate} Hz can't be compressed here", "pip install -U soundfile")


def file_uri(path: Path) -> str:
    """A WAV file of ours, compressed.

    Raises:
        InputError: it can't be read.
    """
    try:
        with soundfile.SoundFile(path) as file:
            return data_uri(file.read(round(LONGEST * file.samplerate), dtype="float32"), file.samplerate)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path} can't be read: {error}", "run `encore eval` again") from error
