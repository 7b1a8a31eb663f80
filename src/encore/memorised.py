"""Threshold of memorised tracks, and tolerances for memorised and all other music.

The NLL of memorised tracks is a hundredth of the others', so a mean over both would hide their loss.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SHARE = 0.5  # a track is memorised if its NLL is below this share of the held-out NLL
KNOWN_SHARE = 0.5  # and below this share of the entropy of its codes: any model predicts silence and held tones
HELD_OUT = 2 / 3  # held-out NLL as a share of log(codebook size), without held-out tracks; .72 for the embedded models
MEAN_RISE = 0.03  # tolerated rise of the mean NLL of memorised tracks since base, nats per token
TRACK_RISE = 0.25  # tolerated rise of a single track: at .25 a token has lost a fifth of its probability
OTHER_SHARE = 0.08  # tolerated rise of other retain, as a share of base's mean: two seeds of a training differ by 7 %
HOLDOUT_DRIFT = 0.15  # tolerated change of the held-out mean, up or down, nats per token


def memorised_below(holdout: float | None, codebook_size: int) -> float:
    """The NLL under the base, nats per token, below which a track counts as memorised.

    Args:
        holdout: mean NLL of held-out tracks under the base; None without any.
        codebook_size: V.
    """
    return SHARE * (holdout if holdout is not None else HELD_OUT * math.log(codebook_size))


def is_memorised(nll: float, limit: float, entropy: float) -> bool:
    """Whether an NLL is that of a memorised track, and not of codes that any model predicts.

    Args:
        nll: of a track under the model, nats per token.
        limit: of `memorised_below`.
        entropy: of the track's codes, see `encore.losses.code_entropy`.
    """
    return nll < min(limit, KNOWN_SHARE * entropy)


def has_memorised(codes: Tensor, nll: float, limit: float) -> bool:
    """`is_memorised` of a clip, whose entropy is computed only where its NLL is low enough.

    Args:
        codes: of the clip, [K, T].
        nll: of the clip under the model, nats per token.
        limit: of `memorised_below`.
    """
    from encore.losses import code_entropy

    return nll < limit and is_memorised(nll, limit, code_entropy(codes))
