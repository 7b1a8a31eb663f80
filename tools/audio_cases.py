"""Hundreds of real audio files, decoded by Encore beside the `ffmpeg` command: same frames, same samples, or a refusal.

    python tools/audio_cases.py                      make and compare all; exit status 1 where one is wrong
    python tools/audio_cases.py --only mp3           only those whose name holds "mp3"
    python tools/audio_cases.py --mutations 10000    damage whole files at random; count those that are accepted short

Needs ffmpeg; lame, sox, flac, oggenc and opusenc make more files where they are installed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import soundfile

from encore.data.decode import load
from encore.errors import InputError

SECONDS = 2.3
RATE = 44_100
CLOSE = 2e-3
"""Largest difference of two samples: lossy decoders differ in rounding, and from one FFmpeg to another."""

LOCK = Lock()

Edit = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Case:
    """One file to make.

    Args:
        name: of the file. command: with `{src}`, `{out}`; without `{out}`, its stdout is the file (a pipe).
        edit: bytes to bytes, after it is made. whole: whether it must be read; else it must be refused.
        source: which sound it is made of, `RATE-CHANNELS`.
    """

    name: str
    command: str
    edit: Edit | None = None
    whole: bool = True
    source: str = "44100-2"


# ------------------------------------------------------------------------------------------------------- the sound


def sound(rate: int, channels: int, seconds: float = SECONDS) -> np.ndarray:
    """A tune with a little noise, another in each channel, int16 [S, C]."""
    noise = np.random.default_rng(rate + channels)
    time = np.arange(int(seconds * rate) + 37) / rate
    rows = []
    for channel in range(channels):
        notes = 220 * 2 ** (np.array([0, 4, 7, 12, 9, 5])[(time * 4).astype(int) % 6] / 12) * (1 + channel / 4)
        tone = np.sin(2 * np.pi * np.cumsum(notes) / rate) * (0.3 + 0.2 * np.sin(7 * time + channel))
        rows.append(tone + 0.02 * noise.standard_normal(len(time)))
    return (np.clip(np.stack(rows, 1), -1, 1) * 30_000).astype("<i2")


def write_wav(path: Path, rate: int, channels: int) -> None:
    data = sound(rate, channels).tobytes()
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels * 2, channels * 2, 16)
    path.write_bytes(b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + form)
    with path.open("ab") as file:
        file.write(b"data" + struct.pack("<I", len(data)) + data)


# --------------------------------------------------------------------------------------------------------- the files

FF = "ffmpeg -v error -y -i {src} "


def pcm() -> Iterator[Case]:
    little = ["u8", "s16le", "s24le", "s32le", "f32le", "f64le", "alaw", "mulaw"]
    big = ["s8", "s16be", "s24be", "s32be", "f32be", "f64be", "alaw", "mulaw"]
    for form in little:
        yield Case(f"wav-{form}.wav", FF + f"-c:a pcm_{form} {{out}}")
    for form in ("adpcm_ms", "adpcm_ima_wav", "adpcm_swf", "libmp3lame", "ac3"):
        yield Case(f"wav-{form}.wav", FF + f"-c:a {form} {{out}}")
    for form in ("s16le", "s24le", "f32le"):
        yield Case(f"rf64-{form}.wav", FF + f"-c:a pcm_{form} -rf64 always {{out}}")
        yield Case(f"bw64-{form}.wav", FF + f"-c:a pcm_{form} -rf64 always {{out}}", lambda raw: b"BW64" + raw[4:])
        yield Case(f"w64-{form}.w64", FF + f"-c:a pcm_{form} {{out}}")
        yield Case(f"caf-{form}.caf", FF + f"-c:a pcm_{form} {{out}}")
        yield Case(f"mka-{form}.mka", FF + f"-c:a pcm_{form} {{out}}")
        yield Case(f"mov-{form}.mov", FF + f"-c:a pcm_{form} {{out}}")
        yield Case(f"nut-{form}.nut", FF + f"-c:a pcm_{form} {{out}}")
        yield Case(f"avi-{form}.avi", FF + f"-c:a pcm_{form} {{out}}")
        yield Case(f"wav-pipe-{form}.wav", FF + f"-c:a pcm_{form} -f wav -")
    for form in ("u8", "s16le", "s24le"):
        yield Case(f"au-mulaw-{form}.au", FF + f"-af aformat=u8 -c:a pcm_mulaw -ar {RATE} {{out}}")
    for form in big:
        yield Case(f"aiff-{form}.aiff", FF + f"-c:a pcm_{form} {{out}}")
        yield Case(f"au-{form}.au", FF + f"-c:a pcm_{form} {{out}}")
    yield Case("aiff-sowt.aiff", FF + "-c:a pcm_s16le {out}")
    yield Case("aiff-ima4.aiff", FF + "-c:a adpcm_ima_qt {out}")
    yield Case("aiff-pipe.aiff", FF + "-c:a pcm_s16be -f aiff -")
    yield Case("au-pipe.au", FF + "-f au -")
    yield Case("w64-pipe.w64", FF + "-f w64 -")
    yield Case("caf-pipe.caf", FF + "-f caf -")
    yield Case("wav-bext.wav", FF + "-write_bext 1 -metadata description=d {out}")
    yield Case("wav-tags.wav", FF + "-metadata title=t -metadata artist=someone {out}")
    yield Case("wav-id3-front.wav", FF + "{out}", lambda raw: id3v2(500) + raw)
    yield Case("wav-id3v1-behind.wav", FF + "{out}", lambda raw: raw + id3v1())
    yield Case("wav-odd-bytes.wav", FF + "-ac 1 -t 0.50002 -c:a pcm_u8 {out}")
    yield Case("wav-bitexact.wav", FF + "-fflags +bitexact -flags +bitexact {out}")
    yield Case("voc.voc", FF + "-c:a pcm_u8 {out}")
    for form in ["wav", "aiff", "au", "flac", "w64", "caf", "voc", "sph", "ircam", "paf"]:
        yield Case(f"sox.{form}", f"sox {{src}} -t {form} {{out}}")
    for form in ["wav", "aiff", "au", "flac"]:
        yield Case(f"sox-pipe.{form}", f"sox {{src}} -t {form} -")
    for bits, code in itertools.product((8, 24, 32), ("signed-integer", "floating-point")):
        if (bits, code) != (8, "floating-point") and (bits, code) != (24, "floating-point"):
            encoding = "unsigned-integer" if bits == 8 else code
            yield Case(f"sox-{bits}-{code}.wav", f"sox {{src}} -b {bits} -e {encoding} {{out}}")
    for code in ("a-law", "u-law", "ima-adpcm", "ms-adpcm", "gsm-full-rate"):
        source = "8000-1" if code == "gsm-full-rate" else "44100-2"
        yield Case(f"sox-{code}.wav", f"sox {{src}} -e {code} {{out}}", source=source)


def shapes() -> Iterator[Case]:
    """Rates and channels."""
    for rate, channels in itertools.product((8_000, 16_000, 22_050, 48_000), (1, 2)):
        for name in ["wav", "flac", "mp3", "m4a", "ogg", "mka"]:
            yield Case(f"shape-{rate}-{channels}.{name}", FF + "{out}", source=f"{rate}-{channels}")
        if rate != 22_050:
            yield Case(f"shape-{rate}-{channels}.opus", FF + "{out}", source=f"{rate}-{channels}")
    for rate in (11_025, 12_000, 24_000, 32_000):
        yield Case(f"shape-{rate}.mp3", FF + "{out}", source=f"{rate}-1")
    for name in ["wav", "flac", "m4a", "ogg", "opus", "w64", "caf", "wv", "mka", "ac3", "aiff"]:
        codec = "-c:a libopus -mapping_family 1" if name == "opus" else ""
        yield Case(f"six.{name}", FF + f"-ac 6 {codec} {{out}}")
    for name in ["wav", "flac", "w64"]:
        yield Case(f"high-96000.{name}", FF + "{out}", source="96000-2")
    yield Case("eight.flac", FF + "-ac 8 {out}")
    yield Case("high-192000.flac", FF + "{out}", source="192000-1")


def mp3() -> Iterator[Case]:
    how = [
        "-V0",
        "-V2",
        "-V5",
        "-V9",
        "-b 64",
        "-b 128",
        "-b 320",
        "--abr 140",
        "-b 192 -m m",
        "-b 128 -p",
        "-b 96 -m s",
    ]
    for flags, bare in itertools.product(how, (False, True)):
        name = re.sub(r"[ -]+", "_", flags).strip("_")
        yield Case(
            f"lame-{name}{'-bare' if bare else ''}.mp3", f"lame --quiet {flags} {'-t' if bare else ''} {{src}} {{out}}"
        )
    for rate in (8, 11.025, 16, 22.05, 24, 32, 48):
        yield Case(f"lame-{rate}k.mp3", f"lame --quiet --resample {rate} {{src}} {{out}}")
        yield Case(f"lame-{rate}k-bare.mp3", f"lame --quiet -t --resample {rate} {{src}} {{out}}")
    yield Case("lame-pipe.mp3", "lame --quiet -V4 {src} -")
    for bare, name in ((False, ""), (True, "-bare")):
        make = f"lame --quiet -b 128 {'-t' if bare else ''} {{src}} {{out}}"
        tags = "--tt title --ta artist --id3v2-only" if not bare else "--id3v2-only --tt x"
        yield Case(f"id3v2{name}.mp3", make.replace("{src}", tags + " {src}"))
        yield Case(f"id3v1{name}.mp3", make, lambda raw: raw + id3v1())
        yield Case(f"id3v2-cover{name}.mp3", make, lambda raw: id3v2(500_000) + raw)
        yield Case(f"id3v2-cover-padded{name}.mp3", make, lambda raw: id3v2(90_000) + bytes(3_000) + raw)
        yield Case(f"two-id3v2{name}.mp3", make, lambda raw: id3v2(900) + id3v2(800) + raw)
        yield Case(f"ape-front{name}.mp3", make, lambda raw: ape(b"x" * 400) + raw)
        yield Case(f"ape-behind{name}.mp3", make, lambda raw: raw + ape(b"x" * 400))
        yield Case(f"ape-id3v1{name}.mp3", make, lambda raw: raw + ape(b"x" * 400) + id3v1())
        yield Case(f"junk-front{name}.mp3", make, lambda raw: b"\1junk that is no tag" * 40 + raw)
        yield Case(f"zeros-front{name}.mp3", make, lambda raw: bytes(1_000) + raw)
        yield Case(f"twice{name}.mp3", make, lambda raw: raw + raw)
    for flags in ("-b:a 128k", "-q:a 2", "-b:a 128k -abr 1", "-b:a 192k -joint_stereo 0", "-b:a 128k -reservoir 0"):
        for xing in (0, 1):
            name = re.sub(r"[ :-]+", "_", flags).strip("_")
            yield Case(f"ffmpeg{name}-xing{xing}.mp3", FF + f"-c:a libmp3lame {flags} -write_xing {xing} {{out}}")
    yield Case("ffmpeg-id3v1.mp3", FF + "-write_id3v1 1 -metadata title=x {out}")
    yield Case("ffmpeg-id3v23.mp3", FF + "-id3v2_version 3 -metadata title=x {out}")
    yield Case("ffmpeg-pipe.mp3", FF + "-f mp3 -")
    yield Case("mp2.mp2", FF + "-c:a mp2 {out}")
    yield Case("mp2-mono.mp2", FF + "-c:a mp2 -ac 1 -b:a 64k {out}")
    yield Case("mp2-low.mp2", FF + "-c:a mp2 -ar 22050 {out}")


def lossless() -> Iterator[Case]:
    for level in (0, 3, 5, 8):
        yield Case(f"flac-{level}.flac", f"flac -s -f -{level} {{src}} -o {{out}}")
        yield Case(f"ffmpeg-flac-{level}.flac", FF + f"-compression_level {level} {{out}}")
    for flags in ("--no-seektable", "--padding=50000", "--blocksize=1152", "--lax --blocksize=512", "-V --tag=TITLE=x"):
        name = re.sub(r"[ =-]+", "_", flags).strip("_")
        yield Case(f"flac-{name}.flac", f"flac -s -f {flags} {{src}} -o {{out}}")
    yield Case("flac-24.flac", FF + "-sample_fmt s32 {out}")
    yield Case("flac-pipe.flac", FF + "-f flac -")
    yield Case("flac-tool-pipe.flac", "flac -s -c {src}")
    yield Case("flac-id3-front.flac", FF + "{out}", lambda raw: id3v2(700) + raw)
    yield Case("flac-id3v1-behind.flac", FF + "{out}", lambda raw: raw + id3v1())
    yield Case("flac-ogg-tool.oga", "flac -s -f --ogg {src} -o {out}")
    yield Case("flac-ogg.ogg", FF + "-c:a flac {out}")
    for name, codec in (("alac.m4a", "alac"), ("alac.caf", "alac"), ("flac.mka", "flac"), ("flac.mp4", "flac")):
        yield Case(f"lossless-{name}", FF + f"-c:a {codec} -strict -2 {{out}}")
    yield Case("alac-24.m4a", FF + "-c:a alac -sample_fmt s32p {out}")
    for form in ("u8p", "s16p", "s32p", "fltp"):
        yield Case(f"wavpack-{form}.wv", FF + f"-sample_fmt {form} {{out}}")
    yield Case("wavpack-mono.wv", FF + "-ac 1 {out}")
    yield Case("wavpack-ape.wv", FF + "-metadata title=x {out}", lambda raw: raw + ape(b"x" * 90))
    yield Case("tta.tta", FF + "{out}")
    yield Case("tta-24.tta", FF + "-sample_fmt s32 {out}")


def lossy() -> Iterator[Case]:
    for quality in (-1, 2, 6, 10):
        yield Case(f"oggenc-{quality}.ogg", f"oggenc -Q -q {quality} {{src}} -o {{out}}")
    yield Case("oggenc-managed.ogg", "oggenc -Q --managed -b 96 {src} -o {out}")
    yield Case("oggenc-mono.ogg", "oggenc -Q --downmix {src} -o {out}")
    yield Case("oggenc-tags.ogg", "oggenc -Q -t title -a artist {src} -o {out}")
    yield Case("oggenc-pipe.ogg", "oggenc -Q -o - {src}")
    for flags in (
        "--bitrate 32",
        "--bitrate 160",
        "--framesize 2.5",
        "--framesize 60",
        "--hard-cbr",
        "--comp 0",
        "--downmix-mono",
    ):
        name = re.sub(r"[ -]+", "_", flags).strip("_")
        yield Case(f"opusenc{name}.opus", f"opusenc --quiet {flags} {{src}} {{out}}")
    yield Case("opusenc-pipe.opus", "opusenc --quiet {src} -")
    yield Case("ffmpeg-vorbis.ogg", FF + "-c:a libvorbis -q:a 4 {out}")
    yield Case("ffmpeg-vorbis-native.ogg", FF + "-c:a vorbis -strict -2 {out}")
    yield Case("ffmpeg-pipe.ogg", FF + "-c:a libvorbis -f ogg -")
    yield Case("chained.ogg", FF + "-c:a libvorbis {out}", lambda raw: raw + other_serial(raw))
    yield Case("speex.ogg", FF + "-c:a libspeex {out}", source="16000-1")
    for rate in (64, 128, 256):
        yield Case(f"aac-{rate}.m4a", FF + f"-c:a aac -b:a {rate}k {{out}}")
    yield Case("aac-fast.m4a", FF + "-movflags +faststart {out}")
    yield Case("aac-fragmented.m4a", FF + "-movflags +frag_keyframe+empty_moov -frag_duration 500000 {out}")
    yield Case("aac-pipe.m4a", FF + "-movflags +frag_keyframe+empty_moov -f mp4 -")
    yield Case("aac-tags.m4b", FF + "-metadata title=x -f mp4 {out}")
    yield Case("aac.mov", FF + "{out}")
    yield Case("aac.3gp", FF + "-c:a aac {out}")
    for codec in ("libmp3lame", "libopus", "ac3"):
        yield Case(f"mp4-{codec}.mp4", FF + f"-c:a {codec} -strict -2 {{out}}")
    yield Case("adts.aac", FF + "{out}")
    yield Case("adts-mono.aac", FF + "-ac 1 {out}")
    yield Case("adts-id3.aac", FF + "{out}", lambda raw: id3v2(300) + raw)
    for codec in ("aac", "libopus", "libvorbis", "libmp3lame", "ac3", "mp2"):
        yield Case(f"mka-{codec}.mka", FF + f"-c:a {codec} {{out}}")
        yield Case(f"mka-pipe-{codec}.mka", FF + f"-c:a {codec} -f matroska -")
    for codec in ("libopus", "libvorbis"):
        yield Case(f"webm-{codec}.webm", FF + f"-c:a {codec} {{out}}")
        yield Case(f"webm-pipe-{codec}.webm", FF + f"-c:a {codec} -f webm -")
        yield Case(f"webm-live-{codec}.webm", FF + f"-c:a {codec} -live 1 {{out}}")
    yield Case("opus.caf", FF + "-c:a libopus {out}")
    yield Case("aac.caf", FF + "-c:a aac {out}")
    for codec, ending in itertools.product(("wmav1", "wmav2"), ("wma", "asf")):
        yield Case(f"{codec}.{ending}", FF + f"-c:a {codec} {{out}}")
    yield Case("wma-pipe.wma", FF + "-c:a wmav2 -f asf -")
    for name, flags in (("ac3", ""), ("eac3", ""), ("dts", "-c:a dca -strict -2")):
        yield Case(f"raw.{name}", FF + f"{flags} {{out}}")
    yield Case("mp3.avi", FF + "-c:a libmp3lame {out}")
    yield Case("mp3.flv", FF + "-c:a libmp3lame {out}")
    yield Case("aac.flv", FF + "-c:a aac {out}")
    yield Case("mp2.mpg", FF + "-c:a mp2 {out}")
    yield Case("aac.ts", FF + "-c:a aac {out}")
    yield Case("mp3.nut", FF + "-c:a libmp3lame {out}")
    yield Case("video.mp4", "ffmpeg -v error -y -f lavfi -i color=s=64x64:d=2.3 -i {src} -c:v mpeg4 -shortest {out}")
    yield Case("video.mkv", "ffmpeg -v error -y -f lavfi -i color=s=64x64:d=2.3 -i {src} -c:v mpeg4 {out}")


def damaged() -> Iterator[Case]:
    """Made whole, then damaged: each must be refused."""
    kinds = {
        "wav": FF + "{out}", "w64": FF + "{out}", "aiff": FF + "{out}", "au": FF + "{out}", "caf": FF + "{out}",
        "flac": FF + "{out}", "ogg": FF + "{out}", "opus": FF + "{out}", "m4a": FF + "{out}", "mka": FF + "{out}",
        "webm": FF + "{out}", "wma": FF + "{out}", "wv": FF + "{out}", "tta": FF + "{out}", "mp3": FF + "{out}",
        "aac": FF + "{out}", "alac.m4a": FF + "-c:a alac {out}", "mp3.mka": FF + "-c:a libmp3lame {out}",
        "vbr.mp3": "lame --quiet -V2 {src} {out}", "bare.mp3": "lame --quiet -V2 -t {src} {out}",
        "bare-cbr.mp3": "lame --quiet -b 128 -t {src} {out}", "fast.m4a": FF + "-movflags +faststart {out}",
    }  # fmt: skip
    for kind, make in kinds.items():
        for part in (0.35, 0.61, 0.97):
            yield Case(f"cut-{part}.{kind}", make, lambda raw, part=part: raw[: int(len(raw) * part)], whole=False)
        yield Case(f"hole.{kind}", make, lambda raw: raw[: len(raw) // 2] + raw[len(raw) // 2 + 301 :], whole=False)
    noise = random.Random(0).randbytes(9_000)
    for kind in ("bare.mp3", "bare-cbr.mp3", "mp3", "aac", "ogg", "flac", "mka", "wv"):
        edit: Edit = lambda raw: raw[: len(raw) // 2] + noise[: len(raw) // 3]  # noqa: E731
        yield Case(f"noise-behind.{kind}", kinds[kind], edit, whole=False)
        yield Case(
            f"noise-inside.{kind}", kinds[kind], lambda raw: over(raw, len(raw) // 2, noise[:3_000]), whole=False
        )
    yield Case("lie-half.flac", FF + "{out}", lambda raw: flac_total(raw, 0.5), whole=False)
    yield Case("lie-more.flac", FF + "{out}", lambda raw: flac_total(raw, 1.5), whole=False)
    yield Case("lie-md5.flac", FF + "{out}", lambda raw: over(raw, 26, b"\1" * 16), whole=False)
    yield Case("lie-comm.aiff", FF + "{out}", lambda raw: at(raw, b"COMM", 10, ">I", lambda n: 2 * n), whole=False)
    yield Case("lie-data.wav", FF + "{out}", lambda raw: at(raw, b"data", 4, "<I", lambda n: n // 4 * 2), whole=False)
    yield Case("lie-channels.wav", FF + "{out}", lambda raw: at(raw, b"fmt ", 10, "<H", lambda n: 2 * n), whole=False)
    yield Case("lie-count.mp3", FF + "{out}", lambda raw: at(raw, b"Info", 8, ">I", lambda n: 2 * n), whole=False)
    yield Case("lie-count-less.mp3", FF + "{out}", lambda raw: at(raw, b"Info", 8, ">I", lambda n: n // 2), whole=False)


CASES = (pcm, shapes, mp3, lossless, lossy, damaged)


# ----------------------------------------------------------------------------------------------------------- editing


def id3v2(length: int) -> bytes:
    body = b"APIC" + struct.pack(">I", length - 10) + b"\0\0" + bytes([0]) + b"image/png\0\3\0"
    body = (body + bytes(random.Random(1).choices(range(0x20, 0x7F), k=length)))[:length]
    return b"ID3\3\0\0" + bytes(length >> shift & 127 for shift in (21, 14, 7, 0)) + body


def id3v1() -> bytes:
    return b"TAG" + b"title".ljust(30) + bytes(95)


def ape(value: bytes) -> bytes:
    """An APEv2 tag with header and footer."""
    item = struct.pack("<II", len(value), 0) + b"Title\0" + value
    ends = [struct.pack("<8sIIII8x", b"APETAGEX", 2000, len(item) + 32, 1, flags) for flags in (0xA0000000, 0x80000000)]
    return ends[0] + item + ends[1]


def over(raw: bytes, position: int, what: bytes) -> bytes:
    return raw[:position] + what + raw[position + len(what) :]


def at(raw: bytes, mark: bytes, offset: int, form: str, change: Callable[[int], int]) -> bytes:
    """Change the number that stands so many bytes behind a mark."""
    position = raw.index(mark) + offset
    value = struct.unpack_from(form, raw, position)[0]
    return over(raw, position, struct.pack(form, change(value)))


def flac_total(raw: bytes, factor: float) -> bytes:
    packed = int.from_bytes(raw[18:26], "big")
    total = packed & (2**36 - 1)
    return over(raw, 18, (packed - total + int(total * factor)).to_bytes(8, "big"))


def other_serial(raw: bytes) -> bytes:
    """The same Ogg stream under another serial number, so that the two may be chained (RFC 3533, 4)."""
    from encore.data.page_containers import ogg_checksum

    out, position = b"", 0
    while position < len(raw):
        count = raw[position + 26]
        length = 27 + count + sum(raw[position + 27 : position + 27 + count])
        page = over(over(raw[position : position + length], 14, b"\7\7\7\7"), 22, bytes(4))
        out += over(page, 22, ogg_checksum(page).to_bytes(4, "little"))
        position += length
    return out


# --------------------------------------------------------------------------------------------------------- comparing


def make(case: Case, folder: Path) -> Path | None:
    """The file; None where its tool is missing, or can't make it."""
    if shutil.which(case.command.split()[0]) is None:
        return None
    rate, channels = map(int, case.source.split("-"))
    source = folder / f"source-{case.source}.wav"
    with LOCK:
        if not source.exists():
            write_wav(source, rate, channels)
    path = folder / case.name
    words = [word.replace("{src}", str(source)).replace("{out}", str(path)) for word in case.command.split()]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        return None
    if "{out}" not in case.command:
        path.write_bytes(done.stdout)
    if case.edit:
        path.write_bytes(case.edit(path.read_bytes()))
    return path


def by_ffmpeg(path: Path) -> tuple[np.ndarray, int] | None:
    """What `ffmpeg` decodes, float32 [S, C], and the rate; None where it can't."""
    command = ["ffmpeg", "-v", "quiet", "-i", str(path), "-map", "0:a:0", "-f", "au", "-c:a", "pcm_f32be", "-"]
    raw = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout
    if raw[:4] != b".snd":
        return None
    begin, _, _, rate, channels = struct.unpack_from(">5I", raw, 4)  # the header's, which saves a process of ffprobe
    return np.frombuffer(raw, ">f4", offset=begin).astype(np.float32).reshape(-1, channels), rate


def by_encore(path: Path, rate: int, channels: int) -> np.ndarray | str:
    """What Encore decodes, float32 [S, C], or why it refuses."""
    try:
        audio = load(path, sample_rate=rate, channels=channels)
    except InputError as error:
        return error.message
    if (audio.source_rate, audio.source_channels) != (rate, channels):
        return np.zeros((0, channels), np.float32)  # the same would be silently wrong
    return audio.samples.T


def judge(case: Case, path: Path) -> tuple[str, str]:
    """The verdict and what to say of it."""
    answer = by_ffmpeg(path) if case.whole else None
    if answer is None:
        got = by_encore(path, RATE, 2)
        return ("refused rightly", got) if isinstance(got, str) else ("silently wrong", f"{len(got):,} frames")
    want, rate = answer
    got = by_encore(path, rate, want.shape[1])
    if isinstance(got, str):
        return "wrongly refused", got
    if got.shape != want.shape:
        return "silently wrong", f"{len(got):,} frames, ffmpeg {len(want):,}"
    if alike(got, want) or alike(got, by_libsndfile(path)):
        return "right", ""
    return "silently wrong", f"samples differ by {np.abs(got - want).max():.4f}"


def alike(got: np.ndarray, want: np.ndarray | None) -> bool:
    """Whether two decoders give the same, but for where two chained Vorbis streams meet (119 frames, FFmpeg 5)."""
    if want is None or got.shape != want.shape:
        return False
    return bool((np.abs(got - want).max(axis=1, initial=0) > CLOSE).mean() <= 1e-3)


def by_libsndfile(path: Path) -> np.ndarray | None:
    """A second opinion, float32 [S, C]: FFmpeg 5 decodes MPEG-2 layer III and its own Vorbis wrongly here and there."""
    try:
        return soundfile.read(path, dtype="float32", always_2d=True)[0]
    except soundfile.SoundFileError:
        return None


def one(case: Case, folder: Path) -> tuple[Case, str, str]:
    """Make and judge a case: its verdict and what to say of it."""
    path = make(case, folder)
    if path is None:
        return case, "not made", case.command.split()[0]
    verdict, says = judge(case, path)
    path.unlink()
    return case, verdict, says


def compare(only: str, folder: Path, chosen: int = 1) -> Counter[str]:
    """Make and judge the cases whose name holds `only`, every `chosen`-th of them."""
    verdicts: Counter[str] = Counter()
    cases = [case for group in CASES for case in group() if only in case.name]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for case, verdict, says in pool.map(lambda case: one(case, folder), cases[::chosen]):
            verdicts["made"] += verdict != "not made"
            verdicts[verdict] += 1
            if verdict in (*WRONG, "not made"):
                print(f"{verdict:<16} {case.name}: {says.replace(str(folder), '')}", flush=True)
    return verdicts


WRONG = ("silently wrong", "wrongly refused")
ROWS = ("made", "right", "refused rightly", *WRONG, "not made")


# --------------------------------------------------------------------------------------------------------- mutations

DECLARING = re.compile(
    r"^(wav-s16le|rf64-s16le|w64-s24le|caf-s16le|aiff-s16be|au-s16be|mka-aac|mka-libopus|webm-libvorbis|lame-V2"
    r"|lame-b_128|ffmpegb_a_128k-xing1|flac-5|ffmpeg-flac-5|flac-ogg|oggenc-2|opusenc_bitrate_32|aac-128|aac-fast"
    r"|lossless-alac|wmav2|wavpack-s16p|tta|lossless-flac)\.\w+$"
)
"""Whole files whose container declares a length or a checksum."""


def mutate(raw: bytes, chance: random.Random) -> tuple[str, bytes]:
    """One random damage: its kind and what is left."""
    kind = chance.choice(("truncated", "cut out", "overwritten", "bits flipped"))
    begin = chance.randrange(len(raw)) if chance.random() < 0.8 else chance.randrange(min(len(raw), 200))
    length = chance.choice((1, 4, 64, 417, 1024, 5000))
    if kind == "truncated":
        return kind, raw[: max(1, begin)]
    if kind == "cut out":
        return kind, raw[:begin] + raw[begin + length :]
    if kind == "overwritten":
        return kind, over(raw, begin, chance.randbytes(length))[: len(raw)]
    changed = bytearray(raw)
    for _ in range(chance.randrange(1, 9)):
        changed[min(len(raw) - 1, begin + chance.randrange(64))] ^= 1 << chance.randrange(8)
    return kind, bytes(changed)


def mutations(count: int, seed: int, folder: Path, only: str = "") -> Counter[str]:
    """Damage files at random and count what is made of them."""
    cases = [case for group in CASES for case in group() if DECLARING.match(case.name) and only in case.name]
    files = {case.name: path.read_bytes() for case in cases if (path := make(case, folder))}
    frames = {name: load(folder / name, sample_rate=16_000).frames_decoded for name in files}
    chance, verdicts = random.Random(seed), Counter[str]()
    for number in range(count):
        name = sorted(files)[number % len(files)]
        kind, raw = mutate(files[name], chance)
        (folder / name).write_bytes(raw)
        verdicts["tried"] += 1
        try:
            audio = load(folder / name, sample_rate=16_000)
        except InputError:
            verdicts["refused"] += 1
            continue
        if audio.frames_decoded < frames[name]:
            verdicts["accepted short"] += 1
            print(f"accepted short   {name} {kind}, mutation {number}: {audio.frames_decoded:,} of {frames[name]:,}")
            if keep := os.environ.get("AUDIO_CASES_KEEP"):
                shutil.copy(folder / name, Path(keep) / f"{number}-{name}")
        else:
            verdicts["accepted whole"] += 1
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--mutations", type=int, default=0, help="how many random damages to try, instead")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if shutil.which("ffmpeg") is None:
        sys.exit("ffmpeg is needed: install it")
    with tempfile.TemporaryDirectory() as folder:
        if given.mutations:
            verdicts = mutations(given.mutations, given.seed, Path(folder), given.only)
            rows: tuple[str, ...] = ("tried", "refused", "accepted whole", "accepted short")
        else:
            verdicts, rows = compare(given.only, Path(folder)), ROWS
    for row in rows:
        print(f"{row:<16} {verdicts[row]:>6}")
    return int(any(verdicts[row] for row in (*WRONG, "accepted short")))


if __name__ == "__main__":
    sys.exit(main())
