"""Decoding through PyAV, that is FFmpeg's libraries: the one decoder, for every format.

FFmpeg passes over a packet that it can't decode. Here that is an error: a packet marked as corrupt, a decoder that
complains, a hole in the timestamps, a change of rate or channels, and packets that the container counts and that
don't come.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from encore.data.container_facts import Container, Damage
from encore.errors import InputError
from encore.text import printable

if TYPE_CHECKING:
    from encore.data.resample import Samples

BLOCK = 16_384
"""Frames handed on at a time, about."""

_PROBED = (
    "aa,aax,ac3,act,adx,amr,amrnb,amrwb,ape,apc,aptx,asf,avi,brstm,caf,dsf,dts,dtshd,eac3,flv,gsm,iff,ircam,epaf,loas,mlp,"
    "mpc,mpc8,mpeg,mpegts,nistsphere,nut,oma,paf,pvf,qcp,qoa,rm,rso,sds,shn,sox,svx,tak,truehd,tta,voc,vqf,w64,wsaud,"
    "wtv,xa,xwma"
)
"""Demuxers that may recognise a file which `containers` does not; none that opens other files (playlists)."""

_TIMELESS = "ac3,act,adx,amr,amrnb,amrwb,aptx,dts,dtshd,eac3,flv,gsm,loas,mlp,mpeg,mpegts,qoa,rm,shn,truehd"
"""Demuxers whose length is an estimate (bytes by bit rate, or the last timestamp seen)."""

_PLAIN = frozenset({"wav", "aiff", "au", "caf"})
"""Kinds whose last packet is a short one where their length is not declared; FFmpeg marks it as corrupt."""


class NotAudio(Exception):
    """FFmpeg doesn't recognise the file; the text is its reason."""


@dataclass
class Stream:
    """An open decoder: what it declares, and its blocks, float32 [frames, channels].

    Args:
        frames: audio frames declared, exactly; None where the container doesn't say.
        least: fewest that must come.
    """

    rate: int
    channels: int
    frames: int | None
    least: int
    format: str
    blocks: Iterator[Samples]


def open_av(stream: BinaryIO, container: Container, name: str) -> Stream:
    """Open the audio stream that FFmpeg takes for the best.

    Args:
        stream: the open file.
        container: what `containers.inspect` found.
        name: how messages call it.

    Raises:
        NotAudio: FFmpeg doesn't recognise it.
        InputError: it has no audio in it. Damage: it declares what can't be.
    """
    import av

    file = Window(stream, container.start, container.end)
    options = {"err_detect": "explode"} if container.demuxer else {"format_whitelist": _PROBED}
    try:
        source: Any = av.open(
            file, format=container.demuxer or None, container_options=options, metadata_errors="replace"
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise NotAudio(_reason(error)) from error
    track = source.streams.best("audio") or next(iter(source.streams.audio), None)
    if track is None:
        source.close()
        raise InputError(f"{name} has no audio in it")
    if track.codec_context is None:
        source.close()
        raise InputError(f"{name} can't be decoded: FFmpeg has no decoder for it", "the header may be damaged")
    track.codec_context.options = {"err_detect": "crccheck+explode"}
    track.codec_context.thread_count = 1
    rate, channels = int(track.rate or 0), int(track.channels or 0)
    frames = container.frames
    least = _least(source, track, rate) if container.least is None else container.least
    decoder = _Decoder(source, track, container, rate, channels)

    def blocks() -> Iterator[Samples]:
        try:
            yield from decoder.blocks()
        except Damage as damage:
            raise InputError(f"{name} is damaged: it {damage}", "copy it again from its source") from damage
        except (av.error.FFmpegError, ValueError) as error:
            raise InputError(f"{name} is damaged: {_reason(error)}", "copy it again from its source") from error
        finally:
            source.close()

    kind = container.kind if container.demuxer else str(source.format.name)
    return Stream(rate, channels, frames, least, kind, blocks())


def _reason(error: Exception) -> str:
    # FFmpeg's words without the errno before and the file after them
    return printable(getattr(error, "strerror", None) or error)


def _least(source: Any, track: Any, rate: int) -> int:
    """Frames that the container's duration promises, less what it may count of an encoder's delay and padding."""
    seconds = None
    several = len(source.streams) > 1
    if source.format.name not in _TIMELESS.split(",") and not (several and source.format.name == "asf"):
        if track.duration and track.time_base:
            seconds = float(track.duration * track.time_base)
        elif source.duration and not several:
            seconds = source.duration / 1e6
    if seconds is not None and source.format.name == "ogg" and track.codec_context.name == "opus":
        # FFmpeg counts from 0 on; an Opus stream may begin later, and skips its first samples (RFC 7845, 4.1 and 4.2).
        skipped = int.from_bytes(bytes(track.codec_context.extradata or b"")[10:12], "little")
        seconds = max(0.0, seconds - skipped / 48_000 - max(0.0, float((track.start_time or 0) * track.time_base)))
    if seconds is not None and seconds < 0:
        raise Damage("declares a negative duration")
    slack = 0.5 if source.format.name == "asf" else 0.1  # WMA Pro's blocks are up to 0.2 s long
    return max(0, int((seconds - slack) * rate)) if seconds else 0


class _Decoder:
    """The packets of one stream, decoded to blocks."""

    def __init__(self, source: Any, track: Any, container: Container, rate: int, channels: int) -> None:
        self.source, self.track, self.container = source, track, container
        self.rate, self.channels = rate, channels
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.next: float | None = None  # seconds at which the next frame must begin

    def blocks(self) -> Iterator[Samples]:
        parts: list[Any] = []
        have = 0
        for frame in self._frames():
            parts.append(frame)
            have += frame.samples
            if have >= BLOCK:
                yield self._block(parts)
                parts, have = [], 0
        if parts:
            yield self._block(parts)
        if self.container.md5 and self.md5.digest() != self.container.md5:
            raise Damage("has samples whose MD5 is not the one that it declares")

    def _frames(self) -> Iterator[Any]:
        packets = samples = 0
        for packet in self.source.demux(self.track):
            packets += packet.size > 0
            if packet.is_corrupt and self.container.kind not in _PLAIN:
                raise Damage("has a packet that is cut or lost")
            for frame in packet.decode():
                self._check(frame)
                samples += frame.samples
                yield frame
        # MP4's tables count the packets (of PCM: the samples).
        given = samples if self.track.codec_context.name.startswith("pcm_") else packets
        if self.container.kind == "mp4" and given < self.track.frames:
            raise Damage(f"declares {self.track.frames:,} packets and gives {given:,}")

    def _check(self, frame: Any) -> None:
        if frame.is_corrupt:
            raise Damage("has a packet that can't be decoded whole")
        if (frame.sample_rate, frame.layout.nb_channels) != (self.rate, self.channels):
            raise Damage("changes its sample rate or channels in the middle")
        # In other kinds the timestamps are FFmpeg's reconstruction, and the structure itself loses no packet unseen.
        if self.container.kind not in {"asf", "matroska", "other"}:
            return
        seconds = frame.samples / self.rate
        if frame.pts is None or not frame.time_base:  # a later frame of one packet (Monkey's Audio)
            self.next = None if self.next is None else self.next + seconds
            return
        begin = float(frame.pts * frame.time_base)
        slack = max(0.5 * seconds, 2 * float(frame.time_base), 0.005)
        if self.next is not None and begin > self.next + slack:
            raise Damage(f"has a hole of {begin - self.next:.3f} s after {self.next:.1f} s")
        self.next = begin + seconds

    def _block(self, frames: list[Any]) -> Samples:
        """Interleave and join frames; whole numbers become floats as everywhere: by the power of two that is 1."""
        arrays = [frame.to_ndarray() for frame in frames]
        if frames[0].format.is_planar:
            joined = np.concatenate(arrays, axis=1).T
        else:
            joined = np.concatenate(arrays, axis=1).reshape(-1, self.channels)
        if self.container.md5:
            self.md5.update(_pcm(joined, self.container.bits))
        if joined.dtype.kind == "f":
            with np.errstate(over="ignore"):
                floats: Samples = joined.astype(np.float32, copy=False)
            return floats
        middle = 128 if joined.dtype == np.uint8 else 0
        full = np.float32(2.0 ** (8 * joined.dtype.itemsize - 1))
        return (joined.astype(np.float32) - np.float32(middle)) / full


def _pcm(samples: Any, bits: int) -> bytes:
    """Whole numbers as FLAC's MD5 takes them: shifted down to their width, little-endian, as few bytes as hold it."""
    width = samples.dtype.itemsize
    plain = np.ascontiguousarray(samples >> (8 * width - bits), dtype=f"<i{width}")
    return plain.view(np.uint8).reshape(-1, width)[:, : -(-bits // 8)].tobytes()


class Window(io.RawIOBase):
    """A file's bytes from `start` to `end` as a file of its own."""

    def __init__(self, stream: BinaryIO, start: int, end: int | None) -> None:
        self.stream, self.start = stream, start
        self.size = (stream.seek(0, io.SEEK_END) if end is None else end) - start
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, origin + offset)
        return self.position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self.position)
        if not left:  # no system seeks as far as a header may lead
            return b""
        self.stream.seek(self.start + self.position)
        data = self.stream.read(left if size < 0 else min(size, left))
        self.position += len(data)
        return data
