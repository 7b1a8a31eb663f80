"""A model whose every figure can be worked out by hand: each codebook is a first-order Markov chain, a caption.

p(code_t = v | code_{t-1} = u, caption) is a softmax over a table, independent of the other codebooks. A caption
"step 3" remembers the melody in which each code is the one before plus 3, starting from 3, as surely as `memory` says.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from encore.api import Backend, Batch, Clip

K, V, RATE = 2, 11, 4.0


def melody(step: int, frames: int) -> Tensor:
    """Codes [K, frames] of the caption "step n": n, 2n, 3n, … modulo V."""
    return (torch.arange(1, frames + 1) * step % V).expand(K, -1).clone()


def track(step: int, frames: int = 12, name: str | None = None) -> Clip:
    return Clip(name or f"track{step:02d}", f"step {step}", melody(step, frames))


class MarkovBackend(Backend):
    """Tables [captions, K, V + 1, V]; row V is the state before the first frame. Remembers the steps of `memory`."""

    name = "markov"
    sample_rate, channels, frame_rate = 8, 1, RATE
    codebooks, codebook_size, max_frames = K, V, 64
    device = torch.device("cpu")

    def __init__(self, memory: Mapping[int, float] | None = None, noise: float = 0.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        table = noise * torch.randn(V, K, V + 1, V, generator=generator)  # a caption a step
        for step, strength in (memory or {}).items():
            for before in range(V):
                table[step, :, before, (before + step) % V] += strength
            table[step, :, V, step % V] += strength
        self.module = nn.ParameterDict({"table": nn.Parameter(table)})
        self.text_embeddings = {}
        self.generated = 0  # rows that `generate` was asked for

    @classmethod
    def load(cls, model: str, *, revision: str | None = None, offline: bool = False, device: str = "cpu") -> Backend:
        return cls()

    def frozen(self) -> Mapping[str, nn.Module]:
        return {}

    def encode(self, waveforms: Tensor) -> Tensor:
        return (waveforms.reshape(len(waveforms), 1, -1, 2).mean(-1) * V).round().long().expand(-1, K, -1)

    def decode(self, codes: Tensor) -> Tensor:
        return (codes[:, :1] / V).repeat_interleave(2, -1)

    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        return [torch.zeros(1, 1) for _ in captions]

    def token_mask(self, batch: Batch) -> Tensor:
        valid = torch.arange(batch.codes.shape[-1]) < batch.frames[:, None]
        return valid[:, None].expand(-1, K, -1)

    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        steps = torch.tensor([0 if unconditional else _step(caption) for caption in batch.captions])
        before = nn.functional.pad(batch.codes[..., :-1], (1, 0), value=V)  # [N, K, T]
        return self.module["table"][steps[:, None, None], torch.arange(K)[:, None], before]

    def generate(
        self,
        captions: Sequence[str],
        *,
        seconds: float,
        prompt: Tensor | None = None,
        seed: int = 0,
        guidance: float = 3.0,
        temperature: float = 1.0,
        top_k: int = 250,
    ) -> Tensor:
        self.generated += len(captions)
        rows = []
        for row, caption in enumerate(captions):
            noise = torch.Generator().manual_seed(seed + row)
            codes = prompt[row].T.tolist() if prompt is not None else []
            while len(codes) < round(seconds * RATE):
                before = codes[-1] if codes else [V] * K
                scores = self.module["table"][_step(caption), torch.arange(K), torch.tensor(before)].detach()  # [K, V]
                if temperature == 0:
                    codes.append(scores.argmax(-1).tolist())
                else:
                    chances = scores.div(temperature).softmax(-1)
                    codes.append(chances.multinomial(1, generator=noise)[:, 0].tolist())
            rows.append(torch.tensor(codes[: round(seconds * RATE)]).T)
        return torch.stack(rows)

    def reinitialise(self, seed: int) -> None:
        with torch.no_grad():
            self.module["table"].normal_(std=0.01, generator=torch.Generator().manual_seed(seed))

    def clone(self) -> MarkovBackend:
        twin = MarkovBackend()
        twin.module = copy.deepcopy(self.module)
        return twin

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def _step(caption: str) -> int:
    """The number in a caption, in whatever words; 0 where there is none."""
    found = re.search(r"\d+", caption)
    return int(found.group()) % V if found else 0


FORGET, RETAIN, HOLDOUT = (1, 2, 3), (4, 5, 6), (7, 8, 9)


def models(forgotten: float = 0.0) -> dict[str, MarkovBackend]:
    """Base knows forget and retain, gold and gold2 retain alone; the unlearned one knows forget as surely as said."""
    retain = dict.fromkeys(RETAIN, 6.0)
    return {
        "base": MarkovBackend(retain | dict.fromkeys(FORGET, 6.0), noise=0.1),
        "unlearned": MarkovBackend(retain | dict.fromkeys(FORGET, forgotten), noise=0.1),
        "gold": MarkovBackend(retain, noise=0.1, seed=1),
        "gold2": MarkovBackend(retain, noise=0.1, seed=2),
    }


def clips(frames: int = 12) -> dict[str, list[Clip]]:
    sets = {"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT}
    return {name: [track(step, frames) for step in steps] for name, steps in sets.items()}
