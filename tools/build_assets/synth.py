"""A small numpy/scipy synthesiser and arranger: a Score in, five seconds of 16 kHz mono out.

Every sound of an instrument at a pitch is computed once and then shaped, as in a sampler, and every onset falls on the
codec's 20 ms frame grid. Both are musically inaudible, and both make the same note give much the same codec tokens in
another song: so a model can learn the instruments from the background clips and apply them to music it never heard.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, lfilter

from .scores import Score, parse_chords, parse_melody

RATE = 16_000
SECONDS = 5.0
SAMPLES = int(RATE * SECONDS)
FRAME = 320
LONGEST = 6 * RATE

Wave = NDArray[np.float64]

# Instrument: attack, decay (seconds), sustain level, release (seconds), gain.
ENVELOPES: dict[str, tuple[float, float, float, float, float]] = {
    "pluck": (0.002, 0.8, 0.3, 0.25, 1.2),
    "banjo": (0.001, 0.15, 0.1, 0.1, 1.6),
    "harpsi": (0.001, 0.5, 0.2, 0.12, 1.0),
    "piano": (0.003, 0.7, 0.15, 0.25, 0.7),
    "epiano": (0.003, 0.9, 0.2, 0.3, 0.7),
    "bell": (0.001, 0.6, 0.0, 0.5, 0.7),
    "musicbox": (0.001, 0.6, 0.0, 0.5, 0.7),
    "organ": (0.02, 1.0, 1.0, 0.08, 0.35),
    "flute": (0.06, 0.4, 0.8, 0.1, 0.6),
    "oboe": (0.04, 0.3, 0.8, 0.1, 0.35),
    "reed": (0.03, 0.3, 0.85, 0.08, 0.3),
    "strings": (0.09, 0.4, 0.85, 0.18, 0.28),
    "fiddle": (0.03, 0.4, 0.85, 0.18, 0.28),
    "brass": (0.04, 0.25, 0.8, 0.1, 0.28),
    "pad": (0.3, 1.0, 1.0, 0.4, 0.18),
    "bass": (0.005, 0.5, 0.5, 0.1, 0.6),
}
# Drum pattern: length in beats, and (offset in beats, drum).
DRUMS: dict[str, tuple[float, list[tuple[float, str]]]] = {
    "march": (2, [(0, "kick"), (0, "snare"), (0.5, "snare"), (1, "snare"), (1.25, "snare"), (1.5, "snare")]),
    "polka": (1, [(0, "kick"), (0.5, "snare")]),
    "hat": (1, [(0, "hat"), (0.5, "hat")]),
    "bells": (1, [(0, "bells"), (0.5, "bells")]),
    "stomp": (2, [(0, "kick"), (1, "kick"), (1, "snare")]),
    "swing": (2, [(0, "hat"), (1, "hat"), (1.667, "hat"), (0, "kick"), (1, "snare")]),
    "rock": (2, [(0, "kick"), (0.5, "hat"), (1, "snare"), (1.5, "hat"), (0, "hat"), (1.25, "kick")]),
}
STYLES = ("pad", "arp", "stab", "stride", "waltz", "habanera")


@dataclass(frozen=True)
class Event:
    """One sound: onset and length in codec frames, instrument or `drum`, MIDI pitch or drum name."""

    frame: int
    frames: int
    instrument: str
    what: int | str
    gain: float


def _harmonics(
    f: float, amps: Sequence[float], vibrato: float = 0.0, inharmonic: float = 0.0, decay: float = 0.0
) -> Wave:
    t = np.arange(LONGEST) / RATE
    phase = 2 * np.pi * f * t
    if vibrato:
        phase = phase + vibrato * np.sin(2 * np.pi * 5.3 * t) * np.clip(t / 0.4, 0, 1)
    wave = np.zeros(LONGEST)
    for k, amp in enumerate(amps, 1):
        stretch = k * math.sqrt(1 + inharmonic * k * k)
        if f * stretch > RATE * 0.47:
            break
        wave += amp * np.sin(phase * stretch) * (np.exp(-t * decay * k) if decay else 1)
    return wave


def _string(f: float, rng: np.random.Generator, bright: float = 0.5, damp: float = 0.996) -> Wave:
    """Karplus-Strong plucked string with a fractional delay."""
    period = RATE / f - 0.5
    n = max(2, int(period))
    frac = period - n
    burst = np.zeros(LONGEST)
    burst[:n] = lfilter([bright, 1 - bright], [1], rng.uniform(-1, 1, n))
    a = np.zeros(n + 3)
    a[0], a[n], a[n + 1], a[n + 2] = 1, -damp * 0.5 * (1 - frac), -damp * 0.5, -damp * 0.5 * frac
    return np.asarray(lfilter([1], a, burst))


@cache
def tone(instrument: str, midi: int) -> Wave:
    """The unshaped sound of an instrument at a pitch, [LONGEST]; its noise is seeded by the pitch alone."""
    f = 440.0 * 2 ** ((midi - 69) / 12)
    rng = np.random.default_rng(midi)
    t = np.arange(LONGEST) / RATE
    saw = [1 / k for k in range(1, 14)]
    match instrument:
        case "pluck":
            return _string(f, rng)
        case "banjo":
            return _string(f, rng, 0.9, 0.985)
        case "harpsi":
            return _string(f, rng, 0.95, 0.993) + 0.4 * _string(2 * f, rng, 0.95, 0.99)
        case "piano":
            return _harmonics(f, [1, 0.6, 0.35, 0.25, 0.15, 0.1, 0.06, 0.04], inharmonic=3e-4, decay=0.9)
        case "epiano":
            w = 2 * np.pi * f * t
            return np.sin(w + 1.5 * np.exp(-t * 4) * np.sin(w) + 0.4 * np.exp(-t * 9) * np.sin(7 * w))
        case "bell" | "musicbox":
            ratio, depth = (3.5, 1.8) if instrument == "bell" else (4.0, 0.9)
            w = 2 * np.pi * f * t
            return np.sin(w + depth * np.exp(-t * 5) * np.sin(w * ratio))
        case "organ":
            return _harmonics(f, [0.8, 0.7, 0.3, 0.5, 0.1, 0.2, 0, 0.3])
        case "flute":
            b, a = butter(2, [min(0.9, f * 1.8 / RATE), min(0.95, f * 3.2 / RATE)], "band")
            return _harmonics(f, [1, 0.25, 0.12, 0.03], vibrato=0.35) + 0.12 * lfilter(
                b, a, rng.standard_normal(LONGEST)
            )
        case "oboe":
            return _harmonics(f, [0.35, 0.6, 0.8, 0.5, 0.3, 0.2, 0.15, 0.1], vibrato=0.25)
        case "reed":
            amps = [0.8, 0.1, 0.6, 0.08, 0.4, 0.05, 0.2]
            return _harmonics(f, amps, vibrato=0.1) + 0.5 * _harmonics(f * 1.004, amps[:5])
        case "strings":
            return _harmonics(f, saw, vibrato=0.3) + 0.7 * _harmonics(f * 1.0035, saw, vibrato=0.22)
        case "fiddle":
            return _harmonics(f, saw, vibrato=0.3)
        case "brass":
            return _harmonics(f, [0.7, 0.9, 0.8, 0.55, 0.4, 0.3, 0.2, 0.12, 0.08], vibrato=0.08)
        case "pad":
            return sum((_harmonics(f * d, [1, 0.4, 0.25, 0.1]) for d in (1, 1.005, 0.994)), np.zeros(LONGEST))
        case "bass":
            return _harmonics(f, [1, 0.5, 0.2, 0.1, 0.05])
    raise KeyError(instrument)


@cache
def drum(name: str) -> Wave:
    """One drum hit; always the same, like a sample."""
    rng = np.random.default_rng(7)
    match name:
        case "kick":
            t = np.arange(int(0.22 * RATE)) / RATE
            return np.sin(2 * np.pi * (48 * t + 90 / 28 * (1 - np.exp(-28 * t)))) * np.exp(-t * 16)
        case "snare":
            t = np.arange(int(0.18 * RATE)) / RATE
            noise = rng.standard_normal(len(t)) * 0.5 * np.exp(-t * 26)
            return noise + 0.4 * np.sin(2 * np.pi * 190 * t) * np.exp(-t * 30)
        case "hat":
            t = np.arange(int(0.06 * RATE)) / RATE
            return np.asarray(lfilter([1, -1], [1], rng.standard_normal(len(t)))) * np.exp(-t * 70) * 0.3
        case "bells":
            t = np.arange(int(0.12 * RATE)) / RATE
            return np.sin(2 * np.pi * np.outer((5200, 6100, 6900), t)).sum(0) * np.exp(-t * 30) * 0.12
    raise KeyError(name)


@lru_cache(maxsize=4096)
def note(instrument: str, midi: int, frames: int) -> Wave:
    """A tone held for `frames` codec frames under the instrument's envelope, release included."""
    attack, decay, sustain, release, gain = ENVELOPES[instrument]
    a, d, r = (max(1, int(x * RATE)) for x in (attack, decay, release))
    hold = min(max(frames * FRAME, a + 1), LONGEST - r)
    body = np.full(hold, sustain)
    body[:a] = np.linspace(0, 1, a)
    body[a:] = sustain + (1 - sustain) * np.exp(-np.arange(hold - a) / d)
    shape = np.concatenate([body, body[-1] * np.exp(-np.arange(r) / (r / 4))])
    return tone(instrument, midi)[: len(shape)] * shape * gain


def beat_frames(bpm: float) -> int:
    """A beat in codec frames, even, so that half beats fall on the grid too."""
    return 2 * round(60 / bpm * RATE / FRAME / 2)


def _accompany(score: Score, start: float, beats: float, triad: list[int]) -> list[tuple[float, float, int, float]]:
    """(beat, length in beats, MIDI, gain) of the accompaniment over one chord."""
    whole = range(int(beats))
    match score.style:
        case "pad":
            return [(start, beats * 0.98, p, 0.45) for p in triad]
        case "arp":
            up = [triad[0], triad[1], triad[2], triad[0] + 12, triad[2], triad[1]]
            return [(start + i / 2, 0.5, up[i % 6], 0.5) for i in range(int(beats * 2))]
        case "stab":
            return [(start + i + 0.5, 0.25, p, 0.4) for i in whole for p in triad]
        case "stride":
            return [(start + i, 0.4, p, 0.42) for i in whole if i % 2 for p in triad]
        case "waltz":
            return [(start + i, 0.6, p, 0.35) for i in whole if i % 3 for p in triad]
        case "habanera":
            places = [2 * i + o for i in range(int(beats / 2)) for o in (0, 0.75, 1, 1.5)]
            return [(start + x, 0.3, p, 0.4) for x in places for p in triad]
    return []


def arrange(score: Score) -> list[Event]:
    """The score's events over SECONDS, the phrase looped where it is shorter."""
    unit = beat_frames(score.bpm)
    notes, chords = parse_melody(score.melody)[0], parse_chords(score.chords)[0]
    parts = [(n.start, n.beats * 0.95, score.lead, n.midi, 1.0) for n in notes]
    for c in chords:
        triad = [48 + (c.root + x) % 12 for x in c.intervals]
        if score.comp != "none":
            parts += [(at, b, score.comp, p, g) for at, b, p, g in _accompany(score, c.start, c.beats, triad)]
        if score.bass:
            step = {"waltz": 3, "stab": 1}.get(score.style, 2)
            low = c.root + (36 if c.root < 8 else 24)
            places = np.arange(0, c.beats, step)
            parts += [(c.start + i, min(step, c.beats - i) * 0.8, "bass", low, 0.6) for i in places]
    events = []
    for at in np.arange(0, RATE / FRAME * SECONDS / unit, score.beats):
        for start, beats, instrument, midi, gain in parts:
            length = max(1, round(beats * unit))
            events.append(Event(round((at + start) * unit), length, instrument, midi, gain))
        if score.drums != "none":
            length_, pattern = DRUMS[score.drums]
            hits = [(i + o, k) for i in np.arange(0, score.beats, length_) for o, k in pattern]
            events += [Event(round((at + x) * unit), 5, "drum", k, 0.5) for x, k in hits if x < score.beats]
    return [e for e in events if e.frame * FRAME < SAMPLES]


def _comb(wave: Wave, delay: int, gain: float) -> Wave:
    """Feedback comb y[n] = x[n−delay] + gain·y[n−delay], a block of `delay` samples at a time."""
    out = np.zeros(len(wave) + delay)
    for i in range(delay, len(wave), delay):
        block = wave[i - delay : i] + gain * out[i - delay : i]
        out[i : i + delay] = block
    return out[: len(wave)]


def render(score: Score) -> NDArray[np.int16]:
    """Five seconds of audio, [SAMPLES] int16 in multiples of 16: 12 bits a sample, which FLAC stores as such."""
    wave = np.zeros(SAMPLES + LONGEST)
    for e in arrange(score):
        sound = drum(str(e.what)) if e.instrument == "drum" else note(e.instrument, int(e.what), e.frames)
        at = e.frame * FRAME
        wave[at : at + len(sound)] += e.gain * sound
    wave = wave[:SAMPLES]
    wave = wave + 0.12 * sum(_comb(wave, d, g) for d, g in ((1117, 0.42), (1559, 0.38), (1867, 0.34)))
    wave = wave - wave.mean()
    wave = np.tanh(0.12 * wave / math.sqrt(float(np.mean(wave**2)) + 1e-9)) / 1.2
    wave[-400:] *= np.linspace(1, 0, 400)
    return (np.round(wave * 2048).clip(-2048, 2047) * 16).astype(np.int16)
