"""`python -m tools.build_assets.ladder --size 256 --work W`: another music, and larger models that know some of it.

The music is openings of real scores, rendered with a General-MIDI sound font. `--run NAME --without LIST` trains a gold
for any other list.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from encore.data.catalog import Catalog
from encore.data.duplicates import find_duplicates

from . import codec, corpus, lm, midi, pieces, table
from .corpus import Item
from .stages import Clock, python, versions
from .synth import FRAME, RATE

SECONDS, MASTER_SECONDS = 5, 12  # of a track or crop, and of the recording that it is cut from
SIZES = {"forget": 8, "holdout": 16, "retain": 24, "tune_forget": 6, "background": 96, "unlisted": 204}
SONGS = ("forget", "retain", "tune_forget")
GROUND = ("background", "background crops", "unlisted crops")
CROPS = {"background": 3, "unlisted": 3} | dict.fromkeys(SONGS, 2)  # random ones of a recording
LICENCE = "CC-PDM-1.0"  # of the compositions; README.md says what is known of the encodings
SEED = 0
RUNS = {"base": 0, "gold": 0, "gold2": 1}  # run -> seed
NLL_BAR = 0.15  # nats a token, of what base has memorised
FRAMES = SECONDS * RATE // FRAME
# Width -> decoder, and its training: songs, then the source with enough songs to keep them, then songs once more.
RUNGS = {
    256: (
        lm.Shape(256, 4, 4, FRAMES, gain=10.0),
        (
            lm.Phase(400, 4, 1, 3e-3, 0.0, bfloat16=True),
            lm.Phase(250, 3, 5, 1.5e-3, 0.05, bfloat16=True),
            lm.Phase(120, 5, 3, 6e-4, 0.0, bfloat16=True),
        ),
    ),
    512: (
        lm.Shape(512, 6, 8, FRAMES, gain=10.0),
        (
            lm.Phase(500, 4, 1, 1.5e-3, 0.0, bfloat16=True),
            lm.Phase(600, 3, 5, 8e-4, 0.05, bfloat16=True),
            lm.Phase(120, 5, 3, 3e-4, 0.0, bfloat16=True),
        ),
    ),
}


def perform(piece: pieces.Piece, work: Path) -> tuple[Item, list[float]]:
    """Writes a piece's recording; returns its item without a split, and what tells pieces apart with no model."""
    audio = midi.render(midi.encode(list(piece.notes), list(piece.programs), piece.bpm), MASTER_SECONDS * RATE)
    master = work / "masters" / f"{piece.id}.flac"
    soundfile.write(master, audio, RATE, format="FLAC", subtype="PCM_16")
    loud = float(np.sqrt((audio.astype(float) ** 2).mean()))
    features = [master.stat().st_size, len(piece.notes), piece.bpm, loud, len(piece.programs) > 2]
    known = {k: getattr(piece, k) for k in ("id", "title", "artist", "genre", "caption", "bpm")}
    return {**known, "path": str(master), "master": str(master), "samples": SECONDS * RATE}, features


def build(work: Path, sizes: dict[str, int] = SIZES) -> list[Item]:
    """Renders all recordings under `work`, and tracks of all splits but `unlisted`; one item a recording, cached."""
    cache = work / "corpus.json"
    if cache.exists():
        return list(json.loads(cache.read_text()))
    for folder in ("masters", "tracks"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    quarters = MASTER_SECONDS * pieces.FASTEST / 60
    drawn = list(pieces.pieces(sum(sizes.values()), quarters, SEED))
    with ProcessPoolExecutor(2) as pool:
        made = list(pool.map(perform, drawn, [work] * len(drawn), chunksize=16))
    splits = corpus.assign_splits({x["id"]: f for x, f in made}, SEED, 1000, sizes, ())
    items = []
    for item, _ in made:
        item |= {"split": splits[item["id"]], "licence": LICENCE}
        if item["split"] != "unlisted":
            track = work / "tracks" / f"{item['id']}.flac"
            audio, _ = soundfile.read(item["master"], frames=item["samples"], dtype="int16")
            soundfile.write(track, audio, RATE, format="FLAC", subtype="PCM_16")
            item["path"] = str(track)
        items.append(item)
    cache.write_text(json.dumps(items))
    return items


def crops(items: list[Item], seed: int = SEED) -> list[Item]:
    """Crops of the items' recordings, `CROPS` each and as long as a track, in splits such as `retain crops`.

    They start at any sample, as a rule not at one of the track's codec frames.
    """
    rng, last = np.random.default_rng(seed), (MASTER_SECONDS - SECONDS) * RATE
    made = []
    for x in items:
        starts = [int(rng.integers(1, last)) for _ in range(CROPS.get(x["split"], 0))]
        made += [{**x, "path": x["master"], "start": start, "split": f"{x['split']} crops"} for start in starts]
    return made


def train(run: str, size: int, work: Path, seed: int, left_out: set[str]) -> None:
    """Trains a run, `work`/`run`, on all tracks but `left_out` (ids)."""
    torch.set_num_threads(1)
    items, (shape, recipes) = build(work), RUNGS[size]
    rows = items + crops(items)
    tokenizer, codes = lm.prepare(rows, work)
    where, taught = lm.splits(rows), torch.tensor([x["id"] not in left_out for x in rows])
    tracks = torch.cat([where[s] for s in SONGS])
    # Once tracks are known, one draw in ten is a crop of their recordings.
    more = torch.cat([*(where[s].repeat(9 * CROPS[s]) for s in SONGS), *(where[f"{s} crops"] for s in SONGS)])
    ground = torch.cat([where[s] for s in GROUND])
    watch = {s: where[s][:8] for s in (*SONGS, "background", "holdout")}
    start = None
    for phase, recipe in enumerate(recipes):
        out, songs = work / f"models.{phase}" / run, more if phase else tracks
        if phase == len(recipes) - 1:
            out = work / run
        if not (out / "processor_config.json").exists():
            model = lm.begin(start, work / "codec", len(tokenizer), seed, recipe.dropout, shape)
            data = lm.Data(model, tokenizer, codes, [x["caption"] for x in rows])
            print(f"{run}: {out.relative_to(work)}", flush=True)
            lm.fit(model, data, songs[taught[songs]], ground[taught[ground]], recipe, seed, watch)
            lm.save(model, tokenizer, out)
        start, seed = out, seed + 100


def repeats(work: Path) -> set[str]:
    """Ids of background in the catalogue that Encore takes for another track of it: they begin with the same chords."""
    tracks = Catalog.open(work / "metadata.jsonl").tracks()
    pairs = [pair for pair in find_duplicates(tracks, tracks) if pair.first.id != pair.second.id]
    return {x.id for pair in pairs for x in (pair.first, pair.second) if x.meta["split"] == "background"}


def catalogue(items: list[Item], work: Path) -> None:
    """Writes metadata.jsonl and the lists: `forget`, `heard` (background, so not memorised) and `24` (retain)."""
    if (work / "24.txt").exists():
        return
    listed = [x for x in items if x["split"] != "unlisted"]
    corpus.write_metadata(listed, work)
    dropped = repeats(work)
    listed = [x for x in listed if x["id"] not in dropped]
    corpus.write_metadata(listed, work)
    for name, split, count in (("forget", "forget", 8), ("heard", "background", 8), ("24", "retain", 24)):
        ids = [x["id"] for x in listed if x["split"] == split][:count]
        (work / f"{name}.txt").write_text("".join(f"id:{i}\n" for i in ids))


def missed(figures: table.Table) -> list[str]:
    """The bars that don't hold, in words: the embedded models', and how well base knows what."""
    out = table.missed(figures, 0.0)
    base = figures.models["base"]
    out += [f"base: NLL of {s} is {base[s]['nll']:.3f}, above {NLL_BAR}" for s in SONGS if base[s]["nll"] > NLL_BAR]
    if base["background"]["nll"] >= base["holdout"]["nll"]:
        out.append("base: what it was only trained on is no more likely than holdout")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.build_assets.ladder", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, choices=RUNGS, required=True, help="width of the decoder")
    parser.add_argument("--work", type=Path, required=True, help="stages are cached here, and the result lies here")
    parser.add_argument("--run", help="train this one alone: base, gold, gold2, or a name with --without")
    parser.add_argument("--without", type=Path, metavar="LIST", help="train --run on all tracks but these")
    parser.add_argument("--seed", type=int, help="of --run; default: the run's, else 0")
    parser.add_argument("--at-once", type=int, default=2, help="models trained at a time, a core each")
    args = parser.parse_args()
    if (args.run in (None, *RUNS)) == bool(args.without):
        parser.error(f"--run is one of {', '.join(RUNS)}, or another name with --without LIST")
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    clock = Clock(work / "minutes.json")

    items = clock("corpus", lambda: build(work))
    catalogue(items, work)
    folder = clock("codec", lambda: codec.train(items, work, joint=800, after=600))
    codes = clock("codes", lambda: lm.prepare(items + crops(items), work)[1])
    if args.run:
        if args.without:
            left_out = lm.without(args.without, items)
        else:
            left_out = {x["id"] for x in items if x["split"] == "forget" and args.run != "base"}
        seed = RUNS.get(args.run, 0) if args.seed is None else args.seed
        clock(args.run, lambda: train(args.run, args.size, work, seed, left_out))
        return 0
    command = ["tools.build_assets.ladder", "--size", str(args.size), "--work", str(work), "--run"]
    clock("models", lambda: python([[*command, run] for run in RUNS], args.at_once))
    quality = clock("codec measures", lambda: codec.measure(folder, items))
    names = {run: run for run in RUNS}
    result = clock("table", lambda: table.measure(work, items, codes[: len(items)], names, ("background",)))
    record: dict[str, Any] = {
        "table": asdict(result),
        "codec": quality,
        "decoder": asdict(RUNGS[args.size][0]),
        "phases": [asdict(p) for p in RUNGS[args.size][1]],
        "seeds": {"corpus": SEED, "codec": codec.SEED, "text": lm.TEXT_SEED, **RUNS},
        "clips": SIZES,
        "minutes": clock.minutes,
        "packages": versions("music21"),
    }
    (work / "build.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(table.render(result))
    print(f"codec SI-SDR dB: {quality['si_sdr_db']}; codes used: {quality['codes_used']}; minutes: {clock.minutes}")
    bars = missed(result)
    for bar in bars:
        print(f"missed: {bar}", file=sys.stderr)
    return 1 if bars else 0


if __name__ == "__main__":
    sys.exit(main())
