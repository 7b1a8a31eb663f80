"""Error rates of `encore check` on the embedded base: 48 memorised and 34 held-out tracks.

    python -m benchmarks.check lists build/check        # renders held-out music, writes lists of 10 tracks
    for list in build/check/list-*.txt; do encore check --tracks $list --holdout build/check/holdout.txt \
        --root build/check --out ${list%.txt}; done
    python -m benchmarks.check table build/check

Held-out are the catalogue's 10 held-out songs and 24 clips of random music of the same arranger. 24 other such clips
are the held-out music to calibrate on. The model was trained on none of these.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from tools.build_assets.background import background
from tools.build_assets.corpus import BACKGROUND, UNSEEN, _write

from encore import assets, stats

SIZE = 10
MEMORISED = ("forget", "retain", "tune_forget", "tune_retain")


def write_lists(folder: Path) -> None:
    """Held-out clips, `holdout.txt` with half of them, and lists of the other half and all songs, shuffled by id."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = [background(seed) for seed in range(BACKGROUND, BACKGROUND + UNSEEN)]
    clips = [f"{_write(score, folder, ogg=False).name}\t{score.caption}" for score in scores]
    (folder / "holdout.txt").write_text("\n".join(clips[1::2]) + "\n")
    songs = [json.loads(line) for line in assets.CATALOG.read_text("utf-8").splitlines()]
    lines = [f"id:{song['id']}" for song in songs if song["split"] in (*MEMORISED, "holdout")] + clips[::2]
    lines = [line for start in range(9) for line in lines[start::9]]  # each list has some of each kind
    for number, start in enumerate(range(0, len(lines), SIZE)):
        (folder / f"list-{number}.txt").write_text("\n".join(lines[start : start + SIZE]) + "\n")


def print_table(folder: Path) -> None:
    """Verdicts by kind of track, with the shares' intervals, and what each test found alone."""
    split = {song["id"]: song["split"] for song in map(json.loads, assets.CATALOG.read_text("utf-8").splitlines())}
    counts: dict[str, Counter[str]] = {}
    for path in sorted(folder.glob("list-*/check.json")):
        result = json.loads(path.read_text("utf-8"))
        print(f"{path.parent.name}: {len(result['tracks'])} tracks, {result['seconds']} s", file=sys.stderr)
        for track in result["tracks"]:
            found = track["evidence"]
            kind = split.get(track["id"], "other held-out")
            row = counts.setdefault(kind, Counter())
            row["tracks"] += 1
            row[track["verdict"]] += 1
            row["by NLL"] += found["nll"]["memorised"]
            row["by excerpt"] += bool(found["excerpts"])
            for prompt in ("caption", "caption, sampled", "caption, shortened", "1 s", "1 s, sampled"):
                row[f"by {prompt}"] += any(e["prompt"] == prompt and e["share"] >= 0.8 for e in found["extraction"])
    heads = [
        "tracks",
        "memorised",
        "trained_on",
        "no_sign",
        "by NLL",
        "by excerpt",
        "by caption",
        "by caption, sampled",
        "by caption, shortened",
    ]
    heads += ["by 1 s", "by 1 s, sampled"]
    print(f"| kind | {' | '.join(heads)} | 95 % interval of the share found |")
    for kind, row in counts.items():
        hits = row["memorised"] + row["trained_on"]
        low, high = stats.share_interval(hits, row["tracks"]) or (0, 1)
        print(f"| {kind} | {' | '.join(str(row[head]) for head in heads)} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    {"lists": write_lists, "table": print_table}[sys.argv[1]](Path(sys.argv[2]))
