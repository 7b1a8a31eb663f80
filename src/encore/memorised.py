"""Which retain tracks a base has memorised, and what they, and all other music, may lose: each is judged apart.

Their NLL is a hundredth of the others', so that in a mean of both their loss does not show.
"""

from __future__ import annotations

import math

SHARE = 0.5  # of the held-out level, below which a track counts as memorised
HELD_OUT = 2 / 3  # of log(codebook size): the level without held-out tracks; the embedded models' is .72 of it
MEAN_RISE = 0.03  # nats per token that the mean NLL of memorised tracks may rise by since base
TRACK_RISE = 0.25  # nats per token, of a single one: at .25 a token has lost a fifth of its probability
OTHER_SHARE = 0.08  # of base's mean, that other retain may rise by: two seeds of a training differ by 7 % on such music
HOLDOUT_DRIFT = 0.15  # nats per token that the mean of held-out tracks may move from base's, on either side


def memorised_below(holdout: float | None, codebook_size: int) -> float:
    """The NLL under the base, nats per token, below which a track counts as memorised.

    Args:
        holdout: mean NLL of held-out tracks under the base; None without any.
        codebook_size: of the model's codes.
    """
    return SHARE * (holdout if holdout is not None else HELD_OUT * math.log(codebook_size))
