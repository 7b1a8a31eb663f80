"""Turn audio files into clips of codes: decode, cut into windows, encode, and cache the codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from encore.api import Backend, Clip
from encore.data.decode import Audio, load
from encore.data.encoded_tracks import EncodedTrack, StreamedTracks, encoded_in
from encore.data.file_info import Decoding, FileCache, decoder_sha256
from encore.data.shards import ShardIndex, ShardTexts, ShardTracks, open_shards
from encore.data.tracks import Piece, Track
from encore.errors import InputError, together
from encore.hashing import module_sha256
from encore.tensor_cache import TensorCache
from encore.text import printable

MIN_WINDOW_SECONDS = 0.5  # a shorter last window is dropped
MARGIN = 64  # samples


class TrackEncoder:
    """Encodes tracks as clips for one backend, with a cache.

    Args:
        backend: its codec and text encoder are used; the cache is keyed by their weights and settings.
        cache: of tensors; decoding results are cached in the same folder.

    Attributes:
        codes_key: what a track's codes depend on beside its samples.
    """

    def __init__(self, backend: Backend, cache: TensorCache) -> None:
        self.backend = backend
        self.cache = cache
        self.files = FileCache(cache.folder)
        self._frozen = (module_sha256(*backend.frozen().values()), backend.settings)
        shape = (backend.sample_rate, backend.channels, backend.codebooks, backend.max_frames)
        self.codes_key = ("codes", decoder_sha256(), *map(str, shape), *self._frozen)

    def encode(
        self,
        tracks: Sequence[Track],
        progress: Callable[[int, int], None] = lambda done, of: None,
        *,
        skip: Callable[[Track, InputError], bool] = lambda track, error: False,
    ) -> list[EncodedTrack]:
        """Decode and encode tracks in order.

        Args:
            tracks: any tracks.
            progress: called with the number of finished tracks, and of all tracks.
            skip: called for each track that can't be encoded; returns whether to leave it out.

        Raises:
            InputError: files can't be read, or are too short for the model; the message names all of them.
        """
        encoded: list[EncodedTrack] = []
        errors: list[InputError] = []
        for done, track in enumerate(tracks):
            progress(done, len(tracks))
            try:
                encoded.append(self._encode(track))
            except InputError as error:
                refusal = track.refusal(error)
                if not skip(track, refusal):
                    errors.append(refusal)
        if errors:
            raise together(errors)
        self._encode_captions([caption for track in encoded for caption in track.track.captions])
        progress(len(tracks), len(tracks))
        return encoded

    def stream(self, tracks: ShardTracks) -> StreamedTracks:
        """Tracks in shards, whose codes and text encodings are read when they are used.

        Raises:
            InputError: the codes are of another model.
        """
        self._use(tracks.shards)
        return StreamedTracks(tracks)

    def _use(self, index: ShardIndex) -> None:
        """Take text encodings from the shards, after a check that they are of this model."""
        index.check_codec(self.backend)
        texts = self.backend.text_embeddings
        if not (isinstance(texts, ShardTexts) and texts.index is index):
            self.backend.text_embeddings = ShardTexts(index, texts, self.backend.device)

    def _encode(self, track: Track) -> EncodedTrack:
        if track.shards is not None:
            index = open_shards(track.shards)
            self._use(index)
            return encoded_in(index, track)
        decoding, codes = self._codes(track)
        windows = [codes[name] for name in sorted(codes)]
        self._refuse_short(track, windows)
        clips = tuple(Clip(track.id, caption, wide(window)) for caption in track.captions for window in windows)
        return EncodedTrack(track, clips, decoding)

    def fresh(self, track: Track) -> tuple[Decoding, list[torch.Tensor]]:
        """Decode and encode a track without the cache of codes, for those who store them elsewhere.

        Returns:
            The decoding result, and one [K, T] per window (int16 codes, float32 latents).

        Raises:
            InputError: it can't be read, or is too short for the model.
        """
        audio = self.load(track)
        codes = self._encode_pieces(torch.from_numpy(audio.samples), track.pieces)
        windows = [codes[name] for name in sorted(codes)]
        self._refuse_short(track, windows)
        return Decoding.of(audio), windows

    def _refuse_short(self, track: Track, windows: Sequence[torch.Tensor]) -> None:
        least = self.backend.codebooks if self.backend.has_tokens else 0
        if not windows or windows[0].shape[-1] <= least:
            raise InputError(f"{printable(track.path)} is too short for the model", "take it off the list")

    def _codes(self, track: Track) -> tuple[Decoding, dict[str, torch.Tensor]]:
        """The decoding result and the codes; the file is read only where one of them is not in the cache."""
        decoding = self.files.decoding(track.sha256)
        key = (*self.codes_key, *(f"{piece.start} {piece.samples}" for piece in track.pieces))
        codes = None if decoding is None else self.cache.get((*key, decoding.sha256_pcm))
        if decoding is not None and codes is not None:
            return decoding, codes
        audio = self.load(track)
        samples = torch.from_numpy(audio.samples)
        codes = self.cache.get_or_make((*key, audio.sha256_pcm), lambda: self._encode_pieces(samples, track.pieces))
        return Decoding.of(audio), codes

    def load(self, track: Track) -> Audio:
        """Decode a track at the model's sample rate and channels.

        Raises:
            InputError: it can't be read, or was changed.
        """
        rate, channels = self.backend.sample_rate, self.backend.channels
        return self.files.load(track.path, track.sha256, sample_rate=rate, channels=channels)

    def _encode_pieces(self, samples: torch.Tensor, cuts: Sequence[Piece]) -> dict[str, torch.Tensor]:
        """Samples [C, S] -> one [K, T] per window (int16 codes, float32 latents), under names that sort in order."""
        pieces = enumerate(pieces_of(self.backend, samples, cuts))
        return {f"{i:05d}": narrow(self.backend.encode(piece[None])[0]).cpu().contiguous() for i, piece in pieces}

    def _encode_captions(self, captions: Sequence[str]) -> None:
        """Fill the backend's `text_embeddings`, from the cache where possible; those in shards are read when used."""

        def encode(caption: str) -> dict[str, torch.Tensor]:
            return {"states": self.backend.encode_text([caption])[0]}

        for caption in sorted(set(captions)):
            if caption in self.backend.text_embeddings:
                continue
            states = self.cache.get_or_make(("text", caption, *self._frozen), partial(encode, caption))
            self.backend.text_embeddings[caption] = states["states"].to(self.backend.device)


def window_samples(backend: Backend) -> int:
    """Length of the longest window, in samples."""
    return int(backend.max_frames * backend.sample_rate / backend.frame_rate)


def windows(backend: Backend, samples: torch.Tensor) -> list[torch.Tensor]:
    """Cut samples [C, S] into windows of the model."""
    pieces = list(samples.split(window_samples(backend), dim=-1))
    if len(pieces) > 1 and pieces[-1].shape[-1] < MIN_WINDOW_SECONDS * backend.sample_rate:
        pieces.pop()
    return pieces


def pieces_of(backend: Backend, samples: torch.Tensor, cuts: Sequence[Piece]) -> list[torch.Tensor]:
    """The audio of a track's clips: its pieces, or its windows where it has none.

    Args:
        backend: gives the window.
        samples: of the track, [C, S].
        cuts: its pieces.

    Raises:
        InputError: a piece begins after the end.
    """
    if any(piece.start >= samples.shape[-1] for piece in cuts):
        raise InputError("a piece of a track begins after its end", "was request.json edited? run encore forget again")
    return [cut(samples, piece.start, piece.samples) for piece in cuts] or windows(backend, samples)


def cut(samples: torch.Tensor, start: float, count: int) -> torch.Tensor:
    """`count` samples of [C, S] from `start`; fractional starts use a band-limited shift in the frequency domain, with
    `MARGIN` samples on either side."""
    whole = math.floor(start)
    if start == whole:
        return samples[:, whole : whole + count]
    before, after = min(whole, MARGIN), MARGIN
    part = samples[:, whole - before : whole + count + after]
    spectrum = torch.fft.rfft(part, 2 * part.shape[-1])
    turn = torch.arange(spectrum.shape[-1], dtype=torch.float64) * (math.pi * (start - whole) / part.shape[-1])
    shifted = torch.fft.irfft(spectrum * torch.polar(torch.ones_like(turn), turn).to(spectrum.dtype))
    return shifted[:, before : before + count]


def recordings(backend: Backend, tracks: Sequence[Track]) -> list[torch.Tensor]:
    """The audio of the tracks' clips, from their files, mono [S] each."""
    pieces: list[torch.Tensor] = []
    for track in tracks:
        samples = load(track.path, sample_rate=backend.sample_rate, channels=backend.channels).samples
        mono = [piece.mean(0) for piece in pieces_of(backend, torch.from_numpy(samples), track.pieces)]
        pieces += mono * len(track.captions)
    return pieces


def narrow(codes: torch.Tensor) -> torch.Tensor:
    """Codes as int16, for storage; latents unchanged."""
    return codes if codes.is_floating_point() else codes.to(torch.int16)


def wide(codes: torch.Tensor) -> torch.Tensor:
    """The inverse of `narrow`."""
    return codes if codes.is_floating_point() else codes.long()
