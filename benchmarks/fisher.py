"""A whole Fisher pass beside its peers, on the CPU: time, memory, and error.

    python benchmarks/fisher.py [--peers loop,encore] [--hidden 256] [--json]

All take the same model (a fresh MusicGen decoder) and batch. For its time each peer has a process where plain training
steps (forward and backward) and its own alternate, so that a slow spell of the machine hits both; the ratio is the
median over the pairs, and `cpu` is the same of processor time. By where their memory lies, two equal models can differ
by 1 to 3 % for as long as a process lives: `plain`, a plain step beside itself, shows how much. For its memory it has a
fresh one: the peak above the loaded model, as a ratio to the plain step's; `later` leaves out the first step, in which
a peer may have more to do.
The error is ‖Δ‖/‖reference‖ over all parameters against a float64 loop over the samples; what a peer leaves out or gets
wrong counts as it is, and is named.

The libraries are the extra `bench`; one that is missing has a row that says so. With --json the last line is
{"rows": [{"name": "encore", "time_ratio": …, "memory_ratio": …, "error": …}, …]}.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fisher_model import Setup
from fisher_peers import PEERS

LAYERS = {1024: 2, 256: 4}  # of the two sizes that targets are set for
NOTED = {"left_out": "left out", "wrong": "wrong"}


def measure(mode: str, peer: str, options: dict[str, Any], file: Path) -> dict[str, Any]:
    """Run `fisher_measure.py` in a process of its own."""
    threads = str(options["threads"])
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if mode == "memory":  # large buffers go back to the system when freed: what glibc keeps of them is up to chance
        environment["MALLOC_MMAP_THRESHOLD_"] = str(2**18)
    script = str(Path(__file__).with_name("fisher_measure.py"))
    done = subprocess.run(
        [sys.executable, script, mode, peer, json.dumps(options), str(file)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"why": f"its process ended with {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def row_of(name: str, options: dict[str, Any], file: Path, plain_mb: float | None) -> dict[str, Any]:
    """One peer's row; figures that could not be had are None, and `why` says why."""
    row = {"name": name, "time_ratio": None, "memory_ratio": None, "error": None}
    row |= measure("time", name, options, file)
    if row["time_ratio"] is not None:
        row |= measure("memory", name, options, file)
    if plain_mb is not None and "memory_mb" in row:
        row["memory_ratio"] = row["memory_mb"] / plain_mb
        row["later_memory_ratio"] = row["peaks_mb"][-1] / plain_mb
    return row


def shortened(kinds: list[str]) -> str:
    """The first few; --json has them all."""
    return ", ".join(kinds[:3]) + (f" and {len(kinds) - 3} kinds more" if len(kinds) > 3 else "")


def print_row(row: dict[str, Any]) -> None:
    def figure(key: str, form: str) -> str:
        return "–" if row.get(key) is None else format(row[key], form)

    notes = [f"{what}: {shortened(row[key])}" for key, what in NOTED.items() if row.get(key)]
    notes += [row["why"]] if row.get("why") else []
    spread = "[{:.2f} {:.2f}]".format(*row["time_quartiles"]) if "time_quartiles" in row else ""
    columns = (
        ("cpu_ratio", ".3f", 7),
        ("memory_ratio", ".2f", 8),
        ("later_memory_ratio", ".2f", 7),
        ("error", ".1e", 9),
    )
    figures = "".join(f"{figure(key, form):>{width}}" for key, form, width in columns)
    print(
        f"{row['name']:12}{figure('time_ratio', '.3f'):>7} {spread:12}{figures}  {'; '.join(notes)}".rstrip(),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}; plain is always there")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, help="default: 2, or 4 for --hidden 256")
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=8, help="N")
    parser.add_argument("--frames", type=int, default=250, help="T")
    parser.add_argument("--text", type=int, default=32, help="tokens of the condition")
    parser.add_argument("--pairs", type=int, default=5, help="how many times the plain step and the peer's are timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    peers = [name.strip() for name in given.peers.split(",")]
    unknown = sorted(set(peers) - set(PEERS))
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}")
    layers = given.layers or LAYERS.get(given.hidden, 2)
    setup = Setup(given.hidden, layers, given.vocab, given.samples, given.frames, given.text)
    options = {"setup": asdict(setup), "pairs": given.pairs, "threads": given.threads}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "reference.safetensors")
        made = measure("reference", "loop", options, file)
        if "why" in made:
            sys.exit(f"error: no float64 reference: {made['why']}")
        plain = row_of("plain", options, file, None)
        if plain["time_ratio"] is None:
            sys.exit(f"error: no plain step: {plain['why']}")
        plain_mb = plain.get("memory_mb")
        plain["memory_ratio"] = None if plain_mb is None else 1.0
        print(
            f"{setup}, {made['parameters'] / 1e6:.1f} M parameters, {given.threads} threads, "
            f"load {os.getloadavg()[0]:.1f}; a plain step: {plain['plain_seconds']:.3f} s"
            + (f", {plain_mb:.0f} MB" if plain_mb is not None else "")
        )
        print(f"{'':12}{'time':>7} {'quartiles':12}{'cpu':>7}{'memory':>8}{'later':>7}{'error':>9}")
        print_row(plain)
        rows = [plain]
        for name in peers:
            if name != "plain":
                rows.append(row_of(name, options, file, plain_mb))
                print_row(rows[-1])
    if given.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
