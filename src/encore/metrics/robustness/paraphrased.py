"""An attack: does the track come back when it is asked for in other words?"""

from __future__ import annotations

from collections.abc import Iterator

from encore.api import Clip, Evaluation, Metric, Result
from encore.metrics.memorization.verbatim import PROMPT_SECONDS
from encore.metrics.robustness.paraphrases import random_rewordings, rewordings
from encore.metrics.robustness.variants import Variant, attack_rows, tag
from encore.metrics.rows import unmeasured


class Reworded(Metric):
    """NLL and replay under reworded captions: other order, other words, other case, fewer words, and random slips.

    The slips (`random_rewordings`: a doubled letter, a dropped word, …) are drawn with the evaluation's seed.

    Rows: `reworded_nll`, each track's lowest; `reworded_verbatim` (with a second of audio) and
    `reworded_verbatim_caption` (with none), a track's highest share of right tokens. A model that learnt to balk at one
    caption alone plays on here. `details["variants"]` has the means of each rewording.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        variants = [
            Variant(name, clip, Clip(tag(clip.track, name), caption, clip.codes))
            for clip in evaluation.clips["forget"]
            for name, caption in _all(clip.caption, f"{evaluation.seed} {clip.track}").items()
        ]
        if not variants:
            yield unmeasured("reworded_nll", "unlearned", "forget", "no caption can be put in other words")
            return
        yield from attack_rows("reworded", evaluation, variants, {"verbatim": PROMPT_SECONDS, "verbatim_caption": 0.0})


def _all(caption: str, seed: str) -> dict[str, str]:
    return {**rewordings(caption), **random_rewordings(caption, seed)}
