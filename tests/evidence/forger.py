"""Forged bundles: each claims something that is not so, and has every hash recomputed that a forger can recompute."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from encore.errors import InputError
from encore.evidence.derived import derived

RECORDS = ("request.json", "run.json", "metrics.json", "evaluation.json")
Members = dict[str, bytes]
Forgery = tuple[str, str, Callable[[Members, Path], None]]  # what, the member that lies, writes the bundle


def spelt(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def sealed(members: Members, *, ties: bool = True, page: bool = True) -> Members:
    """The members with ties, derived members and manifest that fit them."""
    if ties:
        for name, others in (("run.json", RECORDS[:1]), ("evaluation.json", RECORDS[:3])):
            record = json.loads(members[name])
            record |= {f"{o.removesuffix('.json')}_sha256": hashlib.sha256(members[o]).hexdigest() for o in others}
            members[name] = spelt(record)
    manifest = json.loads(members["manifest.json"])
    if page:
        hashes = {name: entry["sha256"] for name, entry in manifest["model"].items()}
        with contextlib.suppress(InputError):  # of records that no page can be made of, the old ones stay
            members |= derived({name: members[name] for name in RECORDS}, hashes)
    entries = {n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in sorted(members.items())}
    manifest["members"] = {n: e for n, e in entries.items() if not n.startswith("manifest.json")}
    return {**members, "manifest.json": spelt(manifest)}


def write(members: Members, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(members):
            archive.writestr(name, members[name])


def forgeries(seed: int) -> Iterator[Forgery]:
    """All of them; the seed picks rows, tracks and amounts."""
    rng = random.Random(seed)
    yield from _figures(rng)
    yield from _settings()
    yield from _records(rng)
    yield from _pages()
    yield from _manifests()
    yield from _models()
    yield from _json()
    yield from _archives()


def _of_record(what: str, name: str, change: Callable[[Any], Any], **how: bool) -> Forgery:
    def forge(members: Members, path: Path) -> None:
        record = json.loads(members[name])
        change(record)
        write(sealed({**members, name: spelt(record)}, **how), path)

    return what, name, forge


def _figures(rng: random.Random) -> Iterator[Forgery]:
    def of_row(what: str, change: Callable[[dict[str, Any]], Any], need: str = "value") -> Forgery:
        place = rng.random()

        def forge(record: dict[str, Any]) -> None:
            rows = [row for row in record["results"] if row[need]]
            change(rows[int(place * len(rows))])

        return _of_record(what, "metrics.json", forge)

    for factor in (0.1, 0.9, 1.01, 10.0, -1.0):
        yield of_row(f"value times {factor}", lambda row, by=factor: row.update(value=row["value"] * by))
    yield of_row("interval as wide as the world", lambda row: row.update(value=9.0, low=-1e9, high=1e9))
    yield of_row("low end", lambda row: row.update(low=row["low"] - 0.5), "low")
    yield of_row("high end", lambda row: row.update(high=row["high"] + 0.5), "low")
    yield of_row("no interval", lambda row: row.update(low=None, high=None), "low")
    yield of_row("more tracks", lambda row: row.update(n=row["n"] + 100))
    yield of_row("another unit", lambda row: row.update(unit="bits"))
    yield of_row(
        "another direction", lambda row: row.update(direction="lower" if row["direction"] != "lower" else "higher")
    )
    yield of_row("not measured", lambda row: row.update(value=None, why="not measured: the files are gone"))
    yield of_row("another reason", lambda row: row.update(why="nobody could know"), "why")
    yield of_row("a note", lambda row: row.update(note="certified by a court"))
    yield of_row("details", lambda row: row.update(details={**row["details"], "certified": True}))

    def of_tracks(what: str, change: Callable[[dict[str, float], str], Any]) -> Forgery:
        return of_row(what, lambda row: change(row["per_track"], next(iter(row["per_track"]))), "per_track")

    yield of_tracks("a track's figure", lambda tracks, first: tracks.update({first: tracks[first] + 0.05}))
    yield of_tracks("a track left out", lambda tracks, first: tracks.pop(first))
    yield of_tracks("a track made up", lambda tracks, first: tracks.update({"made-up": tracks[first]}))
    yield of_tracks("two tracks swapped", lambda tracks, first: tracks.update(
        {first: list(tracks.values())[-1], list(tracks)[-1]: tracks[first]}
    ))  # fmt: skip
    place = rng.random()
    yield _of_record("a row left out", "metrics.json", lambda r: r["results"].pop(int(place * len(r["results"]))))
    yield _of_record(
        "a row made up", "metrics.json", lambda r: r["results"].append({**r["results"][0], "metric": "award"})
    )
    yield _of_record("a row twice, one false", "metrics.json", lambda r: r["results"].append(
        {**r["results"][0], "value": 9.0}
    ))  # fmt: skip
    yield _of_record("a row of another model", "metrics.json", lambda r: r["results"][0].update(model="gold"))

    def swapped(record: dict[str, Any]) -> None:
        rows = {(row["model"], row["set"]): row for row in record["results"] if row["metric"] == "nll"}
        one, other = rows["base", "forget"], rows["unlearned", "forget"]
        one["value"], other["value"] = other["value"], one["value"]

    yield _of_record("base and unlearned swapped", "metrics.json", swapped)


def _settings() -> Iterator[Forgery]:
    yield _of_record("another seed", "evaluation.json", lambda r: r.update(seed=4))
    yield _of_record("fewer metrics", "evaluation.json", lambda r: r.update(metrics=["nll"]))
    yield _of_record("more metrics", "evaluation.json", lambda r: r.update(metrics=[*r["metrics"], "privleak"]))
    yield _of_record("a gold for the run's model", "evaluation.json", lambda r: r.update(golds={"unlearned": "tiny"}))
    yield _of_record("a gold that nobody has", "evaluation.json", lambda r: r.update(golds={"gold": "nobody/has-it"}))
    yield _of_record("a base that was not measured", "evaluation.json", lambda r: r["models"].update(base="0" * 64))
    yield _of_record(
        "a model that was not measured", "evaluation.json", lambda r: r["models"].update(unlearned="0" * 64)
    )
    yield _of_record("seed -5", "evaluation.json", lambda r: r.update(seed=-5))
    yield _of_record("metrics of another kind", "evaluation.json", lambda r: r.update(metrics=[5, None]))
    yield _of_record("samples_per_caption 0", "evaluation.json", lambda r: r.update(samples_per_caption=0))
    yield _of_record("a tie cut", "evaluation.json", lambda r: r.update(metrics_sha256="0" * 64), ties=False)

    def on_another_machine(members: Members, path: Path) -> None:
        how, metrics = (json.loads(members[name]) for name in ("evaluation.json", "metrics.json"))
        how["hardware"]["name"] = "Another Machine"
        row = next(row for row in metrics["results"] if row["low"] is not None and row["metric"] == "nll")
        row["value"] = row["low"]
        changed = {"evaluation.json": spelt(how), "metrics.json": spelt(metrics)}
        write(sealed({**members, **changed}), path)

    yield "another machine, and a figure at its interval's end", "evaluation.json", on_another_machine
    yield _of_record("another machine alone", "evaluation.json", lambda r: r["hardware"].update(name="Fast One"))
    yield _of_record("a note of the evaluation", "evaluation.json", lambda r: r["notes"].append("certified"))
    yield _of_record("another date", "evaluation.json", lambda r: r.update(measured="2020-01-01T00:00:00Z"))


def _records(rng: random.Random) -> Iterator[Forgery]:
    def captions(record: dict[str, Any]) -> None:
        one, *_, other = record["forget"]
        one["caption"], other["caption"] = "another caption", one["caption"]

    def files(record: dict[str, Any]) -> None:
        one, *_, other = record["forget"]
        for key in ("sha256", "pcm_sha256"):
            one[key], other[key] = other[key], one[key]

    yield _of_record("captions of other tracks", "request.json", captions)

    def every_caption(record: dict[str, Any]) -> None:
        captions(record)
        for entry in record["forget"]:
            entry["captions"] = [entry["caption"]]

    yield _of_record("every caption of other tracks", "request.json", every_caption)
    yield _of_record("hashes of other tracks", "request.json", files)
    yield _of_record("tracks in another order", "request.json", lambda r: r["forget"].reverse())
    yield _of_record("a track that nobody has", "request.json", lambda r: r["forget"][0].update(
        sha256="0" * 64, pcm_sha256="0" * 64
    ))  # fmt: skip
    yield _of_record("a track left out of the request", "request.json", lambda r: r["forget"].pop())
    yield _of_record("a track to retain left out", "request.json", lambda r: r["retain"].pop())
    yield _of_record("another method in one record", "request.json", lambda r: r.update(method="npo"))
    yield _of_record("another seed in one record", "run.json", lambda r: r.update(seed=99))
    yield _of_record("other options in one record", "run.json", lambda r: r["options"]["steps"].update(value=999))
    yield _of_record("another base", "run.json", lambda r: r["model"].update(sha256="0" * 64))
    yield _of_record("another model written", "run.json", lambda r: r.update(unlearned_sha256="0" * 64))
    yield _of_record("records of other runs", "run.json", lambda r: r.update(request_sha256="0" * 64), ties=False)
    yield _of_record("who asked", "request.json", lambda r: r.update(requester="Somebody Else"))
    yield _of_record("when it was asked", "request.json", lambda r: r.update(requested="2020-01-01"))
    yield _of_record("a title", "request.json", lambda r: r["forget"][0].update(title=f"Title {rng.random()}"))
    yield _of_record("a note of the run", "run.json", lambda r: r["notes"].append("certified by a court"))
    yield _of_record("what the run reached", "run.json", lambda r: r["outcome"].update(reached_target=True, steps=1))


def _pages() -> Iterator[Forgery]:
    def text(name: str, old: bytes, new: bytes) -> Forgery:
        def forge(members: Members, path: Path) -> None:
            assert old in members[name]
            write(sealed({**members, name: members[name].replace(old, new, 1)}, page=False), path)

        return f"{name}: {new.decode()[:20]}", name, forge

    yield text("report.html", b"</h1>", b"</h1><p>Certified: all deleted.</p>")
    yield text("report.html", b"</body>", b"<script>1</script></body>")
    yield text("model-card.md", b"## Figures", b"## Certified\n\n## Figures")
    yield text("bom.cdx.json", b'"bomFormat"', b'"author": "a court",\n  "bomFormat"')

    def of_another_encore(members: Members, path: Path) -> None:
        manifest = json.loads(members["manifest.json"])
        manifest["made_with"]["encore"] = "9.9"
        page = members["report.html"].replace(b"</h1>", b"</h1><p>Certified.</p>", 1)
        write(sealed({**members, "report.html": page, "manifest.json": spelt(manifest)}, page=False), path)

    yield "report of another Encore", "report.html", of_another_encore

    def sound(members: Members, path: Path) -> None:
        name = next(name for name in members if name.endswith(".after.wav"))
        write(sealed({**members, name: members[name][:44] + bytes(len(members[name]) - 44)}), path)

    yield "silence for a generation", "samples/", sound


def _manifests() -> Iterator[Forgery]:
    def of_manifest(what: str, change: Callable[[dict[str, Any]], Any]) -> Forgery:
        def forge(members: Members, path: Path) -> None:
            manifest = json.loads(members["manifest.json"])
            change(manifest)
            write({**members, "manifest.json": spelt(manifest)}, path)

        return what, "manifest.json", forge

    yield of_manifest("a key too many", lambda m: m.update(certified=True))
    yield of_manifest("another hash", lambda m: m["members"]["run.json"].update(sha256="0" * 64))
    yield of_manifest("a member that is not there", lambda m: m["members"].update(x=m["members"]["run.json"]))
    yield of_manifest("weights of another model", lambda m: m.update(weights_sha256="0" * 64))
    yield of_manifest("a model file of another name", lambda m: m["model"].update(x=m["members"]["run.json"]))
    yield of_manifest("says it holds no model", lambda m: m["includes"].update(model=False))

    def raw(what: str, name: str, content: bytes) -> Forgery:
        return what, name, lambda members, path: write({**members, name: content}, path)

    yield raw("a manifest nested without end", "manifest.json", b"[" * 100_000)
    yield raw("a signature of nothing", "manifest.json.sig", b"{}")
    yield raw("a signature that is no JSON", "manifest.json.sig", b"\xff")
    yield raw("a timestamp of nothing", "manifest.json.tsr", b"today")


def _models() -> Iterator[Forgery]:
    def of_file(what: str, name: str, change: Callable[[bytes], bytes]) -> Forgery:
        def forge(members: Members, path: Path) -> None:
            content = change(members.get(f"model/{name}", b""))
            manifest = json.loads(members["manifest.json"])
            manifest["model"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            manifest["model"] = dict(sorted(manifest["model"].items()))
            write(sealed({**members, f"model/{name}": content, "manifest.json": spelt(manifest)}), path)

        return what, f"model/{name}", forge

    yield of_file("weights of another model", "model.safetensors", lambda old: old[:-4] + b"\0\0\0\1")
    yield of_file("code in the model", "modeling.py", lambda old: b"raise SystemExit(0)")
    yield of_file("a compiled module in the model", "sub/x.so", lambda old: b"\x7fELF")
    yield of_file("a pickle in the model", "state.pkl", lambda old: b"\x80\x04.")
    yield of_file(
        "settings that name code", "config.json", lambda old: spelt({**json.loads(old), "auto_map": {"A": "m.A"}})
    )


def _json() -> Iterator[Forgery]:
    def of_text(what: str, name: str, change: Callable[[bytes], bytes]) -> Forgery:
        def forge(members: Members, path: Path) -> None:
            write(sealed({**members, name: change(members[name])}, ties=False, page=False), path)

        return what, name, forge

    twice = b'{\n  "seed": 1,'
    yield of_text("a key twice", "run.json", lambda old: old.replace(b"{", twice, 1))
    yield of_text("a number that is none", "metrics.json", lambda old: old.replace(b'"n": ', b'"n": NaN, "m": ', 1))
    yield of_text("a byte order mark", "request.json", lambda old: b"\xef\xbb\xbf" + old)
    yield of_text("text behind the record", "request.json", lambda old: old + b"certified")
    yield of_text("nesting without end", "evaluation.json", lambda old: b"[" * 100_000)
    yield of_text("another spelling", "metrics.json", lambda old: old.replace(b"\n", b"\r\n"))


def _archives() -> Iterator[Forgery]:
    def with_member(
        what: str, name: str, content: bytes = b"x", mode: int = stat.S_IFREG, deflate: bool = False
    ) -> Forgery:
        def forge(members: Members, path: Path) -> None:
            write(members, path)
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(info, content)

        return what, name, forge

    yield with_member("a member twice", "run.json", b"{}\n")
    yield with_member("a path upwards", "../out")
    yield with_member("a path from the root", "/etc/out")
    yield with_member("a path with a drive", "C:\\out")
    yield with_member("a link", "samples/forget/x.wav", b"/etc/passwd", stat.S_IFLNK)
    yield with_member("a pipe", "samples/forget/x.wav", b"", stat.S_IFIFO)
    yield with_member("a bomb", "samples/forget/x.wav", bytes(10_000_000), deflate=True)
    yield with_member("a name that turns around", "report.\u202elmth")
    yield with_member("a name in capitals", "REPORT.html")
    yield with_member("a readme", "README.txt", b"certified")

    def listed(members: Members, path: Path) -> None:
        write(sealed({**members, "CERTIFICATE.txt": b"all deleted"}), path)

    yield "a member that no bundle has, listed", "CERTIFICATE.txt", listed

    def of_bytes(what: str, change: Callable[[bytes], bytes]) -> Forgery:
        def forge(members: Members, path: Path) -> None:
            write(members, path)
            path.write_bytes(change(path.read_bytes()))

        return what, "the archive", forge

    yield of_bytes("another file before it", lambda old: b"<html>certified</html>" + old)
    yield of_bytes("bytes behind it", lambda old: old + b"certified")
    yield of_bytes("a size that only its header says", lambda old: old[:18] + b"\1\0\0\0" + old[22:])
    yield of_bytes("cut off", lambda old: old[:-30])
    yield of_bytes("a bit turned", lambda old: old[:5000] + bytes([old[5000] ^ 1]) + old[5001:])
    yield of_bytes("a comment", lambda old: old[:-2] + struct.pack("<H", 9) + b"certified")

    def between(members: Members, path: Path) -> None:
        write(members, path)
        old = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            start = archive.start_dir
        end = old[-22:]
        moved = end[:16] + struct.pack("<I", start + 9) + end[20:]
        path.write_bytes(old[:start] + b"certified" + old[start:-22] + moved)

    yield "bytes between members and directory", "the archive", between
