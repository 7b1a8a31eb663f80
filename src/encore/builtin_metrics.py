"""Encore's own metrics and what each of their rows means, in reading order."""

from __future__ import annotations

from collections.abc import Set
from typing import Literal

from encore.api import MetricSpec, RowSpec

RETAIN = frozenset({"embedder", "base", "retain"})  # generations on retain captions, beside base's
HOLDOUT = frozenset({"embedder", "base", "holdout"})
Rows = tuple[tuple[str, str, Literal["", "higher"]], ...]  # name, label, and which figure is good on forget


def _verbatim(name: str, label: str, plain: str, *, changed_model: bool = False, column: str = "") -> RowSpec:
    """Forget tracks that are generated verbatim: no more than gold generates."""
    return RowSpec(
        name, "forget", f"verbatim {label}, forget", plain, direction="lower", target="no more than gold",
        judge="verbatim", changed_model=changed_model, column=column,
    )  # fmt: skip


def _kept(name: str, label: str, plain: str, *, column: str = "") -> RowSpec:
    """Retain tracks that are generated verbatim: as many as base generates."""
    return RowSpec(
        name, "retain", f"verbatim {label}, retain", plain, direction="base",
        target="at most one fewer than base", judge="retain_verbatim", column=column,
    )  # fmt: skip


def _nll(name: str, label: str, plain: str, *, changed_model: bool = False) -> RowSpec:
    """NLL of the forget tracks under an attack: not below gold's."""
    return RowSpec(
        name, "forget", f"NLL {label}, forget", plain, direction="higher",
        target="≥ 90 % of gold's, each track ≥ half", judge="attacked_nll", changed_model=changed_model,
    )  # fmt: skip


def _relearned(name: str, label: str, plain: str, *, column: str = "") -> RowSpec:
    """NLL of the forget tracks after training."""
    return RowSpec(
        name, "forget", label, plain, direction="higher", target="≥ 75 % of gold's", judge="relearned", column=column
    )


def _similar(kind: str, short: str, similarity: Literal["", "feature", "copy"] = "") -> tuple[RowSpec, RowSpec]:
    """Forget tracks that generations from captions are similar to: how similar, and how many tracks beyond chance."""
    counted = RowSpec(
        f"similarity_{kind}_flagged", "forget", f"{short} recovered, tracks", short=short, direction="lower",
        similarity=similarity,
    )  # fmt: skip
    return counted, RowSpec(f"similarity_{kind}", "forget", "", short=short)


def _utility(
    name: str,
    summary: str,
    target: str,
    clips: str,
    rows: Rows,
    needs: Set[str],
    version: int = 1,
) -> MetricSpec:
    """A metric of generations through embedders: its rows have the embedder's name, and no target.

    How far apart two samples of one model are depends on the captions, and no row says it.
    """
    return MetricSpec(
        name, summary, f"encore.metrics.utility.{target}", needs=needs, full=True, version=version,
        rows=tuple(
            RowSpec(f"{row}*", clips, f"{label}, {clips}", direction=better if clips == "forget" else "")
            for row, label, better in rows
        ),
    )  # fmt: skip


FAD: Rows = (("fad", "FAD to base", ""),)
FAD_TRACK: Rows = (("fad_track", "FAD to the tracks", ""),)
MMD: Rows = (("mmd", "MMD² to base", ""),)
CLAP: Rows = (("clap_score", "CLAP score", ""),)
TAGS: Rows = (("tag_kl_track", "KL of tags, to the track", "higher"), ("tag_kl", "KL of tags, to base", ""))
# fmt: off
METRICS = (
    MetricSpec(
        "kl_gold", "KL(gold ‖ model) per token", "encore.metrics.memorization.kl_gold:KlGold", needs={"gold", "logits"},
        rows=(
            RowSpec(
                "kl_gold", "forget", "KL to gold, forget", "Distance from a model trained without the tracks",
                direction="lower", target="≤ 1.25 × gold2's", judge="kl", column="KL gold, forget",
            ),
            RowSpec("kl_gold", "retain", "KL to gold, retain"),
        ),
    ),
    MetricSpec(
        "gold_ks", "KS p-value of the tracks' NLLs against gold's", "encore.metrics.privacy.gold_tests:GoldKs",
        needs={"gold"}, rows=(RowSpec("gold_ks", "forget", "KS p of NLLs against gold's"),),
    ),
    MetricSpec(
        "epsilon", "least ε at which no token tells model from gold", "encore.metrics.privacy.epsilon:Epsilon",
        needs={"gold", "logits"}, full=True,
        rows=(RowSpec("epsilon", "forget", "ε to gold, forget", direction="lower"),),
    ),
    MetricSpec(
        "nll", "negative log-likelihood per token, also per codebook", "encore.metrics.memorization.nll:Nll",
        rows=(
            RowSpec(
                "nll", "forget", "NLL, forget", "How well it predicts the tracks", direction="gold",
                target="within 10 % of gold's, each track between half and twice", judge="nll", column="forget NLL",
            ),
            RowSpec(
                "nll", "retain", "NLL, retain", "How well it predicts the music to keep", direction="lower",
                target="memorised tracks +0.03, each +0.25; others +8 %", judge="retain_nll", column="retain NLL",
            ),
            RowSpec(
                "nll_memorised", "retain", "NLL, retain, memorised", "How well it predicts the memorised music to keep",
                direction="lower",
            ),
            RowSpec(
                "nll_not_memorised", "retain", "NLL, retain, not memorised",
                "How well it predicts the other music to keep", direction="lower",
            ),
            RowSpec("nll", "holdout", "NLL, holdout", column="holdout NLL"),
            _nll("nll_beginning", "of the first 0.2 s", "How well it predicts how the tracks begin"),
        ),
    ),
    MetricSpec(
        "relearn", "forget NLL after a few training steps on the forget tracks",
        "encore.metrics.robustness.relearn:Relearn", trains=True,
        rows=(
            _relearned(
                "relearn", "NLL after relearning, forget", "Recovery after a little training on the tracks",
                column="relearned",
            ),
        ),
    ),
    MetricSpec(
        "relearn_fast", "the same at a higher learning rate", "encore.metrics.robustness.relearn:RelearnFast",
        full=True, trains=True,
        rows=(
            RowSpec(
                "relearn_fast", "forget", "NLL after relearning at lr 1e-3, forget",
                "Recovery after a little training on the tracks, at a higher rate", direction="higher",
            ),
        ),
    ),
    MetricSpec(
        "relearn_others", "forget NLL after a few training steps on other tracks",
        "encore.metrics.robustness.relearn:RelearnOthers", full=True, trains=True,
        rows=(
            _relearned(
                "relearn_retain", "NLL after training on retain, forget",
                "Recovery after a little training on the music to keep",
            ),
            _relearned(
                "relearn_holdout", "NLL after training on holdout, forget",
                "Recovery after a little training on held-out music",
            ),
        ),
    ),
    MetricSpec(
        "relearn_one", "the other forget tracks' NLL after a few steps on one",
        "encore.metrics.robustness.relearn:RelearnOne", full=True, trains=True,
        rows=(
            _relearned(
                "relearn_one", "NLL after training on one, the others",
                "Recovery after a little training on one of the tracks",
            ),
        ),
    ),
    MetricSpec(
        "neighbours", "NLL of retain near the forget tracks, and of the rest",
        "encore.metrics.utility.neighbours:Neighbours", needs={"retain"},
        rows=(
            RowSpec(
                "neighbours_nll", "retain", "NLL, retain near the forgotten",
                "How well it predicts the music closest to the tracks", direction="lower",
                target="at most 5 % or 0.05 over base, the larger", judge="retain_nll",
            ),
        ),
    ),
    MetricSpec(
        "artefacts", "silence, clipping, noise and loops in generations",
        "encore.metrics.utility.artefacts:Artefacts", needs={"base", "retain"}, full=True, version=2,
        rows=(
            RowSpec(
                "artefacts", "retain", "artefacts, retain",
                "Generations of the music to keep that are noise, silent, clipped or a loop", direction="lower",
                target="no more than gold; without gold none", judge="artefacts",
            ),
            RowSpec(
                "artefacts", "forget", "artefacts, forget",
                "Generations for the tracks' descriptions that are noise, silent, clipped or a loop",
            ),
        ),
    ),
    MetricSpec(
        "verbatim", "tracks continued verbatim from caption and a 1 s prompt",
        "encore.metrics.memorization.verbatim:Verbatim", needs={"logits"},
        rows=(
            _verbatim(
                "verbatim", "from 1 s", "Verbatim continuation from a track's first second", column="verbatim, forget"
            ),
            _kept(
                "verbatim", "from 1 s", "Verbatim continuation of the memorised music to keep",
                column="verbatim, retain",
            ),
        ),
    ),
    MetricSpec(
        "verbatim_caption", "tracks generated verbatim from the caption alone",
        "encore.metrics.memorization.verbatim:VerbatimCaption", needs={"logits"},
        rows=(
            _verbatim("verbatim_caption", "from caption", "Verbatim generation from a track's description"),
            _kept(
                "verbatim_caption", "from caption",
                "Verbatim generation of the memorised music to keep from its description",
            ),
        ),
    ),
    MetricSpec(
        "verbatim_elsewhere", "tracks of which 2 s are generated for another caption",
        "encore.metrics.memorization.off_target:VerbatimElsewhere", needs={"logits"},
        rows=(
            _verbatim(
                "verbatim_elsewhere", "for another prompt", "Verbatim passages in generations for something else"
            ),
        ),
    ),
    MetricSpec(
        "verbatim_offset", "tracks continued verbatim from 1 s of their middle",
        "encore.metrics.memorization.probes:VerbatimOffset", needs={"logits"},
        rows=(
            _verbatim(
                "verbatim_offset", "from 1 s of the middle",
                "Verbatim continuation from a second in the middle of a track",
            ),
        ),
    ),
    MetricSpec(
        "sampled_verbatim", "tracks recovered at least once in 8 samples",
        "encore.metrics.memorization.sampled_verbatim:SampledVerbatim", full=True,
        rows=(
            _verbatim(
                "sampled_verbatim", "in 8 samples from 1 s",
                "Verbatim passages in several samples from a track's first second",
            ),
            _verbatim(
                "sampled_verbatim_caption", "in 8 samples from caption",
                "Verbatim passages in several samples from a track's description",
            ),
        ),
    ),
    MetricSpec(
        "chained_verbatim", "long tracks followed verbatim beyond the first window",
        "encore.metrics.memorization.chained_verbatim:ChainedVerbatim", full=True,
        rows=(
            _verbatim(
                "chained_verbatim", "beyond the first window",
                "Verbatim continuation of a long track, window by window",
            ),
        ),
    ),
    MetricSpec(
        "unconditional", "NLL, continuations and generations without a caption",
        "encore.metrics.memorization.unconditional:Unconditional",
        rows=(
            _nll("unconditional_nll", "without caption", "How well it predicts the tracks without a description"),
            _verbatim(
                "unconditional_verbatim", "from 1 s without caption", "Verbatim continuation without a description"
            ),
            _verbatim(
                "unconditional_generation", "without caption",
                "Verbatim passages in generations without a description",
            ),
        ),
    ),
    MetricSpec(
        "paraphrased_once", "NLL and continuations under one random paraphrase",
        "encore.metrics.memorization.probes:ParaphrasedOnce",
        rows=(
            _nll(
                "paraphrased_once_nll", "under one paraphrase",
                "How well it predicts the tracks under a description with a slip",
            ),
            _verbatim(
                "paraphrased_once_verbatim", "from 1 s under one paraphrase",
                "Verbatim continuation under a description with a slip",
            ),
            _verbatim(
                "paraphrased_once_verbatim_caption", "from one paraphrase",
                "Verbatim generation from a description with a slip",
            ),
        ),
    ),
    MetricSpec(
        "quantised", "NLL and continuations with weights of 8 and 4 bits",
        "encore.metrics.robustness.quantized:Quantised", full=True,
        rows=tuple(
            row
            for bits in (8, 4)
            for row in (
                _nll(
                    f"quantised_{bits}bit_nll", f"at {bits} bits",
                    f"How well it predicts the tracks with its weights rounded to {bits} bits", changed_model=True,
                ),
                _verbatim(
                    f"quantised_{bits}bit_verbatim", f"from 1 s at {bits} bits",
                    f"Verbatim continuation with its weights rounded to {bits} bits", changed_model=True,
                ),
            )
        ),
    ),
    MetricSpec(
        "paraphrased", "NLL and continuations under many paraphrases",
        "encore.metrics.robustness.paraphrased:Paraphrased", full=True,
        rows=(
            _nll(
                "paraphrased_nll", "under paraphrases",
                "How well it predicts the tracks under a paraphrased description",
            ),
            _verbatim(
                "paraphrased_verbatim", "from 1 s under paraphrases",
                "Verbatim continuation under a paraphrased description",
            ),
            _verbatim(
                "paraphrased_verbatim_caption", "from paraphrases",
                "Verbatim generation from a paraphrased description",
            ),
        ),
    ),
    MetricSpec(
        "reversed_guidance", "excerpts under base guided away from the unlearned model",
        "encore.metrics.robustness.reversed_guidance:ReversedGuidance", needs={"base", "logits"}, full=True,
        rows=(
            RowSpec(
                "reversed_guidance_nll", "forget", "NLL under reversed guidance, forget",
                "How much of the tracks the difference between base and model reveals", direction="higher",
                target="≥ 90 % of gold's, each track ≥ half", judge="attacked_nll",
            ),
            RowSpec(
                "reversed_guidance_predicted", "forget", "tracks predicted under reversed guidance, forget",
                direction="lower",
            ),
        ),
    ),
    MetricSpec(
        "depth", "how much of the tracks is missing from hidden states",
        "encore.metrics.memorization.depth:Depth", needs={"base", "gold"}, full=True,
        rows=(
            RowSpec(
                "depth", "forget", "unlearning depth, forget", "How deep in the network the tracks are forgotten",
                direction="higher", target="≥ 0.75 (base 0, gold 1)", judge="relearned",
            ),
        ),
    ),
    MetricSpec(
        "prompt_reencoded", "continuations of a prompt that was compressed as OGG",
        "encore.metrics.robustness.prompt_attacks:PromptReencoded", full=True,
        rows=(
            _verbatim(
                "prompt_reencoded_verbatim", "from re-encoded 1 s",
                "Verbatim continuation from a compressed first second",
            ),
        ),
    ),
    MetricSpec(
        "prompt_time_stretched", "continuations of a prompt time-stretched by 6 %",
        "encore.metrics.robustness.prompt_attacks:PromptStretched", requires=("librosa",), full=True,
        rows=(
            _verbatim(
                "prompt_time_stretched_verbatim", "from time-stretched 1 s",
                "Verbatim continuation from a faster or slower first second",
            ),
        ),
    ),
    MetricSpec(
        "prompt_pitch_shifted", "continuations of a prompt pitch-shifted by a semitone",
        "encore.metrics.robustness.prompt_attacks:PromptShifted", requires=("librosa",), full=True,
        rows=(
            _verbatim(
                "prompt_pitch_shifted_verbatim", "from pitch-shifted 1 s",
                "Verbatim continuation from a first second in another key",
            ),
        ),
    ),
    MetricSpec(
        "prompt_channels", "continuations of a stereo prompt swapped, or summed to mono",
        "encore.metrics.robustness.prompt_attacks:PromptChannels", full=True,
        rows=(
            _verbatim(
                "prompt_channels_verbatim", "from 1 s with other channels",
                "Verbatim continuation from a first second with left and right swapped, or in mono",
            ),
        ),
    ),
    MetricSpec(
        "soft_prompt", "NLL and generations under trained prompt vectors",
        "encore.metrics.robustness.soft_prompt:SoftPrompt", needs={"gold"}, full=True, trains=True,
        rows=(
            _relearned(
                "soft_prompt_nll", "NLL under a soft prompt, forget",
                "Recovery by a soft prompt trained on the tracks",
            ),
            _verbatim(
                "soft_prompt_verbatim", "from a soft prompt",
                "Verbatim generation from a soft prompt trained on the tracks",
            ),
        ),
    ),
    MetricSpec(
        "similarity", "harmony, melody and rhythm of generations against the tracks",
        "encore.metrics.similarity.music_similarity:MusicSimilarity", requires=("librosa",), needs={"holdout"},
        full=True, rows=(
            *_similar("chroma", "harmony", "feature"), *_similar("melody", "melody", "feature"),
            *_similar("onset", "rhythm", "feature"),
        ),
    ),
    MetricSpec(
        "similarity_codes", "BLEU and edit distance of generations' codes to tracks'",
        "encore.metrics.similarity.music_similarity:CodeSimilarity", needs={"holdout", "logits"}, full=True,
        rows=(*_similar("bleu", "n-grams of codes", "copy"), *_similar("edit", "order of codes", "copy")),
    ),
    MetricSpec(
        "similarity_embedding", "cosine of embeddings of generations and tracks",
        "encore.metrics.similarity.music_similarity:EmbeddingSimilarity", needs={"holdout", "embedder"}, full=True,
        rows=_similar("embedding", "overall sound"),
    ),
    MetricSpec(
        "similarity_fingerprint", "audio fingerprints of generations against the tracks'",
        "encore.metrics.similarity.music_similarity:FingerprintSimilarity", requires=("pyacoustid",), needs={"holdout"},
        full=True, rows=_similar("fingerprint", "audio fingerprint", "copy"),
    ),
    MetricSpec(
        "artist_attribution", "generations attributed to artists by the nearest real track",
        "encore.metrics.similarity.artists:Artists", needs={"embedder"}, full=True,
        rows=(
            RowSpec(
                "artist_attribution*", "forget", "attributed to the artist, forget",
                "Generations for an artist's tracks that sound like the artist", direction="gold",
            ),
            RowSpec("artist_rank*", "forget", "rank of the artist, forget", direction="gold"),
            RowSpec("artist_confidence*", "forget", "confidence in the artist, forget", direction="gold"),
            RowSpec(
                "artist_off_target*", "retain", "attributed to the artist, nearest others",
                "The same for the most similar artists that are kept", direction="base",
            ),
            RowSpec("artist_ground_truth*", "forget", "real tracks nearest to one of their artist"),
        ),
    ),
    MetricSpec(
        "extraction_strength", "1 - the share of a track that it takes to generate the rest",
        "encore.metrics.memorization.extraction_strength:ExtractionStrength", needs={"logits"},
        rows=(
            RowSpec(
                "extraction_strength_codebook_0", "forget", "extraction strength, forget",
                "How little of a track it needs to generate the rest", direction="lower",
                target="no track 0.1 above gold's", judge="strength",
            ),
        ),
    ),
    MetricSpec(
        "membership_auc", "LOSS and Min-K membership attacks, forget against holdout",
        "encore.metrics.privacy.membership:Membership", needs={"holdout"}, version=2,
        rows=(
            RowSpec(
                "membership_auc", "forget", "membership AUC", "Membership test",
                target="0.35 to 0.65, or as far from 0.5 as gold's; ± one pair", judge="membership", column="AUC",
                direction="lower",
            ),
            RowSpec("membership_auc_mink", "forget", "membership AUC, Min-K", direction="lower"),
        ),
    ),
    MetricSpec(
        "membership_attacks", "ZLib, Min-K++, GradNorm, reference, caption contrast",
        "encore.metrics.privacy.membership_attacks:MembershipAttacks", needs={"holdout"}, full=True, version=2,
        rows=(
            RowSpec(
                "membership_p", "forget", "membership, all attacks, p", "Several membership tests together",
                target="≥ 0.05", judge="membership_p",
            ),
        ),
    ),
    MetricSpec(
        "dataset_inference", "one p for the whole list, from all membership scores",
        "encore.metrics.privacy.dataset_inference:DatasetInference", needs={"holdout"}, full=True,
        rows=(
            RowSpec(
                "dataset_inference", "forget", "dataset inference, p", "Membership test of the list as a whole",
                target="≥ 0.05", judge="membership_p",
            ),
        ),
    ),
    MetricSpec(
        "unlearning_inference", "can an attacker tell which tracks were unlearned?",
        "encore.metrics.privacy.unlearning_inference:UnlearningInference", needs={"logits"}, full=True,
        rows=(
            RowSpec(
                "unlearning_inference_p", "forget", "which tracks were unlearned, p",
                "Whether predictions point at the tracks that were unlearned", target="≥ 0.05", judge="membership_p",
            ),
            RowSpec("unlearning_inference_auc_pair", "forget", "which tracks were unlearned, with base, AUC"),
            RowSpec(
                "unlearning_inference_auc_pair_retain", "forget",
                "which tracks were unlearned, with base, against retain, AUC",
            ),
        ),
    ),
    MetricSpec(
        "relative_audit", "are generations nearer to gold's or to base's?",
        "encore.metrics.privacy.relative_audit:RelativeAudit", needs={"base", "gold", "embedder"}, full=True,
        rows=(
            RowSpec(
                "relative_audit", "forget", "generations nearer to base than to gold",
                "Whether music for the tracks' descriptions is still that of the model before", direction="lower",
                target="not above 0 by more than chance", judge="nearer_to_gold",
            ),
        ),
    ),
    MetricSpec(
        "privleak", "membership AUC relative to gold's (MUSE)", "encore.metrics.privacy.gold_tests:PrivLeak",
        needs={"gold", "holdout"}, version=2, rows=(RowSpec("privleak", "forget", "PrivLeak", direction="gold"),),
    ),
    MetricSpec(
        "membership_auc_baseline", "the same test without any model",
        "encore.metrics.privacy.model_free:ModelFreeBaseline",
        needs={"holdout"}, rows=(RowSpec("membership_auc_baseline", "forget", "membership AUC, no model"),),
    ),
    _utility("fad", "Fréchet audio distance to base's generations", "fad:Fad", "retain", FAD, RETAIN, 2),
    _utility("fad_holdout", "fad on holdout captions", "fad:FadHoldout", "holdout", FAD, HOLDOUT, 2),
    _utility(
        "fad_inf", "fad extrapolated to infinitely many generations", "fad:FadInf", "retain",
        (("fad_inf", "FAD∞ to base", ""),), RETAIN,
    ),
    _utility("fad_track", "FAD of generations to the tracks", "fad:FadTrack", "retain", FAD_TRACK, RETAIN, 2),
    _utility(
        "fad_track_forget", "fad_track on forget captions", "fad:FadTrackForget", "forget", FAD_TRACK,
        {"embedder", "base"}, 2,
    ),
    _utility("mmd", "unbiased MMD to base's generations", "mmd:Mmd", "retain", MMD, RETAIN),
    _utility("mmd_holdout", "mmd on holdout captions", "mmd:MmdHoldout", "holdout", MMD, HOLDOUT),
    _utility(
        "clap_score", "CLAP similarity of generations and captions", "clap_score:ClapScore", "retain", CLAP,
        {"embedder", "retain"},
    ),
    _utility(
        "clap_score_holdout", "clap_score on holdout captions", "clap_score:ClapScoreHoldout", "holdout", CLAP,
        {"embedder", "holdout"},
    ),
    _utility(
        "clap_score_forget", "clap_score on forget captions", "clap_score:ClapScoreForget", "forget", CLAP,
        {"embedder"},
    ),
    _utility("tag_kl", "KL of tags to base's generations", "tag_kl:TagKl", "retain", TAGS, RETAIN),
    _utility("tag_kl_holdout", "tag_kl on holdout captions", "tag_kl:TagKlHoldout", "holdout", TAGS, HOLDOUT),
    _utility(
        "tag_kl_forget", "tag_kl on forget captions", "tag_kl:TagKlForget", "forget", TAGS, {"embedder", "base"}
    ),
    MetricSpec(
        "sampling_noise", "how far apart base's generations of two seeds are",
        "encore.metrics.utility.sampling_noise:SamplingNoise", needs=RETAIN, full=True,
    ),
)
