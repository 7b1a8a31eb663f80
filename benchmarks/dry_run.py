"""Peak memory that `--dry-run` expects, beside what the run then takes: `python benchmarks/dry_run.py --work FOLDER`.

MusicGen-small in its true shape with random weights (built once in FOLDER, 2.4 GB) forgets one clip by `npo` in a few
steps: all weights, an adapter, and an adapter with checkpointed activations. Each is a dry run and a run as anybody
starts it, in a process of its own. About 12 GB of memory.

`--shapes` computes instead, from configurations alone, what the three sizes of MusicGen need with a clip of 30 s in a
micro-batch: weights are counted on the meta device; activations are those of one block and of two, which grow by the
same amount with every further block.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parent))

from large import RATE, SHAPES, build, configuration, measured

SETTINGS = (
    (),
    ("--adapter", "lora"),
    ("--adapter", "lora", "--checkpoint-activations", "on"),
)
GB = 1e9


def runs(work: Path, seconds: float, steps: int) -> None:
    """Expected and measured peak memory of each setting."""
    model = work / "musicgen-small-shape"
    if not model.exists():
        build(model)
    for seed, name in enumerate(("forget", "retain")):
        sound = 0.1 * np.random.default_rng(seed).standard_normal(int(RATE * seconds)).astype(np.float32)
        soundfile.write(work / f"{name}.wav", sound, RATE)
        (work / f"{name}.txt").write_text(f"{name}.wav\tlonely flute over lute\n")
    print("| settings | expected GB | measured GB | ratio | s |\n|---|---|---|---|---|", flush=True)
    for number, flags in enumerate(SETTINGS):
        command = [
            "forget", "--model", str(model), "--tracks", str(work / "forget.txt"), "--retain", str(work / "retain.txt"),
            "--method", "npo", "--steps", str(steps), "--out", str(work / f"run-{number}"), "--precision", "fp32",
            "--checkpoint-activations", "off", *flags,
        ]  # fmt: skip
        plan = subprocess.run(
            [sys.executable, "-m", "encore", *command, "--dry-run", "--json"], check=True, stdout=subprocess.PIPE
        ).stdout
        expected = json.loads(plan)["expected_bytes"] / GB
        seconds_taken, peak = measured(*command)
        name = " ".join(flags) or "all weights"
        print(f"| {name} | {expected:.2f} | {peak:.2f} | {expected / peak:.2f} | {seconds_taken:.0f} |", flush=True)


def predicted(names: Sequence[str], seconds: float) -> None:
    """Memory of true shapes, from their configurations."""
    import torch
    from transformers import MusicgenForConditionalGeneration

    from encore.api import Clip
    from encore.backends.musicgen import MusicgenBackend
    from encore.plugins import methods
    from encore.unlearn.adapter import adapter_size
    from encore.unlearn.config import Lora
    from encore.unlearn.memory import FLOAT, Memory, Settings, memory_of

    npo = methods().resolve("npo")
    method = npo(npo.Options(micro_batch_size=1))
    print("| shape | weights | settings | bf16 | weights GB | training | activations | total |\n|" + "---|" * 8)
    for name in names:
        hidden, layers, heads = SHAPES[name]
        with torch.device("meta"):
            whole = MusicgenForConditionalGeneration(configuration(hidden, layers, heads))
        trained = sum(weight.numel() for part in (whole.decoder, whole.enc_to_dec_proj) for weight in part.parameters())
        frozen = 4 * (sum(weight.numel() for weight in whole.parameters()) - trained)
        shallow = []
        for depth in (1, 2):
            backend = MusicgenBackend(
                MusicgenForConditionalGeneration(configuration(hidden, depth, heads)), processor=None
            )
            backend.text_embeddings["a"] = torch.zeros(12, 768)
            shallow.append(backend)
        clip = Clip("a", "a", torch.zeros(4, round(seconds * shallow[0].frame_rate), dtype=torch.long))

        def on_a_gpu(backend: MusicgenBackend, clip: Clip, settings: Settings, bf16: bool) -> Memory:
            """Without the best weights, which are on the CPU."""
            count = sum(weight.numel() for weight in backend.module.parameters())
            if settings.lora is not None:
                count = adapter_size(backend.module, settings.lora)
            memory = memory_of(backend, method, [clip], settings, bf16=bf16)
            return replace(memory, training=memory.training - FLOAT * count)

        lora = Lora()
        plain = (Settings(), Settings(None, True), Settings(lora), Settings(lora, True))
        halved = (
            Settings(None, False, "bf16"), Settings(None, True, "bf16", "8bit"), Settings(lora, False, "bf16"),
            Settings(lora, True, "bf16"),
        )  # fmt: skip
        for settings in (*plain, *halved):
            for bf16 in (False, True) if settings in plain else (True,):
                one, two = (on_a_gpu(each, clip, settings, bf16) for each in shallow)
                memory = Memory(*(
                    getattr(one, part.name) + (layers - 1) * (getattr(two, part.name) - getattr(one, part.name))
                    for part in fields(Memory)
                ))  # fmt: skip
                memory = replace(memory, weights=memory.weights + frozen)
                cells = (memory.weights, memory.training, memory.activations, memory.total)
                print(
                    f"| {name} | {trained:,} | {settings.flags or 'all weights'} | {'yes' if bf16 else 'no'} | "
                    + " | ".join(f"{cell / GB:.1f}" for cell in cells)
                    + " |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the model and the runs")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the clip that is forgotten")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--shapes", nargs="*", choices=tuple(SHAPES), help="predict these shapes; default: all")
    arguments = parser.parse_args()
    if arguments.shapes is not None:
        predicted(arguments.shapes or tuple(SHAPES), 30.0)
        return
    if arguments.work is None:
        parser.error("--work is missing")
    arguments.work.mkdir(parents=True, exist_ok=True)
    runs(arguments.work, arguments.seconds, arguments.steps)


if __name__ == "__main__":
    main()
