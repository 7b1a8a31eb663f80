"""One run in several processes, started by `torchrun` or `accelerate launch`: data parallelism.

Every process ("rank") runs the same program on a model of its own and draws the same random numbers. What differs is
the work: of the clips of a step, a snapshot or a Fisher diagonal each rank computes its share, and the sums are reduced
over all ranks, so that all of them hold the same weights and decide the same. Rank 0 alone writes files and messages.

A single process is the normal case: then `size()` is 1, a share is everything, and nothing here communicates.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from encore.errors import EncoreError, Interrupted, UsageError, one_line
from encore.launcher import launched

TIMEOUT = timedelta(minutes=30)  # a rank that waits longer for the others gives up
BUCKET_BYTES = 32 << 20  # gradients are reduced in pieces of this size: few messages, little memory
FAILURE = "encore/failure"  # key of the store: the first failure of any rank
LEFT = "encore/left"  # key of the store: the number of ranks that left after a failure
PATIENCE = 2.0  # seconds that a failing rank leaves to rank 0, which often fails as well
FAREWELL = 10.0  # seconds that rank 0 stays after a failure, at most: it may hold the store, which the others ask why

Item = TypeVar("Item")


@dataclass
class _Group:
    """The processes of this run; alone unless `processes` has joined others."""

    rank: int = 0
    size: int = 1
    store: Any = None
    turns: int = 0  # `first_rank_first` blocks so far
    lockstep: bool = False


_group = _Group()


class RankError(EncoreError):
    """Another process of the run failed or was stopped.

    Args:
        message: its message.
        exit_code: its exit code.
        announced: whether that process prints the message.
    """

    def __init__(self, message: str, exit_code: int = 1, *, announced: bool = False) -> None:
        super().__init__(message, "continue with the same command and --resume, on any number of processes")
        self.exit_code = exit_code
        self.announced = announced


def rank() -> int:
    """The number of this process, from 0."""
    return _group.rank


def size() -> int:
    """The number of processes that share the run."""
    return _group.size


def device_of(name: str) -> str:
    """The device of this process among several: a GPU of its own, or the CPU.

    Args:
        name: "auto", "cpu" or "cuda".

    Raises:
        UsageError: it is one device for all processes, or this machine has fewer GPUs than processes.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"--device {name} is one device for all {launched()} processes", "leave --device out, or give cpu or cuda"
        )
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= there:
        raise UsageError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', local + 1)} processes were started here, and there are {there} GPUs",
            "start one process for each GPU, or use --device cpu",
        )
    return f"cuda:{local}"


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the other processes that the launcher started, until the block ends; without a launcher, do nothing.

    Ranks other than 0 print nothing. When a rank raises, all others end with its exit code, and its message is printed
    once.

    Args:
        device: as in `device_of`.

    Raises:
        UsageError: see `device_of`.
        RankError: another process was killed.
    """
    global _group
    if launched() == 1 or _group.size > 1:
        yield
        return
    with ExitStack() as silence:
        if int(os.environ["RANK"]) > 0:
            nowhere = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        try:
            _group = _joined(device)
            yield
            wait_for_all()
            totals([0.0])  # rank 0, which may hold the store, ends last
            dist.destroy_process_group()
        except Interrupted as signal:
            _announce(signal)
            raise
        except BaseException as error:
            failure = _announce(error)
            if failure is error:
                raise
            raise failure from error
        finally:
            _group = _Group()


def _joined(device: str) -> _Group:
    chosen = device_of(device)
    if chosen.startswith("cuda"):
        torch.cuda.set_device(chosen)
    store, number, count = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    # Decisions are exchanged on the CPU even where gradients are on GPUs.
    backend = "cpu:gloo,cuda:nccl" if chosen.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
    return _Group(number, count, store)


def _announce(error: BaseException) -> BaseException:
    """Tell the other ranks of a failure; returns what this rank should raise.

    The first rank to fail raises its error, which is printed; the others leave silently, with its exit code.
    """
    if _group.store is None:  # not joined yet: the launcher stops the others
        return error if int(os.environ["RANK"]) == 0 or not isinstance(error, UsageError) else SystemExit(2)
    if isinstance(error, RankError) and error.announced:
        with suppress(RuntimeError):
            _group.store.add(LEFT, 1)
        return SystemExit(error.exit_code)
    message = error.message if isinstance(error, EncoreError) else one_line(error)
    entry = {"rank": _group.rank, "message": message, "exit_code": getattr(error, "exit_code", 1)}
    first = None
    if _group.rank > 0 and not isinstance(error, Interrupted):
        first = _patiently(_failure, PATIENCE)
    try:
        first = first or json.loads(_group.store.compare_set(FAILURE, "", json.dumps(entry)))
        _group.store.add(LEFT, 1)
        if dist.is_initialized() and dist.get_backend() == "gloo":  # NCCL would wait for the others
            dist.destroy_process_group()  # whoever waits for this rank's numbers ends, and asks the store why
        if _group.rank == 0:
            _patiently(lambda: _group.store.add(LEFT, 0) == _group.size, FAREWELL)
    except RuntimeError:  # the store ended with the process that held it
        return error
    if first["rank"] != _group.rank:
        return SystemExit(first["exit_code"])
    if _group.rank > 0 and isinstance(error, EncoreError) and not isinstance(error, RankError):
        error.message = f"process {_group.rank} of {_group.size}: {error.message}"
    return error


def _patiently(ask: Callable[[], Item], seconds: float) -> Item:
    """The first answer that is true, or the last one after so many seconds."""
    until = time.monotonic() + seconds
    while not (answer := ask()) and time.monotonic() < until:
        time.sleep(0.05)
    return answer


def _failure() -> dict[str, Any] | None:
    """The announced failure, if any."""
    try:
        return dict(json.loads(_group.store.get(FAILURE))) if _group.store.check([FAILURE]) else None
    except RuntimeError:
        return None


@contextmanager
def _communication() -> Iterator[None]:
    """Turn the errors of a collective operation, which follow from the end of another process, into a `RankError`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if (failure := _failure()) is not None:
            raise RankError(failure["message"], failure["exit_code"], announced=True) from error
        raise RankError(f"a process of this run ended or can't be reached: {one_line(error)}") from error


# ------------------------------------------------------------------------------------------------------ shares of work


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This rank's share of some items."""
    return items[_group.rank :: _group.size]


def batches(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    """This rank's share of some items in batches of at most `most`.

    Every rank gets as many batches; a rank that has no item left gets an empty one.
    """
    own = share(items)
    count = math.ceil(math.ceil(len(items) / _group.size) / most)
    return [own[i * most : (i + 1) * most] for i in range(count)]


def rows(
    items: Sequence[Item],
    most: int,
    compute: Callable[[Sequence[Item]], Tensor],
    *,
    size: Callable[[Item], int] = lambda item: 0,
) -> Tensor:
    """The rows of all items, [N, …]; each rank computes its share.

    Args:
        items: N of them, at least one.
        most: items per call of `compute`; fewer where memory runs out, if one process computes alone.
        compute: n items -> [n, …], each row of one item alone.
        size: of an item; those of similar size share a call.
    """
    sizes = [size(item) for item in items]
    if len({*sizes}) > 1:
        order = sorted(range(len(items)), key=lambda place: -sizes[place])
        computed = rows([items[place] for place in order], most, compute)
        return torch.empty_like(computed).index_copy_(0, torch.tensor(order, device=computed.device), computed)
    parts = [_computed(compute, part or items[:1])[: len(part)] for part in batches(items, most)]
    own = torch.cat(parts)
    if _group.size == 1:
        return own
    everything = own.new_zeros(len(items), *own.shape[1:])
    everything[_group.rank :: _group.size] = own
    add([everything])
    return everything


def _computed(compute: Callable[[Sequence[Item]], Tensor], items: Sequence[Item]) -> Tensor:
    """The rows of items, computed in halves where memory runs out."""
    try:
        return compute(items)
    except RuntimeError as error:  # of several processes, each may wait for the others in `compute`
        if not is_out_of_memory(error) or len(items) == 1 or _group.size > 1:
            raise
    half = len(items) // 2
    return torch.cat([_computed(compute, items[:half]), _computed(compute, items[half:])])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device is used up."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


# ---------------------------------------------------------------------------------------------------------- reductions


def add(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over all ranks; every rank gives tensors of the same shapes."""
    if _group.size == 1:
        return
    bucket: list[Tensor] = []
    for tensor in [*tensors, None]:
        size = sum(each.numel() * each.element_size() for each in bucket)
        if bucket and (tensor is None or tensor.dtype != bucket[0].dtype or size >= BUCKET_BYTES):
            flat = torch.cat([each.reshape(-1) for each in bucket])
            with _communication():
                dist.all_reduce(flat)
            for each, total in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                each.copy_(total.view_as(each))
            bucket = []
        if tensor is not None:
            bucket.append(tensor)


def add_gradients(weights: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their sums over all ranks; weights without a gradient on any rank are left without."""
    if _group.size == 1:
        return
    there = largest([weight.grad is not None for weight in weights])
    used = [weight for weight, flag in zip(weights, there, strict=True) if flag]
    for weight in used:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    with torch.no_grad():
        add(weight.grad for weight in used if weight.grad is not None)


def totals(values: Sequence[float]) -> list[float]:
    """Sums over all ranks, in float64."""
    return _reduced(values, dist.ReduceOp.SUM)


def largest(values: Sequence[float]) -> list[float]:
    """Maxima over all ranks; of flags, whether any rank sets one."""
    return _reduced(values, dist.ReduceOp.MAX)


def _reduced(values: Sequence[float], operation: Any) -> list[float]:
    if _group.size == 1 or not values:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    with _communication():
        dist.all_reduce(tensor, operation)
    return tensor.tolist()


def first(value: Item) -> Item:
    """Rank 0's value: a decision that all ranks follow. The value is pickled."""
    if _group.size == 1:
        return value
    values = [value]
    with _communication():
        dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def everyone(value: Item) -> list[Item]:
    """The values of all ranks, in their order. They are pickled."""
    values: list[Any] = [value] * _group.size
    if _group.size > 1:
        with _communication():
            dist.all_gather_object(values, value)
    return values


def copy_first(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by those of rank 0."""
    if _group.size == 1:
        return
    with _communication(), torch.no_grad():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def synchronise(generator: torch.Generator) -> None:
    """Set a random generator to its state on rank 0."""
    if _group.size > 1:
        state = generator.get_state()
        copy_first([state])
        generator.set_state(state)


def vary_dropout(step: int) -> None:
    """Seed the dropout of ranks other than 0 differently; `step` is that of the loop."""
    if _group.rank > 0:
        torch.manual_seed(torch.initial_seed() + 1_000_003 * _group.rank + step)


# --------------------------------------------------------------------------------------------------------------- turns


def in_lockstep() -> bool:
    """Whether every process must call the network equally often, because its weights are split over them."""
    return _group.lockstep


@contextmanager
def lockstep() -> Iterator[None]:
    """A block in which `in_lockstep` is true."""
    _group.lockstep = True
    try:
        yield
    finally:
        _group.lockstep = False


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Run a block on rank 0, then on the others, which find its results in caches on disk.

    Within the block every rank works alone.
    """
    if _group.size == 1:
        yield
        return
    _group.turns += 1
    key = f"encore/turn/{_group.turns}"
    if _group.rank > 0:
        _wait_for(key)
    with alone():
        yield
    if _group.rank == 0:
        with _communication():
            _group.store.set(key, "over")


@contextmanager
def alone() -> Iterator[None]:
    """A block in which this process shares nothing with the others."""
    global _group
    group, _group = _group, _Group()
    try:
        yield
    finally:
        _group = group


def wait_for_all() -> None:
    """Wait, as long as it takes, until every rank is here.

    Raises:
        RankError: another process failed.
    """
    if _group.size == 1:
        return
    _group.turns += 1
    key = f"encore/turn/{_group.turns}"
    with _communication():
        if _group.store.add(f"{key}/here", 1) == _group.size:
            _group.store.set(key, "over")
    _wait_for(key)


def _wait_for(key: str) -> None:
    """Wait, as long as it takes, for a key of the store, or for the failure of a rank."""
    with _communication():
        while not _group.store.check([key]):
            if (failure := _failure()) is not None:
                raise RankError(failure["message"], failure["exit_code"], announced=True)
            time.sleep(0.1)
