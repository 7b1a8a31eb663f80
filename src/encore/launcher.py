"""What `torchrun` or `accelerate launch` tells each process that it starts, in the environment. Imports no torch."""

from __future__ import annotations

import os


def launched() -> int:
    """The number of processes that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if {"RANK", "MASTER_ADDR"} <= os.environ.keys() else 1
