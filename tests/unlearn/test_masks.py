"""Masked weights, entry by entry; whole runs with masks are in test_engine.py."""

from __future__ import annotations

import torch
from torch import nn

from encore.unlearn.masks import mask_gradients, restore_masked


def test_entries_that_are_masked_stay() -> None:
    module = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    masks = {"weight": torch.tensor([[True, False], [False, True]])}
    (module.weight.sum() + module.bias.sum()).backward()
    mask_gradients(module, masks)
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [[1, 0], [0, 1]]
    nn.init.zeros_(module.weight)
    restore_masked(module, masks, before)
    assert torch.equal(module.weight, torch.where(masks["weight"], 0.0, before["weight"]))
