"""`python -m tools.build_assets [--work W] [--out O]`: rebuilds the embedded assets and prints what they are worth."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from . import clap, codec, corpus, install, lm, table
from .stages import Clock, python, versions


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
    codes = clock("codes", lambda: lm.prepare(items, args.work)[1])
    clock("models", lambda: python([["tools.build_assets.lm", run, "--work", str(args.work)] for run in lm.RUNS]))
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
        "packages": versions(),
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
