"""Encore's own plugin. It comes in by the same entry point and the same hooks as anybody's."""

from __future__ import annotations

from encore.api import BackendSpec, EmbedderSpec, MethodSpec, MetricSpec, hookimpl


@hookimpl
def encore_register_methods() -> list[MethodSpec]:
    retain, reference = frozenset({"retain"}), frozenset({"retain", "reference"})
    fisher, logits = frozenset({"retain", "fisher"}), frozenset({"logits"})
    return [
        MethodSpec("ga", "gradient ascent on the forget tracks (No Encore)", "encore.methods.ga:GradientAscent"),
        MethodSpec(
            "rl", "random labels on forget, plus retain (No Encore)", "encore.methods.rl:RandomLabels", needs=retain
        ),
        MethodSpec("ft", "fine-tune on retain only", "encore.methods.ft:FineTune", needs=retain),
        MethodSpec("graddiff", "ascent on forget, descent on retain", "encore.methods.graddiff:GradDiff", needs=retain),
        MethodSpec(
            "ga-kl", "ascent on forget, KL to base on retain", "encore.methods.ga_kl:GaKl", needs=reference | logits
        ),
        MethodSpec("npo", "negative preference optimisation", "encore.methods.npo:Npo", needs=reference),
        MethodSpec("simnpo", "NPO without a reference model", "encore.methods.simnpo:SimNpo", needs=retain),
        MethodSpec(
            "wga", "ascent weighted by each token's probability", "encore.methods.wga:Wga", needs=retain | logits
        ),
        MethodSpec("task-vector", "subtract what fine-tuning on forget adds", "encore.methods.task_vector:TaskVector"),
        MethodSpec(
            "salun",
            "rl on the weights with forget's largest gradients",
            "encore.methods.salun:SalUn",
            needs=retain,
        ),
        MethodSpec(
            "ssd", "dampen weights that matter more to forget than to all", "encore.methods.ssd:Ssd", needs=fisher
        ),
        MethodSpec(
            "fisher-noise",
            "noise on weights that matter little to retain",
            "encore.methods.fisher_noise:FisherNoise",
            needs=fisher,
        ),
        MethodSpec(
            "ewc",
            "ascent, held where retain's Fisher is large",
            "encore.methods.ewc:Ewc",
            needs=fisher,
        ),
        MethodSpec(
            "newton", "a step up forget's loss, scaled by retain's Fisher", "encore.methods.newton:Newton", needs=fisher
        ),
        MethodSpec(
            "retrain",
            "train from scratch on retain: the honest baseline",
            "encore.methods.retrain:Retrain",
            needs=retain,
        ),
        MethodSpec(
            "encore",
            "forget toward what the model says of unheard music",
            "encore.methods.encore:Encore",
            needs=reference | logits,
        ),
    ]


@hookimpl
def encore_register_backends() -> list[BackendSpec]:
    return [BackendSpec("musicgen", "MusicGen through transformers", "encore.backends.musicgen:MusicgenBackend")]


@hookimpl
def encore_register_metrics() -> list[MetricSpec]:
    played = frozenset({"embedder", "base", "retain"})  # generations on retain captions, beside base's
    unheard = frozenset({"embedder", "base", "holdout"})
    # Two processes may share the list, one from each end (`runs.two`): what shares scores is first, what trains last.
    return [
        MetricSpec("nll", "negative log-likelihood a token, also a codebook", "encore.metrics.memorization.nll:Nll"),
        MetricSpec(
            "kl_gold",
            "KL(gold ‖ model) a token",
            "encore.metrics.memorization.kl_gold:KlGold",
            needs={"gold", "logits"},
        ),
        MetricSpec(
            "gold_ks",
            "KS p-value of the tracks' NLLs against gold's",
            "encore.metrics.privacy.gold_tests:GoldKs",
            needs={"gold"},
        ),
        MetricSpec(
            "privleak",
            "membership AUC relative to gold's (MUSE)",
            "encore.metrics.privacy.gold_tests:PrivLeak",
            needs={"gold", "holdout"},
            version=2,
        ),
        MetricSpec(
            "epsilon",
            "ε at which model and gold can't be told apart by a token",
            "encore.metrics.privacy.epsilon:Epsilon",
            needs={"gold", "logits"},
            full=True,
        ),
        MetricSpec(
            "verbatim",
            "tracks that replay from caption and 1 s of prompt",
            "encore.metrics.memorization.verbatim:Verbatim",
            needs={"logits"},
        ),
        MetricSpec(
            "verbatim_caption",
            "tracks that replay from the caption alone",
            "encore.metrics.memorization.verbatim:VerbatimCaption",
            needs={"logits"},
        ),
        MetricSpec(
            "verbatim_elsewhere",
            "tracks of which 2 s come out for another caption",
            "encore.metrics.memorization.off_target:VerbatimElsewhere",
            needs={"logits"},
        ),
        MetricSpec(
            "verbatim_offset",
            "tracks that are continued from 1 s of their middle",
            "encore.metrics.memorization.probes:VerbatimOffset",
            needs={"logits"},
        ),
        MetricSpec(
            "reworded_once",
            "NLL and continuations under one random rewording",
            "encore.metrics.memorization.probes:RewordedOnce",
        ),
        MetricSpec(
            "unconditional",
            "NLL, continuations, generations without a caption",
            "encore.metrics.memorization.unconditional:Unconditional",
        ),
        MetricSpec(
            "neighbours",
            "retain by artist and genre of the forgotten, and the rest",
            "encore.metrics.utility.neighbours:Neighbours",
            needs={"retain"},
        ),
        MetricSpec(
            "extraction_strength",
            "1 - shortest prompt that replays the rest",
            "encore.metrics.memorization.extraction_strength:ExtractionStrength",
            needs={"logits"},
        ),
        MetricSpec(
            "membership_auc",
            "LOSS and Min-K membership, forget against holdout",
            "encore.metrics.privacy.membership:Membership",
            needs={"holdout"},
            version=2,
        ),
        MetricSpec(
            "membership_auc_blind",
            "the same test without any model",
            "encore.metrics.privacy.model_free:Blind",
            needs={"holdout"},
        ),
        MetricSpec(
            "membership_attacks",
            "ZLib, Min-K++, GradNorm, reference, caption contrast",
            "encore.metrics.privacy.membership_attacks:MembershipAttacks",
            needs={"holdout"},
            full=True,
            version=2,
        ),
        MetricSpec(
            "quantised",
            "NLL and replay with weights of 8 and 4 bits",
            "encore.metrics.robustness.quantized:Quantised",
            full=True,
        ),
        MetricSpec(
            "reworded",
            "NLL and replay under many reworded captions",
            "encore.metrics.robustness.paraphrased:Reworded",
            full=True,
        ),
        MetricSpec(
            "prompt_reencoded",
            "NLL and replay from a prompt that was OGG",
            "encore.metrics.robustness.prompt_attacks:PromptReencoded",
            full=True,
        ),
        MetricSpec(
            "prompt_stretched",
            "NLL and replay from a prompt 6 % faster or slower",
            "encore.metrics.robustness.prompt_attacks:PromptStretched",
            requires=("librosa",),
            full=True,
        ),
        MetricSpec(
            "prompt_shifted",
            "NLL and replay from a prompt a semitone off",
            "encore.metrics.robustness.prompt_attacks:PromptShifted",
            requires=("librosa",),
            full=True,
        ),
        MetricSpec(
            "likeness",
            "harmony, melody, rhythm of plays against the tracks",
            "encore.metrics.similarity.music_similarity:MusicSimilarity",
            requires=("librosa",),
            needs={"holdout"},
            full=True,
        ),
        MetricSpec(
            "likeness_codes",
            "BLEU and edit distance of codes against the tracks'",
            "encore.metrics.similarity.music_similarity:CodeSimilarity",
            needs={"holdout", "logits"},
            full=True,
        ),
        MetricSpec(
            "likeness_embedding",
            "cosine of embeddings of plays and tracks",
            "encore.metrics.similarity.music_similarity:EmbeddingSimilarity",
            needs={"holdout", "embedder"},
            full=True,
        ),
        MetricSpec(
            "likeness_fingerprint",
            "audio fingerprints of plays against the tracks'",
            "encore.metrics.similarity.music_similarity:FingerprintSimilarity",
            requires=("pyacoustid",),
            needs={"holdout"},
            full=True,
        ),
        MetricSpec(
            "fad_inf",
            "fad extrapolated to endless generations",
            "encore.metrics.utility.fad:FadInf",
            needs=played,
            full=True,
        ),
        MetricSpec(
            "fad_holdout",
            "fad on holdout captions",
            "encore.metrics.utility.fad:FadHoldout",
            needs=unheard,
            full=True,
            version=2,
        ),
        MetricSpec(
            "mmd_holdout", "mmd on holdout captions", "encore.metrics.utility.mmd:MmdHoldout", needs=unheard, full=True
        ),
        MetricSpec(
            "clap_score_holdout",
            "clap_score on holdout captions",
            "encore.metrics.utility.clap_score:ClapScoreHoldout",
            needs={"embedder", "holdout"},
            full=True,
        ),
        MetricSpec(
            "tag_kl_holdout",
            "tag_kl on holdout captions",
            "encore.metrics.utility.tag_kl:TagKlHoldout",
            needs=unheard,
            full=True,
        ),
        MetricSpec(
            "fad_track",
            "FAD of plays to the tracks themselves",
            "encore.metrics.utility.fad:FadTrack",
            needs=played,
            full=True,
            version=2,
        ),
        MetricSpec(
            "fad_track_forget",
            "fad_track on forget captions",
            "encore.metrics.utility.fad:FadTrackForget",
            needs={"embedder", "base"},
            full=True,
            version=2,
        ),
        MetricSpec(
            "clap_score_forget",
            "clap_score on forget captions",
            "encore.metrics.utility.clap_score:ClapScoreForget",
            needs={"embedder"},
            full=True,
        ),
        MetricSpec(
            "tag_kl_forget",
            "tag_kl on forget captions",
            "encore.metrics.utility.tag_kl:TagKlForget",
            needs={"embedder", "base"},
            full=True,
        ),
        MetricSpec(
            "fad",
            "Fréchet audio distance to base's generations",
            "encore.metrics.utility.fad:Fad",
            needs=played,
            full=True,
            version=2,
        ),
        MetricSpec(
            "mmd", "unbiased MMD to base's generations", "encore.metrics.utility.mmd:Mmd", needs=played, full=True
        ),
        MetricSpec(
            "clap_score",
            "cosine of generations and captions, by a CLAP",
            "encore.metrics.utility.clap_score:ClapScore",
            needs={"embedder", "retain"},
            full=True,
        ),
        MetricSpec(
            "tag_kl",
            "KL of tags heard, to base's generations",
            "encore.metrics.utility.tag_kl:TagKl",
            needs=played,
            full=True,
        ),
        MetricSpec(
            "sampling_noise",
            "how far base's generations of two seeds are apart",
            "encore.metrics.utility.sampling_noise:SamplingNoise",
            needs=played,
            full=True,
        ),
        MetricSpec(
            "relearn_fast",
            "forget NLL after a few steps at a higher rate",
            "encore.metrics.robustness.relearn:RelearnFast",
            full=True,
        ),
        MetricSpec(
            "relearn_one",
            "the other forget tracks' NLL after steps on one",
            "encore.metrics.robustness.relearn:RelearnOne",
            full=True,
        ),
        MetricSpec(
            "relearn_others",
            "forget NLL after a few steps on other tracks",
            "encore.metrics.robustness.relearn:RelearnOthers",
            full=True,
        ),
        MetricSpec(
            "relearn", "forget NLL after a few steps on the forget tracks", "encore.metrics.robustness.relearn:Relearn"
        ),
    ]


@hookimpl
def encore_register_embedders() -> list[EmbedderSpec]:
    return [
        EmbedderSpec("latents", "the latents of the model's own codec, pooled", "encore.embedders.latents:Latents"),
        EmbedderSpec(
            "clap-tiny", "the embedded CLAP, which hears the embedded models' music", "encore.embedders.clap:ClapTiny"
        ),
        EmbedderSpec("clap", "CLAP: sounds and texts; laion/clap-htsat-unfused", "encore.embedders.clap:Clap"),
        EmbedderSpec("ast", "AST: AudioSet's tags; MIT/ast-finetuned-audioset", "encore.embedders.ast:Ast"),
        EmbedderSpec("passt", "PaSST: the AudioSet tags of published KLs", "encore.embedders.passt:Passt"),
        EmbedderSpec("vggish", "VGGish, which FAD was first taken with", "encore.embedders.vggish:Vggish"),
    ]
