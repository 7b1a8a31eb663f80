"""A model split over two processes (`--fsdp`), of which one has clips of one length and the other of two."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time

import pytest
import torch
import torch.multiprocessing
from tests.tiny_pipelines import CAPTIONS

from encore import distributed, plugins
from encore.api import Batch, Clip
from encore.unlearn import sharding
from encore_diffusers.base import TIMESTEPS

IMPORTED = [  # once, by the process that all others are forked from
    "encore_diffusers.ace_step", "encore_diffusers.audioldm2", "tests.tiny_pipelines", "torch.distributed.fsdp",
]  # fmt: skip


def check_a_process(number: int, port: int, family: str, folder: str) -> None:
    """In each of two processes: the split model gives what the whole one does."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number))
    torch.set_num_threads(1)
    with distributed.processes("cpu"):
        whole = plugins.backends().resolve(family).load(folder, offline=True)
        drawn = torch.Generator().manual_seed(number)
        lengths = (8, 8) if number == 0 else (8, 12)
        batch = Batch.of(
            [Clip(str(n), CAPTIONS[0], torch.randn(whole.codebooks, n, generator=drawn)) for n in lengths],
            noise_index=1,
        )
        assert len(whole._groups(batch.captions, list(lengths))) == 1 + number

        def results(backend):
            losses, (outputs, targets) = backend.losses(batch), backend.predictions(batch)
            (losses.sum() + outputs.square().sum()).backward()
            return [losses.detach(), outputs.detach(), targets]

        expected = results(whole)
        weights = {name: weight for name, weight in whole.module.named_parameters() if weight.requires_grad}
        distributed.add_gradients(list(weights.values()))
        gradients = {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}
        whole.module.zero_grad()
        with sharding.sharded(whole) as split:
            for found, own in zip(results(split), expected, strict=True):
                torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)
            for name, gradient in gradients.items():
                found = sharding.whole(split.module.get_parameter(name).grad)
                torch.testing.assert_close(
                    found, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=name
                )


@pytest.mark.parametrize("family", ["ace-step", "audioldm2"])
def test_processes_with_clips_of_other_lengths_do_not_wait_for_one_another(family, folders):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTED)
    ranks = torch.multiprocessing.start_processes(
        check_a_process, (port, family, str(folders[family])), nprocs=2, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + 240
    try:
        while not ranks.join(timeout=1):  # until both have ended; raises what one raised
            assert time.monotonic() < deadline, "the processes wait for one another"
    finally:
        for rank in ranks.processes:
            rank.kill()


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
