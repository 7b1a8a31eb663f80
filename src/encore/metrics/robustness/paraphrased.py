"""Attack: reworded captions."""

from __future__ import annotations

from collections.abc import Iterator

from encore.api import Clip, Evaluation, Metric, Result
from encore.metrics.memorization.verbatim import PROMPT_SECONDS
from encore.metrics.robustness.paraphrases import random_rewordings, rewordings
from encore.metrics.robustness.variants import Variant, attack_rows, tag
from encore.metrics.rows import unmeasured


class Reworded(Metric):
    """NLL and verbatim continuation under reworded captions: order, synonyms, case, fewer words, and random edits.

    The edits (`random_rewordings`: a doubled letter, a dropped word, …) are drawn with the evaluation's seed.

    Rows: `reworded_nll`, each track's lowest; `reworded_verbatim` (with a second of audio) and
    `reworded_verbatim_caption` (without audio), each track's highest share of right tokens. They detect a model that
    refuses only the exact caption. `details["variants"]` has the mean of each rewording.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        variants = [
            Variant(name, clip, Clip(tag(clip.track, name), caption, clip.codes))
            for clip in evaluation.clips["forget"]
            for name, caption in {
                **rewordings(clip.caption),
                **random_rewordings(clip.caption, f"{evaluation.seed} {clip.track}"),
            }.items()
        ]
        if not variants:
            yield unmeasured("reworded_nll", "unlearned", "forget", "no caption can be reworded")
            return
        yield from attack_rows("reworded", evaluation, variants, {"verbatim": PROMPT_SECONDS, "verbatim_caption": 0.0})
