"""Presets: the setups of published benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

from encore.errors import UnknownNameError


@dataclass(frozen=True)
class Preset:
    """The defaults of `--preset`; flags take precedence.

    Args:
        summary: description and source.
        methods: methods, in the order of the table.
        metrics: metrics to measure.
        embedder: embedders for other models than the embedded one, for which defaults are tuned.
        samples_per_caption: generations per caption.
        options: method options for other models than the embedded one.
        finetune: whether base and golds are trained first, see `encore.compare.finetuned`.
    """

    summary: str
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    embedder: str
    samples_per_caption: int = 1
    options: tuple[str, ...] = ()
    finetune: bool = False


PRESETS = {
    "no-encore": Preset(
        "gradient ascent and random labels on MusicGen; FAD, KL and CLAP, forget and remain (arXiv 2509.06277)",
        methods=("ga", "rl"),
        metrics=(
            "nll",
            "kl_gold",
            "verbatim",
            "membership_auc",
            "relearn",
            "fad_track",
            "tag_kl",
            "clap_score",
            "fad_track_forget",
            "tag_kl_forget",
            "clap_score_forget",
        ),
        embedder="vggish,passt,clap",
        samples_per_caption=3,
        options=("ga.lr=1e-5", "rl.lr=1e-5"),
    ),
    "finetuned": Preset(
        "base and golds fine-tuned from any model on your tracks, as in TOFU (arXiv 2401.06121) and MUSE (2407.06460)",
        methods=("encore", "ga", "graddiff", "ga-kl", "npo", "task-vector"),
        metrics=(
            "nll",
            "kl_gold",
            "verbatim",
            "verbatim_caption",
            "extraction_strength",
            "membership_auc",
            "relearn",
        ),
        embedder="",
        options=("ga.lr=1e-5", "graddiff.lr=1e-5", "ga-kl.lr=1e-5", "npo.lr=1e-5"),  # as TOFU's
        finetune=True,
    ),
}


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UnknownNameError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise UnknownNameError(f"there is no preset {name!r}", f"there is {', '.join(PRESETS)}")
    return PRESETS[name]
