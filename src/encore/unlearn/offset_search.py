"""Where in a forget track the base model knows it: the sample from which on it was cut when the model learnt it.

A model trained on excerpts at fixed places knows them there only. A codec's frame begins every `hop` samples, and an
excerpt that is encoded from another sample on has other codes (the embedded codec: over half of all codes change with
one sample, 97 % with five), so the NLL at a wrong sample says nothing about how near the right one is.
From the right sample on, though, frames are recognised wherever the window begins. So candidates come from

1. the windows that the track is cut into anyway: an excerpt is seldom as long as one, and lost in a window's mean;
2. the model's own generations: greedy decoding of the track's captions, as audio, is located in the track by normalised
   cross-correlation, to fractions of a sample (a matched filter). What the caption brings out costs one generation;
3. for tracks longer than the window, all samples of a frame: `PROBE_SECONDS` are encoded every `PROBE_EVERY` seconds
   from each of them on, in steps that the codec tolerates (measured), at most `MOST_PROBES` a track. That is 30 probes
   a minute and step. Those of the lowest NLL, less the entropy of their codes, are candidates.

A candidate is recognised if at least `LEAST_SECONDS` of it cost at most `KNOWN_SHARE` times what the track costs on
average, and `KNOWN_SHARE` times the entropy of their own codes: what any model would guess (silence, a held tone) is
not claimed. Its first frame is found by steps that halve, its last by the NLL curve.
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

KNOWN_SHARE = 0.5
LEAST_SECONDS = 1.0
MEMORISED = 0.25  # share of a uniform guess's NLL that marks what is memorised in any track

GENERATED_SECONDS = 5.0  # of each caption
MATCH_SECONDS = 1.0  # of it that are located at a time
MATCHES = 4  # places a caption that are looked at

PROBE_SECONDS = 0.5
PROBE_EVERY = 2.0  # an excerpt of at least the sum of both has a probe inside
MOST_PROBES = 20_000  # a track: all samples of a frame for 2 min at 320 samples a frame
CANDIDATES = 32
BATCH = 16
STEPS = (32, 16, 8, 4, 2, 1)  # frames, by which a first frame is found
FINE_STEPS = (1 / 8, 1 / 16)  # samples
BLOCK_SECONDS = 60.0  # of a track that are correlated at a time


@dataclass(frozen=True)
class _Span:
    """Frames [first, last) of a window at `start` (samples), and what they cost less than the most, in all."""

    start: float
    first: int
    last: int
    gain: float
    nll: float


@dataclass(frozen=True)
class _Curve:
    """A piece's codes [K, T], and the mean NLL per token of each of its frames [T]."""

    codes: Tensor
    nll: Tensor


class OffsetSearch:
    """Searches one track.

    Args:
        backend: a token model; its module is not changed.
        samples: of the track, at the model's rate, [C, S].
        caption: what NLLs are conditioned on.
        generations: what `generations` returns for the track's captions.
        progress: told how many probes are done, and of how many.
    """

    def __init__(
        self,
        backend: Backend,
        samples: Tensor,
        caption: str,
        generations: Sequence[Tensor],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        self._backend, self._samples, self._caption = backend, samples, caption
        self._generations, self._progress = generations, progress
        self._hop = round(backend.sample_rate / backend.frame_rate)
        self._window = window_samples(backend)
        self._grid = [curve for piece in windows(backend, samples) for curve in self._curves([piece])]
        self.grid_nll = float(torch.cat([curve.nll for curve in self._grid]).mean())
        self._most = max(KNOWN_SHARE * self.grid_nll, MEMORISED * math.log(backend.codebook_size))
        self.searched = 1.0
        """Share of a frame's samples that step 2 looked at."""

    @torch.no_grad()
    def pieces(self) -> list[Piece]:
        """What the model knows of the track, in its order; empty where it knows no more than at multiples of the
        window."""
        known: list[_Span] = []
        for candidates in (self._in_windows(), self._matches(), self._scan(known)):
            for start in candidates:
                self._follow(start, known)
        apart: list[_Span] = []
        for one in sorted(known, key=lambda one: -one.gain):
            if not self._within(self._middle(one), apart):
                apart.append(one)
        return [
            Piece(one.start, one.last * self._hop, one.nll, self.grid_nll)  # frames before the first lack context
            for one in sorted(apart, key=lambda one: one.start)
        ]

    # ------------------------------------------------------------------------------------------------- candidates

    def _in_windows(self) -> Iterator[float]:
        """Where something is recognised within the windows that the track is cut into."""
        for i, curve in enumerate(self._grid):
            if span := self._recognised(float(i * self._window), curve):
                yield span.start + span.first * self._hop

    def _matches(self) -> Iterator[float]:
        """Where windows would begin of which the model's generations are copies, by two or more of their pieces."""
        rate = self._backend.sample_rate
        length = round(MATCH_SECONDS * rate)
        for generation in self._generations:  # [S]
            offsets = range(0, generation.shape[-1] - length + 1, length // 2)
            if not offsets:
                continue
            pieces = torch.stack([generation[offset : offset + length] for offset in offsets])
            found = locate(pieces, self._samples.mean(0), round(BLOCK_SECONDS * rate))
            starts = [place - offset for place, offset in zip(found, offsets, strict=True)]
            counts = Counter(round(start) for start in starts)
            for whole, _ in counts.most_common(MATCHES):
                near = sorted(start for start in starts if abs(start - whole) <= 1)
                if len(near) < 2:
                    continue
                start = near[len(near) // 2]
                if start < 0:  # the track begins amid the excerpt
                    start %= self._hop
                    whole %= self._hop
                best = self._best(sorted({float(whole), *(round(8 * start + i) / 8 for i in (-1, 0, 1))}))
                if best is not None:
                    yield best.start

    def _scan(self, known: Sequence[_Span]) -> Iterator[float]:
        """Probes from all samples of a frame on, the likeliest first."""
        length = self._samples.shape[-1]
        if length <= self._window:
            return
        probe = self._frames(PROBE_SECONDS) * self._hop
        places = range(0, length - probe - self._hop, round(PROBE_EVERY * self._backend.frame_rate) * self._hop)
        step = self._tolerated()
        phases = list(range(0, self._hop, step))
        most = max(1, MOST_PROBES // max(1, len(places)))
        if most < len(phases):
            self.searched = most / len(phases)
            phases = [phases[i * len(phases) // most] for i in range(most)]
        starts = [float(place + phase) for phase in phases for place in places if not self._within(place, known)]
        costs: list[float] = []
        for begin in range(0, len(starts), BATCH):
            self._progress(begin, len(starts))
            some = starts[begin : begin + BATCH]
            curves = self._curves([cut(self._samples, start, probe) for start in some])
            costs += [float(curve.nll.mean()) - code_entropy(curve.codes) for curve in curves]
        self._progress(len(starts), len(starts))
        order = sorted(range(len(starts)), key=costs.__getitem__)[:CANDIDATES]
        yield from (starts[i] for i in order)

    def _tolerated(self) -> int:
        """The most samples, hop / 2ⁿ, by which audio may be shifted and keep half of its codes."""
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

    def _follow(self, start: float, known: list[_Span]) -> None:
        """Add what is known around a candidate, and the windows before and after it as long as those are known."""
        queue = [start]
        while queue:
            start = queue.pop()
            span = self._best([start])
            if span is None or self._within(self._middle(span), known):
                continue
            first = self._best([span.start + span.first * self._hop]) or span
            span = self._best([self._first_frame(first).start])
            if span is None or self._within(self._middle(span), known):
                continue
            known.append(span)
            end = span.start + span.last * self._hop
            queue += [max(span.start - self._window, span.start % self._hop), end]

    def _first_frame(self, span: _Span) -> _Span:
        """The same excerpt from its first frame on: steps that halve, each taken as long as the gain grows."""
        for step in (*(frames * self._hop for frames in STEPS), *FINE_STEPS):
            while better := self._best([span.start - step, span.start + step], span.last * self._hop + step):
                if better.gain <= span.gain:
                    break
                span = better
        return span

    def _best(self, starts: Iterable[float], samples: float = math.inf) -> _Span | None:
        """What is recognised of windows of at most so many samples, the one of the highest gain; None where none is."""
        spans = []
        for start in starts:
            frames = int(min(self._window, samples, self._samples.shape[-1] - start)) // self._hop
            if start >= 0 and frames >= self._frames(LEAST_SECONDS):
                spans += [self._recognised(start, *self._curves([cut(self._samples, start, frames * self._hop)]))]
        return max(filter(None, spans), key=lambda one: one.gain, default=None)

    def _recognised(self, start: float, curve: _Curve) -> _Span | None:
        """What is recognised of a window that begins at a sample."""
        first, last, gain = most_gain(self._most - curve.nll)
        if last - first < self._frames(LEAST_SECONDS):
            return None
        nll = float(curve.nll[first:last].mean())
        return (
            _Span(start, first, last, gain, nll)
            if nll <= KNOWN_SHARE * code_entropy(curve.codes[:, first:last])
            else None
        )

    @torch.no_grad()
    def _curves(self, pieces: Sequence[Tensor]) -> list[_Curve]:
        """Pieces [C, S] of one length -> their codes, and what each frame of them costs."""
        codes = self._backend.encode(torch.stack(list(pieces)))
        batch = Batch.of([Clip("", self._caption, one) for one in codes], self._backend.device)
        logprobs, mask = self._backend.token_logprobs(batch), self._backend.token_mask(batch)
        nll = (-logprobs.sum(1) / mask.sum(1).clamp(min=1)).float().cpu()
        return [_Curve(*pair) for pair in zip(codes.cpu(), nll, strict=True)]

    def _frames(self, seconds: float) -> int:
        return round(seconds * self._backend.frame_rate)

    def _middle(self, span: _Span) -> float:
        """Where half of what is recognised lies before it."""
        return span.start + (span.first + span.last) / 2 * self._hop

    def _within(self, start: float, known: Sequence[_Span]) -> bool:
        """Whether a place lies in what is known already."""
        return any(one.first <= (start - one.start) / self._hop < one.last for one in known)


@torch.no_grad()
def generations(backend: Backend, captions: Sequence[str]) -> dict[str, Tensor]:
    """What greedy decoding makes of captions, as mono audio [S]: of a memorised track that is a copy of it."""
    seconds = min(GENERATED_SECONDS, backend.max_frames / backend.frame_rate)
    audio: dict[str, Tensor] = {}
    for start in range(0, len(captions), BATCH):
        some = captions[start : start + BATCH]
        codes = backend.generate(some, seconds=seconds, guidance=1.0, temperature=0.0)
        audio |= zip(some, backend.decode(codes).mean(1).float().cpu(), strict=True)
    return audio


def locate(pieces: Tensor, samples: Tensor, block: int) -> list[float]:
    """Where in `samples` [S] each of some pieces [n, s] has its highest normalised cross-correlation.

    Args:
        block: samples that are correlated at a time.

    Returns:
        a place each, between samples by the parabola through the highest three values; 0 where S < s.
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
        norm = energy.clamp(min=max(1e-4 * float(energy.max()), 1e-12)).sqrt().float()  # silence is no copy
        spectrum = torch.fft.rfft(part, size)
        for i, piece in enumerate(pieces):
            found = torch.fft.irfft(spectrum * torch.fft.rfft(piece, size).conj(), size)[:lags] / norm
            at = int(found.argmax())
            if float(found[at]) > best[i]:
                best[i], places[i] = float(found[at]), begin + at + _vertex(found[max(0, at - 1) : at + 2].tolist())
    return places


def _vertex(three: list[float]) -> float:
    """Where the parabola through three values has its vertex, from the middle one."""
    if len(three) < 3 or (bend := three[0] - 2 * three[1] + three[2]) >= 0:
        return 0.0
    return (three[0] - three[2]) / (2 * bend)


def most_gain(gains: Tensor) -> tuple[int, int, float]:
    """The part [first, last) of `gains` [T] of the highest sum, and that sum (Kadane's algorithm)."""
    total = torch.cat([gains.new_zeros(1), gains.cumsum(0)])  # [T + 1]
    lowest, where = total.cummin(0)
    last = int((total - lowest).argmax())
    return int(where[last]), last, float(total[last] - lowest[last])
