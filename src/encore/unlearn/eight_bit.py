"""Optimiser states in 8 bits (Dettmers et al., arXiv 2110.02861) by bitsandbytes: moments of one byte in place of four.

Each block of 256 values has a scale of its own; tensors of less than 4 096 values stay in float32.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch

from encore.errors import MissingExtraError, UsageError

GROUP_SETTINGS = ("params", "lr", "betas", "eps", "weight_decay")
# When it is imported (peft does so too), it warns of 4-bit kernels that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def check_bitsandbytes() -> None:
    """Check that states of 8 bits can be used.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            "--optimizer-states 8bit needs bitsandbytes, which is not installed",
            'pip install "encore-music[optimizers]"',
        )


def eight_bit(optimizer: torch.optim.Optimizer, method: str) -> torch.optim.Optimizer:
    """The same AdamW, with moments in 8 bits.

    Args:
        optimizer: has not made a step.
        method: its name, for the message.

    Raises:
        UsageError: the method has another optimiser than AdamW.
    """
    if type(optimizer) is not torch.optim.AdamW:
        raise UsageError(
            f"method {method!r} has an optimiser of its own, and --optimizer-states 8bit is an AdamW",
            "leave --optimizer-states out",
        )
    import bitsandbytes

    groups: list[dict[str, Any]] = [{key: group[key] for key in GROUP_SETTINGS} for group in optimizer.param_groups]
    optim: Any = bitsandbytes.optim
    result: torch.optim.Optimizer = optim.AdamW8bit(groups)
    return result
