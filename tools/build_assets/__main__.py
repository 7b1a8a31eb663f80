"""`python -m tools.build_assets [--work W] [--out O]`: rebuilds the embedded assets and prints what they are worth."""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch

from . import clap, codec, corpus, install, lm, table

T = TypeVar("T")
# Each step frees and takes the same large buffers; kept in the heap they cost no page faults (half of the time on some
# virtual machines). Read by glibc, unknown elsewhere.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30), "MALLOC_TOP_PAD_": str(256 << 20)}
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "soundfile")


class Clock:
    """Minutes a stage, remembered in the work folder so that a resumed build still reports them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.minutes: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, stage: str, run: Callable[[], T]) -> T:
        print(f"{stage} …", file=sys.stderr, flush=True)
        began = time.time()
        result = run()
        spent = (time.time() - began) / 60
        self.minutes[stage] = round(max(spent, self.minutes.get(stage, 0.0)), 2)
        self.path.write_text(json.dumps(self.minutes))
        return result


def train_models(work: Path, at_once: int = 2) -> None:
    """Trains the runs as subprocesses of one thread each, two at a time."""
    waiting = list(lm.RUNS)
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            run = waiting.pop(0)
            command = [
                sys.executable,
                "-m",
                "tools.build_assets.lm",
                run,
                "--work",
                str(work),
            ]
            running.append(subprocess.Popen(command, env=os.environ | MALLOC))
        for process in [p for p in running if p.poll() is not None]:
            running.remove(process)
            if process.returncode:
                for other in running:
                    other.terminate()
                raise SystemExit(f"training failed with exit code {process.returncode}")
        time.sleep(0.5)


def main() -> int:
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(prog="python -m tools.build_assets", description=__doc__)
    parser.add_argument("--work", type=Path, default=root / "build" / "assets", help="stages are cached here")
    parser.add_argument("--out", type=Path, default=root / "src" / "encore" / "assets")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    clock = Clock(args.work / "minutes.json")

    items = clock("corpus", lambda: corpus.build(args.work))
    folder = clock("codec", lambda: codec.train(items, args.work))
    codes = clock("codes", lambda: lm.prepare(args.work)[2])
    clock("models", lambda: train_models(args.work))
    install.install(items, args.work, args.out)
    heard = clock("clap", lambda: clap.train(items, folder, args.work))
    install.install_clap(args.work, args.out)
    retrieval = clock("clap measures", lambda: clap.record(heard, items, folder))
    quality = clock("codec measures", lambda: codec.measure(folder, items))
    result = clock("table", lambda: table.measure(args.out, items, codes))

    record = {
        "table": asdict(result),
        "codec": quality,
        "clap": retrieval,
        "phases": [asdict(p) for p in lm.PHASES],
        "seeds": {"split": corpus.SPLIT_SEED, "codec": codec.SEED, "text": lm.TEXT_SEED, **lm.RUNS},
        "clips": {
            "songs": corpus.SIZES,
            "background": corpus.BACKGROUND,
            "shipped": corpus.SHIPPED,
            "unseen": corpus.UNSEEN,
        },
        "codec_steps": {"joint": codec.JOINT_STEPS, "decoder": codec.DECODER_STEPS},
        "minutes": clock.minutes,
        "packages": {p: importlib.metadata.version(p) for p in PACKAGES},
    }
    install.write_build(args.out, record)
    size = install.megabytes(args.out)
    missed = [*table.missed(result, size), *clap.missed(retrieval["retrieval"])]
    print(table.render(result))
    print(f"codec SI-SDR dB: {quality['si_sdr_db']}; codes used: {quality['codes_used']}")
    print(f"CLAP: {retrieval['retrieval']}")
    print(f"assets: {size:.1f} MB; minutes: {clock.minutes}")
    for bar in missed:
        print(f"missed: {bar}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
