"""Attack: paraphrased captions."""

from __future__ import annotations

from collections.abc import Iterator

from encore.api import Clip, Evaluation, Metric, Result
from encore.metrics.memorization.verbatim import PROMPT_SECONDS
from encore.metrics.robustness.paraphrases import paraphrases, random_paraphrases
from encore.metrics.robustness.variants import Variant, attack_rows, tag
from encore.metrics.rows import unmeasured


class Paraphrased(Metric):
    """NLL and verbatim continuation under paraphrased captions: order, synonyms, case, fewer words, and random edits.

    The edits (`random_paraphrases`: a doubled letter, a dropped word, …) are drawn with the evaluation's seed.

    Rows: `paraphrased_nll`, each track's lowest; `paraphrased_verbatim` (with a second of audio) and
    `paraphrased_verbatim_caption` (without audio), each track's highest share of right tokens. They detect a model that
    refuses only the exact caption. `details["variants"]` has the mean of each paraphrase.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        variants = [
            Variant(name, clip, Clip(tag(clip.track, name), caption, clip.codes))
            for clip in evaluation.clips["forget"]
            for name, caption in {
                **paraphrases(clip.caption),
                **random_paraphrases(clip.caption, f"{evaluation.seed} {clip.track}"),
            }.items()
        ]
        if not variants:
            yield unmeasured("paraphrased_nll", "unlearned", "forget", "no caption can be paraphrased")
            return
        yield from attack_rows(
            "paraphrased", evaluation, variants, {"verbatim": PROMPT_SECONDS, "verbatim_caption": 0.0}
        )
