"""Notes → a Standard MIDI File → sound, by FluidSynth with the FluidR3 General-MIDI sound font (MIT)."""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from .synth import RATE

SOUND_FONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")  # Debian's fluid-soundfont-gm
TICKS = 480  # a quarter note
PEAK = 0.7


@dataclass(frozen=True)
class Note:
    """A note; `start` and `length` in quarter notes, `part` from 0, `velocity` 1–127."""

    start: float
    length: float
    pitch: int
    part: int
    velocity: int


def _variable(value: int) -> bytes:
    """A variable-length quantity: seven bits a byte, most significant first, all but the last with the high bit."""
    out = [value & 127]
    while value := value >> 7:
        out.append(value & 127 | 128)
    return bytes(reversed(out))


def encode(notes: list[Note], programs: list[int], bpm: float) -> bytes:
    """A Standard MIDI File of format 0; `programs` are General-MIDI numbers from 0, one a part."""
    events = [(0, 0, b"\xff\x51\x03" + round(60e6 / bpm).to_bytes(3, "big"))]
    # Channel 9 is percussion's.
    channels = [c for c in range(16) if c != 9][: len(programs)]
    events += [(0, 1, bytes([0xC0 | c, program])) for c, program in zip(channels, programs, strict=True)]
    for note in notes:
        start, end = round(note.start * TICKS), round((note.start + note.length) * TICKS)
        channel = channels[note.part]
        events.append((start, 3, bytes([0x90 | channel, note.pitch, note.velocity])))
        events.append((max(end, start + 1), 2, bytes([0x80 | channel, note.pitch, 0])))  # an end before a start
    track, now = b"", 0
    for tick, _, message in sorted(events):
        track += _variable(tick - now) + message
        now = tick
    track += b"\x00\xff\x2f\x00"
    header = (6).to_bytes(4, "big") + (0).to_bytes(2, "big") + (1).to_bytes(2, "big") + TICKS.to_bytes(2, "big")
    return b"MThd" + header + b"MTrk" + len(track).to_bytes(4, "big") + track


def render(midi: bytes, samples: int) -> NDArray[np.int16]:
    """The first `samples` of the sound at `RATE`, mono, its peak at `PEAK`.

    Raises:
        SystemExit: FluidSynth or the sound font is missing.
        RuntimeError: FluidSynth failed.
    """
    if not shutil.which("fluidsynth") or not SOUND_FONT.exists():
        raise SystemExit(f"needs fluidsynth and {SOUND_FONT}: apt-get install fluidsynth fluid-soundfont-gm")
    with tempfile.TemporaryDirectory() as folder:
        score, sound = Path(folder) / "score.mid", Path(folder) / "sound.wav"
        score.write_bytes(midi)
        options = ["-ni", "-g", "0.5", "-r", str(RATE), "-o", "synth.dynamic-sample-loading=1", "-F", str(sound)]
        done = subprocess.run(["fluidsynth", *options, str(SOUND_FONT), str(score)], capture_output=True, text=True)
        if done.returncode or not sound.exists():
            raise RuntimeError(f"fluidsynth failed: {done.stderr.strip()}")
        audio = soundfile.read(sound, dtype="float32", always_2d=True)[0].mean(1)[:samples]
    audio = np.pad(audio, (0, samples - len(audio)))
    return np.round(audio * (PEAK * 32767 / max(float(np.abs(audio).max()), 1e-6))).astype(np.int16)
