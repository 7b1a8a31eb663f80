"""A model split over processes (`--fsdp`), of which some have clips of more lengths than others."""

from __future__ import annotations

import torch

from encore import distributed
from encore.api import Batch
from encore_diffusers.base import TIMESTEPS


def test_with_fewer_groups_than_another_process_the_network_runs_as_often_and_gives_the_same(
    backend, clips, monkeypatch
):
    batch, weights = Batch.of(clips, noise_index=2), [*backend.module.parameters()]
    weights = [weight for weight in weights if weight.requires_grad]
    calls, predict = [], backend._predict
    monkeypatch.setattr(backend, "_predict", lambda *given: calls.append(1) or predict(*given))

    def results():
        calls.clear()
        losses, (outputs, targets) = backend.losses(batch), backend.predictions(batch)
        total = losses.sum() + outputs.square().sum()
        return len(calls), losses, outputs, targets, *torch.autograd.grad(total, weights, materialize_grads=True)

    alone = results()
    with distributed.lockstep():
        monkeypatch.setattr(distributed, "largest", lambda values: [values[0] + 2])
        together = results()
    assert together[0] == alone[0] + 2 * 2 * TIMESTEPS
    for found, expected in zip(together[1:], alone[1:], strict=True):
        torch.testing.assert_close(found, expected)
