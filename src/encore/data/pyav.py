"""Decode audio with PyAV (FFmpeg's libraries), for all formats.

FFmpeg skips packets that it can't decode. Here these are errors: a packet marked as corrupt, a decoder error, a gap in
the timestamps, a change of rate or channels, and fewer packets than the container declares.
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
"""Approximate number of frames per block."""

_PROBED = (
    "aa,aax,ac3,act,adx,amr,amrnb,amrwb,ape,apc,aptx,asf,avi,brstm,caf,dsf,dts,dtshd,eac3,flv,gsm,iff,ircam,epaf,loas,mlp,"
    "mpc,mpc8,mpeg,mpegts,nistsphere,nut,oma,paf,pvf,qcp,qoa,rm,rso,sds,shn,sox,svx,tak,truehd,tta,voc,vqf,w64,wsaud,"
    "wtv,xa,xwma"
)
"""Demuxers for files that `containers` does not recognise; none that opens other files (playlists)."""

_TIMELESS = "ac3,act,adx,amr,amrnb,amrwb,aptx,dts,dtshd,eac3,flv,gsm,loas,mlp,mpeg,mpegts,qoa,rm,shn,truehd"
"""Demuxers that only estimate the length (bytes by bit rate, or the last timestamp)."""

_PLAIN = frozenset({"wav", "aiff", "au", "caf"})
"""Kinds whose last packet is short where their length is not declared; FFmpeg marks it as corrupt."""


class NotAudio(Exception):
    """FFmpeg doesn't recognise the file; the text is its reason."""


@dataclass
class Stream:
    """An open decoder.

    Args:
        rate: declared sample rate, Hz.
        channels: declared channels.
        frames: exact declared number of audio frames; None without one.
        least: fewest frames that must be decoded.
        format: as in `decode.Audio`.
        blocks: decoded audio, float32 [frames, channels].
    """

    rate: int
    channels: int
    frames: int | None
    least: int
    format: str
    blocks: Iterator[Samples]


def open_av(stream: BinaryIO, container: Container, name: str) -> Stream:
    """Open the audio stream that FFmpeg considers best.

    Args:
        stream: the open file.
        container: result of `containers.inspect`.
        name: of the file, for messages.

    Raises:
        NotAudio: FFmpeg doesn't recognise it.
        InputError: it has no audio.
        Damage: it has an impossible declaration.
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
    # FFmpeg's message without the errno before and the file name after it
    return printable(getattr(error, "strerror", None) or error)


def _least(source: Any, track: Any, rate: int) -> int:
    """Frames by the container's duration, minus the largest encoder delay and padding that it may include."""
    seconds = None
    several = len(source.streams) > 1
    if source.format.name not in _TIMELESS.split(",") and not (several and source.format.name == "asf"):
        if track.duration and track.time_base:
            seconds = float(track.duration * track.time_base)
        elif source.duration and not several:
            seconds = source.duration / 1e6
    if seconds is not None and source.format.name == "ogg" and track.codec_context.name == "opus":
        # FFmpeg counts from 0; an Opus stream may begin later, and skips its first samples (RFC 7845, 4.1 and 4.2).
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
            raise Damage("has samples whose MD5 differs from the declared one")

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
            raise Damage(f"declares {self.track.frames:,} packets and has {given:,}")

    def _check(self, frame: Any) -> None:
        if frame.is_corrupt:
            raise Damage("has a packet that can't be decoded completely")
        if (frame.sample_rate, frame.layout.nb_channels) != (self.rate, self.channels):
            raise Damage("changes its sample rate or channels in the middle")
        # For other kinds FFmpeg reconstructs the timestamps, and the check of their structure finds lost packets.
        if self.container.kind not in {"asf", "matroska", "other"}:
            return
        seconds = frame.samples / self.rate
        if frame.pts is None or not frame.time_base:  # a later frame of one packet (Monkey's Audio)
            self.next = None if self.next is None else self.next + seconds
            return
        begin = float(frame.pts * frame.time_base)
        slack = max(0.5 * seconds, 2 * float(frame.time_base), 0.005)
        if self.next is not None and begin > self.next + slack:
            raise Damage(f"has a gap of {begin - self.next:.3f} s after {self.next:.1f} s")
        self.next = begin + seconds

    def _block(self, frames: list[Any]) -> Samples:
        """Interleave and join frames; integers are divided by the power of two that is full scale."""
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
    """Integer samples in the form that FLAC's MD5 covers: shifted down to their width, little-endian, fewest bytes."""
    width = samples.dtype.itemsize
    plain = np.ascontiguousarray(samples >> (8 * width - bits), dtype=f"<i{width}")
    return plain.view(np.uint8).reshape(-1, width)[:, : -(-bits // 8)].tobytes()


class Window(io.RawIOBase):
    """The bytes of a file from `start` to `end` as a file."""

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
        if not left:  # a header may lead farther than the system can seek
            return b""
        self.stream.seek(self.start + self.position)
        data = self.stream.read(left if size < 0 else min(size, left))
        self.position += len(data)
        return data
