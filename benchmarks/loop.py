"""The engine's training step beside a bare loop and a Hugging Face Trainer.

    python benchmarks/loop.py [--shape small] [--memory]

All train the same model on the same clips, as many per step, with AdamW. The bare loop is a forward pass, a backward
pass and a step of the optimiser, on codes and text encodings computed before. The Trainer (which needs accelerate)
encodes audio and text in every step, as a fine-tuning script does. Blocks of a few steps are run in turns, so that a
slow spell of the machine hits all alike; a ratio is the median over the turns, of steps per second relative to the bare
loop.

`tiny` is the embedded model, `35m` the same with a random decoder of width 512 and 8 layers; the other shapes are
MusicGen's, with random weights. `--memory` measures peak memory in
place of time, each loop in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from large import SHAPES, configuration

from encore.api import Backend, Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.plugins import methods
from encore.store.environment import hardware, keep_freed_memory, peak_bytes, reset_peak_bytes
from encore.unlearn.config import Lora
from encore.unlearn.engine import Clips, Engine

ENGINE = {  # loop -> method, whether an adapter is trained and activations are checkpointed
    "graddiff": ("graddiff", False), "npo": ("npo", False), "rl": ("rl", False),
    "npo, LoRA, checkpointed": ("npo", True),
}  # fmt: skip
CAPTIONS = ("lonely flute over lute", "slow church organ", "fast drums and bass", "string quartet in a hall")
NEVER = 10**9


def opened(shape: str, device: str) -> MusicgenBackend:
    """The embedded model, or one of MusicGen's shapes with random weights and the embedded tokenizer."""
    from transformers import MusicgenForConditionalGeneration

    tiny = MusicgenBackend.load("tiny", offline=True)
    if shape == "tiny":
        return MusicgenBackend.load("tiny", offline=True, device=device)
    torch.manual_seed(0)
    settings = tiny.model.config
    if shape == "35m":
        decoder = settings.decoder
        decoder.hidden_size, decoder.ffn_dim, decoder.num_hidden_layers, decoder.num_attention_heads = 512, 2048, 8, 8
    else:
        settings = configuration(*SHAPES[shape])
    with torch.device(device):
        model = MusicgenForConditionalGeneration(settings)
    return MusicgenBackend(model, tiny.processor)


def make_clips(backend: Backend, count: int, seconds: float) -> list[Clip]:
    """Clips of noise, encoded."""
    samples = int(seconds * backend.sample_rate)
    audio = 0.1 * torch.randn(count, backend.channels, samples, generator=torch.Generator().manual_seed(0))
    captions = list(itertools.islice(itertools.cycle(CAPTIONS), count))
    backend.encode_text(captions)
    codes = [backend.encode(row[None])[0].cpu() for row in audio]
    return [Clip(str(i), caption, row) for i, (caption, row) in enumerate(zip(captions, codes, strict=True))]


class BareLoop:
    """Forward, backward, step."""

    def __init__(self, backend: Backend, forget: Sequence[Clip], retain: Sequence[Clip], precision: str) -> None:
        self.backend, self.forget, self.retain = backend, forget, retain
        self.bf16 = precision == "bf16"
        self.optimizer = torch.optim.AdamW(backend.module.parameters(), lr=1e-6, weight_decay=0)

    def run(self, steps: int) -> list[float]:
        ends = []
        for _ in range(steps + 1):
            for clips in (self.forget, self.retain):
                with torch.autocast(self.backend.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                    loss = self.backend.losses(Batch.of(clips, self.backend.device)).mean()
                loss.backward()
            torch.nn.utils.clip_grad_norm_(self.backend.module.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            ends.append(now(self.backend.device))
        return ends


def engine_loop(
    backend: Backend,
    forget: Sequence[Clip],
    retain: Sequence[Clip],
    precision: Any,
    name: str,
    adapter: bool,
    steps: int,
) -> list[float]:
    """When each step of `encore forget`'s engine ended."""
    ends: list[float] = []

    def record(line: Any) -> None:
        if "grad_norm" in line:
            ends.append(now(backend.device))

    chosen = methods().resolve(name)
    method = chosen(chosen.Options(
        steps=steps + 1, lr=1e-6, batch_size=len(retain), forget_batch_size=len(forget), eval_every=NEVER, stop="never"
    ))  # fmt: skip
    engine = Engine(
        backend, Clips(forget, retain, []), precision=precision, record=record, lora=Lora() if adapter else None,
        checkpoint_activations=adapter,
    )  # fmt: skip
    engine.run(method)
    return ends


class WithEncoders(nn.Module):
    """What a fine-tuning script gives to a Trainer: audio and text in, loss out."""

    def __init__(self, backend: Backend, precision: str) -> None:
        super().__init__()
        self.module = backend.module
        self.backend, self.bf16 = backend, precision == "bf16"

    def forward(self, audio: torch.Tensor, caption: torch.Tensor) -> dict[str, torch.Tensor]:
        self.backend.text_embeddings.clear()
        texts = [CAPTIONS[i] for i in caption.tolist()]
        codes = self.backend.encode(audio)
        batch = Batch.of([Clip("", text, row) for text, row in zip(texts, codes, strict=True)], self.backend.device)
        with torch.autocast(self.backend.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return {"loss": self.backend.losses(batch).mean()}


def trainer_loop(backend: Backend, count: int, seconds: float, precision: str, steps: int) -> list[float]:
    """When each step of a Hugging Face Trainer ended."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(now(backend.device))

    samples = int(seconds * backend.sample_rate)
    rows = [
        {"audio": 0.1 * torch.randn(backend.channels, samples), "caption": i % len(CAPTIONS)}
        for i in range(count * (steps + 1))
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=count, max_steps=steps + 1, learning_rate=1e-6, optim="adamw_torch",
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=backend.device.type == "cpu", remove_unused_columns=False, dataloader_pin_memory=False,
        )  # fmt: skip
        model = WithEncoders(backend, precision)
        Trainer(model, arguments, train_dataset=rows, callbacks=[Clock()]).train()  # type: ignore[arg-type]
    return ends


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def loops(arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[int], list[float]]]]:
    """The name of each loop, and what runs it for a number of steps after the first."""
    backend = opened(arguments.shape, arguments.device)
    clips = make_clips(backend, 2 * arguments.clips, arguments.seconds)
    forget, retain = clips[: arguments.clips], clips[arguments.clips :]
    precision = arguments.precision
    if arguments.only in (None, "bare"):
        yield "bare", BareLoop(backend, forget, retain, precision).run
    for name, (method, adapter) in ENGINE.items():
        if arguments.only in (None, name):
            yield name, partial(engine_loop, backend, forget, retain, precision, method, adapter)
    if arguments.only in (None, "trainer") and importlib.util.find_spec("accelerate"):
        yield "trainer", partial(trainer_loop, backend, 2 * arguments.clips, arguments.seconds, precision)


def measure_time(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {}
    runs = dict(loops(arguments))
    for _ in range(arguments.turns):
        for name, run in runs.items():
            ends = run(arguments.steps)
            seconds.setdefault(name, []).append((ends[-1] - ends[0]) / (len(ends) - 1))
    rates = {
        name: statistics.median(b / a for a, b in zip(times, seconds["bare"], strict=True))
        for name, times in seconds.items()
    }
    return [{"loop": name, "step_s": statistics.median(times), "rate": rates[name]} for name, times in seconds.items()]


def measure_memory(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in ("bare", *ENGINE, "trainer"):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append({"loop": name, "peak_bytes": json.loads(output.splitlines()[-1])})
    return [{**row, "ratio": row["peak_bytes"] / rows[0]["peak_bytes"]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", "35m", *SHAPES), default="tiny")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a clip")
    parser.add_argument("--clips", type=int, default=4, help="forget clips per step, and as many retain clips")
    parser.add_argument("--steps", type=int, default=4, help="steps timed in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--memory", action="store_true", help="measure peak memory in place of time")
    parser.add_argument("--out", type=Path, help="file that rows are added to, as JSON lines")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.only:
        reset_peak_bytes(arguments.device)
        for _, run in loops(arguments):
            run(2)
        print(json.dumps(peak_bytes(arguments.device)))
        return
    rows = measure_memory(arguments) if arguments.memory else measure_time(arguments)
    what = hardware(arguments.device)
    if arguments.out:
        settings = {"device": what["name"], "shape": arguments.shape, "precision": arguments.precision}
        with arguments.out.open("a") as file:
            file.writelines(json.dumps({**settings, **row}) + "\n" for row in rows)
    print(f"{what['name']}, {what['threads']} threads, {arguments.shape}, {arguments.precision}")
    keys = list(rows[0])
    print("|".join(["", *keys, ""]), "|".join(["", *("---" for _ in keys), ""]), sep="\n")
    for row in rows:
        cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values())
        print("|".join(["", *cells, ""]))


if __name__ == "__main__":
    main()
