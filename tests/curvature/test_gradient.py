"""The mean gradient over clips, against one backward pass a clip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.curvature import slow
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.curvature import mean_gradient


@pytest.mark.parametrize("size", [1, 2, 8])
def test_it_is_the_mean_of_each_clips_own(tmp_path: Path, size: int) -> None:
    backend = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path, dropout=0.3)), offline=True)
    generator = torch.Generator().manual_seed(0)
    clips = [Clip(str(i), CAPTIONS[i], torch.randint(CODES, (2, 9 + 4 * i), generator=generator)) for i in range(3)]
    frozen, other = list(backend.module.named_parameters())[:2]
    frozen[1].requires_grad_(False)
    other[1].grad = torch.ones_like(other[1])
    backend.module.train()
    with torch.no_grad():  # whatever is around it
        gradient, loss = mean_gradient(backend, clips, micro_batch_size=size)
    assert backend.module.training
    assert (other[1].grad == 1).all()
    backend.module.eval()
    assert frozen[0] not in gradient
    assert loss == pytest.approx(backend.losses(Batch.of(clips)).mean().item(), rel=1e-5)
    for name, rows in slow.per_sample(backend.module, lambda: backend.losses(Batch.of(clips))).items():
        expected = rows.double().mean(0)
        assert (gradient[name] - expected).norm() <= 1e-5 * expected.norm().clamp(min=1e-6), name
