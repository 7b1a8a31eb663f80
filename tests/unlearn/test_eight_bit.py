"""Moments in 8 bits: beside AdamW in float32, and what is refused; a resumed run is in test_bf16_weights.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from encore.errors import MissingExtraError, UsageError
from encore.unlearn import eight_bit


def test_steps_are_close_to_those_of_adamw() -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    start, inputs, targets = torch.randn(80, 80) / 9, torch.randn(32, 80), torch.randn(32, 80)
    ends = []
    for convert in (lambda optimizer: optimizer, lambda optimizer: eight_bit.eight_bit(optimizer, "m")):
        weight = nn.Parameter(start.clone())
        optimizer = convert(torch.optim.AdamW([weight], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1))
        for _ in range(5):
            (inputs @ weight - targets).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(weight.detach() - start)
    assert {state.dtype for state in optimizer.state[weight].values() if torch.is_tensor(state)} >= {torch.uint8}
    assert torch.cosine_similarity(*map(torch.flatten, ends), dim=0) > 0.98


def test_another_optimiser_and_a_missing_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'sums' has an optimiser of its own"):
        eight_bit.eight_bit(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0), "sums")
    monkeypatch.setattr(eight_bit.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="bitsandbytes"):
        eight_bit.check_bitsandbytes()
