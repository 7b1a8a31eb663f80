"""Which attention a run computes with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.options import TrainOptions
from encore.plugins import methods
from encore.unlearn import attention
from encore.unlearn.attention import attention_by_products, prefers_products
from encore.unlearn.engine import Clips, Engine


@pytest.mark.parametrize(
    ("amx", "precision", "frames", "expected"),
    [
        (True, "bf16", 512, "eager"),
        (False, "bf16", 512, "sdpa"),
        (True, "fp32", 512, "sdpa"),
        (True, "bf16", 5, "sdpa"),
    ],
)
def test_short_clips_in_bf16_on_amx(
    backend: MusicgenBackend, clips: Clips, monkeypatch: pytest.MonkeyPatch, amx: bool, precision: Any, frames: int,
    expected: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": amx})
    monkeypatch.setattr(attention, "FRAMES", frames)
    chosen = methods().resolve("ga")

    class Spy(chosen):  # type: ignore[misc, valid-type]
        def forget_loss(self, step: Any, batch: Batch) -> torch.Tensor:
            used.append(backend.model.decoder.config._attn_implementation)
            return super().forget_loss(step, batch)  # type: ignore[no-any-return]

    used: list[str] = []
    Engine(backend, clips, precision=precision).run(Spy(TrainOptions(steps=1, lr=1e-4, stop="never")))
    assert set(used) == {expected}
    assert backend.model.decoder.config._attn_implementation == "sdpa"


def test_products_are_the_same_attention(backend: MusicgenBackend, clips: Clips) -> None:
    short = [Clip("short", c.caption, c.codes[:, :7]) for c in clips.forget[:1]]
    batch = Batch.of([*clips.forget, *short])
    fused = backend.logits(batch)
    with attention_by_products(backend.module):
        torch.testing.assert_close(backend.logits(batch), fused, rtol=1e-4, atol=1e-5)
    assert not prefers_products("cuda", "bf16", [clips.forget])
