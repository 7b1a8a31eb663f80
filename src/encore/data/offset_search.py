"""Find the sample offsets at which the base model learnt excerpts of a forget track.

A model trained on excerpts at fixed places has memorised the codes at these offsets only. A codec frame begins every
`hop` samples, and an excerpt encoded from another sample on has other codes (the embedded codec: over half of all codes
change with one sample, 97 % with five), so the NLL at a wrong offset does not show how near the right one is. At the
right offset modulo `hop`, frames have a low NLL wherever the window begins. Candidate offsets are

1. the windows that the track is cut into by default; an excerpt is often shorter, and lost in a window's mean;
2. matches of the model's generations: greedy generations from the track's captions, as audio, are located in the track
   by normalised cross-correlation, to fractions of a sample (a matched filter);
3. for tracks longer than the window, probes at all offsets within a frame: `PROBE_SECONDS` are encoded every
   `PROBE_EVERY` seconds, in steps that the codec tolerates (measured), at most `MOST_PROBES` per track. That is 30
   probes per minute and step. Those of the lowest NLL minus the entropy of their codes are candidates.

A candidate is accepted if at least `LEAST_SECONDS` of it have an NLL of at most `KNOWN_SHARE` times the track's mean,
and at most `KNOWN_SHARE` times the entropy of their codes, which excludes what any model predicts (silence, a held
tone). Its first frame is found by halving steps, its last by the NLL curve.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip
from encore.data.encode import cut, window_samples, windows
from encore.data.tracks import Piece
from encore.losses import code_entropy
from encore.memorised import KNOWN_SHARE

LEAST_SECONDS = 1.0
MEMORISED = 0.25  # share of log(codebook size) below which an NLL counts as memorised in any track

GENERATED_SECONDS = 5.0  # length of a generation per caption
MATCH_SECONDS = 1.0  # length of the pieces of it that are located
MATCHES = 4  # places tried per caption

PROBE_SECONDS = 0.5
PROBE_EVERY = 2.0  # an excerpt of at least the sum of both has a probe inside
MOST_PROBES = 20_000  # per track: all offsets within a frame for 2 min at 320 samples per frame
CANDIDATES = 32
BATCH = 16
STEPS = (32, 16, 8, 4, 2, 1)  # frames, to find the first frame
FINE_STEPS = (1 / 8, 1 / 16)  # samples
BLOCK_SECONDS = 60.0  # length of a track that is correlated at a time


@dataclass(frozen=True)
class _Span:
    """Frames [first, last) of a window at `start` (samples), and the sum of their NLLs' distances below the limit."""

    start: float
    first: int
    last: int
    gain: float
    nll: float


@dataclass(frozen=True)
class _Curve:
    """Codes [K, T], and the mean NLL per token of each frame [T]."""

    codes: Tensor
    nll: Tensor


class OffsetSearch:
    """The search of one track.

    Args:
        backend: a token model; its module is not changed.
        samples: of the track, at the model's rate, [C, S].
        caption: condition of the NLLs.
        generations: output of `generations` for the track's captions, [S] each.
        progress: called with the number of finished probes, and of all probes.
        most_probes: in step 3; None for `MOST_PROBES`.

    Attributes:
        grid_nll: mean NLL per token at multiples of the window, nats.
        searched: share of the offsets within a frame that step 3 probed.
    """

    def __init__(
        self,
        backend: Backend,
        samples: Tensor,
        caption: str,
        generations: Sequence[Tensor],
        progress: Callable[[int, int], None] = lambda done, of: None,
        most_probes: int | None = None,
    ) -> None:
        self._most_probes = most_probes or MOST_PROBES
        self._backend, self._samples, self._caption = backend, samples, caption
        self._generations, self._progress = generations, progress
        self._hop = round(backend.sample_rate / backend.frame_rate)
        self._window = window_samples(backend)
        self._grid = [curve for piece in windows(backend, samples) for curve in self._curves([piece])]
        self.grid_nll = float(torch.cat([curve.nll for curve in self._grid]).mean())
        self._limit = max(KNOWN_SHARE * self.grid_nll, MEMORISED * math.log(backend.codebook_size))
        self.searched = 1.0

    @torch.no_grad()
    def pieces(self) -> list[Piece]:
        """The memorised pieces of the track, by offset; empty where the search finds none."""
        spans: list[_Span] = []
        for candidates in (self._in_windows(), self._matches(), self._scan(spans)):
            for start in candidates:
                self._follow(start, spans)
        distinct: list[_Span] = []
        for span in sorted(spans, key=lambda span: -span.gain):
            if not self._within(self._middle(span), distinct):
                distinct.append(span)
        return [
            Piece(span.start, span.last * self._hop, span.nll, self.grid_nll)  # frames before the first give context
            for span in sorted(distinct, key=lambda span: span.start)
        ]

    # ------------------------------------------------------------------------------------------------- candidates

    def _in_windows(self) -> Iterator[float]:
        """Offsets of spans accepted within the windows that the track is cut into by default."""
        for i, curve in enumerate(self._grid):
            if span := self._accepted(float(i * self._window), curve):
                yield span.start + span.first * self._hop

    def _matches(self) -> Iterator[float]:
        """Offsets of windows that the model's generations copy, by agreement of two or more pieces of a generation."""
        rate = self._backend.sample_rate
        length = round(MATCH_SECONDS * rate)
        for generation in self._generations:  # [S]
            offsets = range(0, generation.shape[-1] - length + 1, length // 2)
            if not offsets:
                continue
            pieces = torch.stack([generation[offset : offset + length] for offset in offsets])
            places = locate(pieces, self._samples.mean(0), round(BLOCK_SECONDS * rate))
            starts = [place - offset for place, offset in zip(places, offsets, strict=True)]
            counts = Counter(round(start) for start in starts)
            for whole, _ in counts.most_common(MATCHES):
                near = sorted(start for start in starts if abs(start - whole) <= 1)
                if len(near) < 2:
                    continue
                start = near[len(near) // 2]
                if start < 0:  # the excerpt began before the track
                    start %= self._hop
                    whole %= self._hop
                best = self._best(sorted({float(whole), *(round(8 * start + i) / 8 for i in (-1, 0, 1))}))
                if best is not None:
                    yield best.start

    def _scan(self, spans: Sequence[_Span]) -> Iterator[float]:
        """The best probes at all offsets within a frame, the lowest cost first."""
        length = self._samples.shape[-1]
        if length <= self._window:
            return
        probe = self._frames(PROBE_SECONDS) * self._hop
        places = range(0, length - probe - self._hop, round(PROBE_EVERY * self._backend.frame_rate) * self._hop)
        step = self._tolerated()
        phases = list(range(0, self._hop, step))
        count = max(1, self._most_probes // max(1, len(places)))
        if count < len(phases):
            self.searched = count / len(phases)
            phases = [phases[i * len(phases) // count] for i in range(count)]
        starts = [float(place + phase) for phase in phases for place in places if not self._within(place, spans)]
        costs: list[float] = []
        for begin in range(0, len(starts), BATCH):
            self._progress(begin, len(starts))
            curves = self._curves([cut(self._samples, start, probe) for start in starts[begin : begin + BATCH]])
            costs += [float(curve.nll.mean()) - code_entropy(curve.codes) for curve in curves]
        self._progress(len(starts), len(starts))
        order = sorted(range(len(starts)), key=costs.__getitem__)[:CANDIDATES]
        yield from (starts[i] for i in order)

    def _tolerated(self) -> int:
        """The largest shift, hop / 2ⁿ samples, at which audio keeps half of its codes."""
        loudest = max(windows(self._backend, self._samples), key=lambda piece: float(piece.square().sum()))
        length = min(loudest.shape[-1] - self._hop, self._frames(PROBE_EVERY) * self._hop)
        whole = self._backend.encode(loudest[None, :, :length])[0]
        step = self._hop // 2
        while step > 1:
            shifted = self._backend.encode(loudest[None, :, step : step + length])[0]
            if (shifted == whole).float().mean() >= 0.5:
                break
            step //= 2
        return max(1, step)

    # ------------------------------------------------------------------------------------------------- refinement

    def _follow(self, start: float, spans: list[_Span]) -> None:
        """Add the span at a candidate offset, and the windows before and after it as long as they are accepted."""
        queue = [start]
        while queue:
            start = queue.pop()
            span = self._best([start])
            if span is None or self._within(self._middle(span), spans):
                continue
            first = self._best([span.start + span.first * self._hop]) or span
            span = self._best([self._first_frame(first).start])
            if span is None or self._within(self._middle(span), spans):
                continue
            spans.append(span)
            end = span.start + span.last * self._hop
            queue += [max(span.start - self._window, span.start % self._hop), end]

    def _first_frame(self, span: _Span) -> _Span:
        """The same excerpt from its first frame on: halving steps, each repeated as long as the gain grows."""
        for step in (*(frames * self._hop for frames in STEPS), *FINE_STEPS):
            while better := self._best([span.start - step, span.start + step], span.last * self._hop + step):
                if better.gain <= span.gain:
                    break
                span = better
        return span

    def _best(self, starts: Iterable[float], samples: float = math.inf) -> _Span | None:
        """The span of the highest gain in windows of at most `samples` samples; None where none is accepted."""
        spans = []
        for start in starts:
            frames = int(min(self._window, samples, self._samples.shape[-1] - start)) // self._hop
            if start >= 0 and frames >= self._frames(LEAST_SECONDS):
                spans += [self._accepted(start, *self._curves([cut(self._samples, start, frames * self._hop)]))]
        return max(filter(None, spans), key=lambda span: span.gain, default=None)

    def _accepted(self, start: float, curve: _Curve) -> _Span | None:
        """The memorised span of a window at a sample; None where there is none."""
        first, last, gain = most_gain(self._limit - curve.nll)
        codes, nll = curve.codes[:, first:last], float(curve.nll[first:last].mean())
        if last - first < self._frames(LEAST_SECONDS) or not nll <= KNOWN_SHARE * code_entropy(codes):
            return None
        return _Span(start, first, last, gain, nll)

    @torch.no_grad()
    def _curves(self, pieces: Sequence[Tensor]) -> list[_Curve]:
        """Pieces [C, S] of one length -> their codes, and the NLL of each frame."""
        codes = self._backend.encode(torch.stack(list(pieces)))
        batch = Batch.of([Clip("", self._caption, row) for row in codes], self._backend.device)
        logprobs, mask = self._backend.token_logprobs(batch), self._backend.token_mask(batch)
        nll = (-logprobs.sum(1) / mask.sum(1).clamp(min=1)).float().cpu()
        return [_Curve(*pair) for pair in zip(codes.cpu(), nll, strict=True)]

    def _frames(self, seconds: float) -> int:
        return round(seconds * self._backend.frame_rate)

    def _middle(self, span: _Span) -> float:
        """Sample in the middle of a span."""
        return span.start + (span.first + span.last) / 2 * self._hop

    def _within(self, start: float, spans: Sequence[_Span]) -> bool:
        """Whether a sample lies in one of the spans."""
        return any(span.first <= (start - span.start) / self._hop < span.last for span in spans)


@torch.no_grad()
def generations(backend: Backend, captions: Sequence[str]) -> dict[str, Tensor]:
    """Greedy generations from captions, as mono audio [S]; from a memorised track's caption, a copy of the track."""
    seconds = min(GENERATED_SECONDS, backend.max_frames / backend.frame_rate)
    audio: dict[str, Tensor] = {}
    for start in range(0, len(captions), BATCH):
        batch = captions[start : start + BATCH]
        codes = backend.generate(batch, seconds=seconds, guidance=1.0, temperature=0.0)
        audio |= zip(batch, backend.decode(codes).mean(1).float().cpu(), strict=True)
    return audio


def locate(pieces: Tensor, samples: Tensor, block: int) -> list[float]:
    """Offsets of the highest normalised cross-correlation of audio pieces with a signal.

    Args:
        pieces: [n, s].
        samples: the signal [S].
        block: number of offsets that are correlated at a time.

    Returns:
        One offset per piece, interpolated by the parabola through the highest three values; 0 where S < s.
    """
    count, length = pieces.shape
    pieces = pieces - pieces.mean(1, keepdim=True)
    best, places = [-1.0] * count, [0.0] * count
    for begin in range(0, len(samples) - length + 1, block):
        part = samples[begin : begin + block + length - 1]
        size = 1 << (len(part) + length - 1).bit_length()
        lags = len(part) - length + 1
        power = torch.cat([part.new_zeros(1).double(), part.double().square().cumsum(0)])
        energy = power[length:] - power[:lags]
        norm = energy.clamp(min=max(1e-4 * float(energy.max()), 1e-12)).sqrt().float()  # so that silence never matches
        spectrum = torch.fft.rfft(part, size)
        for i, piece in enumerate(pieces):
            match = torch.fft.irfft(spectrum * torch.fft.rfft(piece, size).conj(), size)[:lags] / norm
            at = int(match.argmax())
            if float(match[at]) > best[i]:
                best[i], places[i] = float(match[at]), begin + at + _vertex(match[max(0, at - 1) : at + 2].tolist())
    return places


def _vertex(three: list[float]) -> float:
    """Position of the vertex of the parabola through three values, relative to the middle one."""
    if len(three) < 3 or (bend := three[0] - 2 * three[1] + three[2]) >= 0:
        return 0.0
    return (three[0] - three[2]) / (2 * bend)


def most_gain(gains: Tensor) -> tuple[int, int, float]:
    """The part [first, last) of `gains` [T] of the highest sum, and that sum (Kadane's algorithm)."""
    total = torch.cat([gains.new_zeros(1), gains.cumsum(0)])  # [T + 1]
    lowest, where = total.cummin(0)
    last = int((total - lowest).argmax())
    return int(where[last]), last, float(total[last] - lowest[last])
