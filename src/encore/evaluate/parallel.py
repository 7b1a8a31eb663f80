"""Metrics of a small model in two processes: its matrix products are too small to profit from a second thread.

One process takes metrics from the front of the list, the other from the back, until they meet. Shared intermediate
results are computed by each, or read from the disk cache if the other was first.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch

from encore import distributed
from encore.api import Backend
from encore.errors import EncoreError

SMALL = 20_000_000  # parameters; with more, threads are as fast and need less memory

Made = TypeVar("Made")
Take = Callable[[], int | None]


def start_fork(process: BaseProcess) -> None:
    """Start a process by a fork, without Python's warning of threads: torch's are idle, and the fork uses none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        process.start()


@contextmanager
def threads_for_two(models: Sequence[Backend]) -> Iterator[bool]:
    """Whether to use two processes: small CPU models, Linux, and more than one thread.

    If so, this process has half of its threads in the block, so that both processes' results are bitwise equal.
    """
    before = torch.get_num_threads()
    two = (
        sys.platform.startswith("linux")
        and before > 1
        and distributed.size() == 1
        and all(model.device.type == "cpu" for model in models)
        and all(sum(weight.numel() for weight in model.module.parameters()) < SMALL for model in models)
    )
    if two:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns of its threads at the fork
        torch.set_num_threads(before // 2)
    try:
        yield two
    finally:
        torch.set_num_threads(before)


def map_in_two_processes(make: Callable[[int], Made], count: int, progress: Callable[[int, int], None]) -> list[Made]:
    """`[make(0), …, make(count - 1)]`, computed by this process and a fork of it; see `threads_for_two`.

    Args:
        make: the function to map.
        count: number of results.
        progress: called in this process before each of its numbers, with the number taken before by both.

    Raises:
        EncoreError: raised by `make` in either process.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    ends = fork.Array("i", [0, count])

    def take(front: bool) -> int | None:
        with ends.get_lock():
            begin, end = ends[0], ends[1]
            if begin >= end:
                return None
            ends[0], ends[1] = (begin + 1, end) if front else (begin, end - 1)
            return begin if front else end - 1

    def work_from_the_back() -> None:
        try:
            sender.send({number: make(number) for number in _taken(lambda: take(front=False))})
        except EncoreError as error:
            sender.send(error)

    process = fork.Process(target=work_from_the_back, daemon=True)
    start_fork(process)
    try:
        results = {}
        for number in _taken(lambda: take(front=True)):
            progress(number, number + count - ends[1])
            results[number] = make(number)
        results |= _received(receiver, process)
    finally:
        process.terminate()
        process.join()
    return [results[number] if number in results else make(number) for number in range(count)]


def _taken(take: Take) -> Iterator[int]:
    while (number := take()) is not None:
        yield number


def _received(pipe: Connection, process: multiprocessing.process.BaseProcess) -> dict[int, Made]:
    """The other process's results; empty if it was killed."""
    while not pipe.poll(0.05):
        if not process.is_alive() and not pipe.poll():
            return {}
    message = pipe.recv()
    if isinstance(message, EncoreError):
        raise message
    return message  # type: ignore[no-any-return]
