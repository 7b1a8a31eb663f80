"""What `encore --help` and the listings cost beside bare imports: `python benchmarks/startup.py [--json FILE]`.

The bar: at most 0.5 s, and at most 1.3 times `python -c "import typer, rich, pluggy"`, which is all that `--help`
needs. To call a command, Typer imports pydantic, so that a listing is compared with an empty Typer command. Bytecode
is written first, as installing a wheel does. Commands are run in turns, so that a slow spell of the machine hits them
alike; the ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import compileall
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import encore

EMPTY = "import typer, rich, pluggy; app = typer.Typer(); app.command()(lambda name='': None); app([])"
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import typer, rich, pluggy": [sys.executable, "-c", "import typer, rich, pluggy"],
    "an empty Typer command": [sys.executable, "-c", EMPTY],
    "encore --help": [str(Path(sys.executable).with_name("encore")), "--help"],
    "encore plugins": [str(Path(sys.executable).with_name("encore")), "plugins"],
    "encore methods": [str(Path(sys.executable).with_name("encore")), "methods"],
}
REFERENCE = "import typer, rich, pluggy"
REFERENCES = dict.fromkeys(("encore plugins", "encore methods"), "an empty Typer command")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=31)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    compileall.compile_dir(str(Path(encore.__file__).parent), quiet=2)
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.turns):
        for name, command in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - begun)
    rows = [
        {
            "command": name,
            "median_s": statistics.median(times),
            "best_s": min(times),
            "ratio": statistics.median(
                a / b for a, b in zip(times, seconds[REFERENCES.get(name, REFERENCE)], strict=True)
            ),
        }
        for name, times in seconds.items()
    ]
    for row in rows:
        print(f"{row['command']:30} median {row['median_s']:.3f} s  best {row['best_s']:.3f} s  x {row['ratio']:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
