"""How often `encore attribute` names the track whose caption a clip was played from: figures in RESULTS.md.

    python benchmarks/attribution.py --splits forget,retain [--seeds 1] [--json FILE]

Each track's caption is played once a seed as `encore generate` plays by default, written as a WAV and heard again from
there. All tracks of the embedded catalogue but the holdout's are candidates. Settings were chosen on `--splits
tune_forget,tune_retain`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from encore import assets, plugins
from encore.attribution import Scores
from encore.data.catalog import Catalog
from encore.data.encode import TrackEncoder
from encore.data.open_files import file_sha256
from encore.data.splits import HOLDOUT
from encore.data.tracks import Track
from encore.evaluate.samples import write_wav
from encore.tensor_cache import TensorCache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", default="forget,retain")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    backend = plugins.backends().resolve("musicgen").load("tiny")
    cache = TensorCache()
    tracks = [track for track in Catalog.open(assets.CATALOG).tracks() if track.meta["split"] != HOLDOUT]
    listener = TrackEncoder(backend, cache)
    catalog = [clip for heard in listener.encode(tracks) for clip in heard.clips]
    asked = [track for track in tracks if track.meta["split"] in arguments.splits.split(",")]
    played: list[Track] = []
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for track in asked:
                path = Path(folder, f"{track.id}-{seed}.wav")
                codes = backend.generate([track.caption], seconds=5.0, seed=seed)
                write_wav(path, backend.decode(codes)[0], backend.sample_rate)
                played.append(Track(track.id, path, track.caption, file_sha256(path)))
        clips = [heard.clips for heard in listener.encode(played)]
    for conditioned in (False, True):
        scores = Scores(backend, catalog, conditioned=conditioned, cache=cache).of(clips)
        own = [found[track.id] for track, found in zip(played, scores, strict=True)]
        ranks = [sum(s > mine for s in found.values()) + 1 for mine, found in zip(own, scores, strict=True)]
        wrong = [
            f"{track.id} (rank {rank}; {max(found, key=found.__getitem__)})"
            for track, rank, found in zip(played, ranks, scores, strict=True)
            if rank > 1
        ]
        given = "with its caption" if conditioned else "without a caption"
        others = [max(s for name, s in found.items() if name != t.id) for t, found in zip(played, scores, strict=True)]
        print(f"{given}: {ranks.count(1)} of {len(ranks)} named first; wrong: {', '.join(wrong) or 'none'}")
        for what, values in (("own track", own), ("highest other", others)):
            low, middle, high = statistics.quantiles(values, n=10)[::4]
            print(f"  score of the {what}: median {middle:.3f}, 80 % between {low:.3f} and {high:.3f}", flush=True)
        rows.append({"conditioned": conditioned, "first": ranks.count(1), "clips": len(ranks), "wrong": wrong})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
