"""Metrics of a small model by two processes: its products are too small for a second thread to be of use.

One process takes metrics from the front of the list, the other from the back, until they meet. What both need is
computed by each, or found on disk if the other was first.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

from encore.api import Backend
from encore.errors import EncoreError

SMALL = 20_000_000  # weights; with more, the threads of one process do as well, and memory counts

Made = TypeVar("Made")
Take = Callable[[], int | None]


@contextmanager
def shared(models: Sequence[Backend]) -> Iterator[bool]:
    """Whether two processes are worth it: models that small, on a system that forks, and threads for both.

    If so, this process has half of its threads while the block runs: what both compute is the same to the last bit.
    """
    before = torch.get_num_threads()
    worth = (
        sys.platform.startswith("linux")
        and before > 1
        and all(model.device.type == "cpu" for model in models)
        and all(sum(weight.numel() for weight in model.module.parameters()) < SMALL for model in models)
    )
    if worth:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else its threads are warned of at the fork
        torch.set_num_threads(before // 2)
    try:
        yield worth
    finally:
        torch.set_num_threads(before)


def by_two(make: Callable[[int], Made], count: int, told: Callable[[int, int], None]) -> list[Made]:
    """`[make(0), …, make(count - 1)]`, made by this process and a fork of it; see `shared`.

    Args:
        told: called in this process before each of its numbers, with how many were taken before, by both.

    Raises:
        EncoreError: what `make` raised, here or there.
    """
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    ends = fork.Array("i", [0, count])

    def take(front: bool) -> int | None:
        with ends.get_lock():
            begin, end = ends[0], ends[1]
            if begin >= end:
                return None
            ends[0], ends[1] = (begin + 1, end) if front else (begin, end - 1)
            return begin if front else end - 1

    def other() -> None:
        try:
            there.send({number: make(number) for number in _taken(lambda: take(front=False))})
        except EncoreError as error:
            there.send(error)

    process = fork.Process(target=other, daemon=True)
    with warnings.catch_warnings():
        # Python warns of a fork beside threads. Those of torch sleep, and the fork, with one, never asks for them.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        process.start()
    try:
        made = {}
        for number in _taken(lambda: take(front=True)):
            told(number, number + count - ends[1])
            made[number] = make(number)
        made |= _received(here, process)
    finally:
        process.terminate()
        process.join()
    return [made[number] if number in made else make(number) for number in range(count)]


def _taken(take: Take) -> Iterator[int]:
    while (number := take()) is not None:
        yield number


def _received(pipe: Connection, process: multiprocessing.process.BaseProcess) -> dict[int, Made]:
    """What the other process made; nothing where it was ended from outside."""
    while not pipe.poll(0.05):
        if not process.is_alive() and not pipe.poll():
            return {}
    found = pipe.recv()
    if isinstance(found, EncoreError):
        raise found
    return found  # type: ignore[no-any-return]
