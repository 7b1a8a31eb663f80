"""Encore's built-in plugin, registered through the same entry point and hooks as third-party plugins."""

from __future__ import annotations

from encore.api import BackendSpec, EmbedderSpec, MethodSpec, MetricSpec, hookimpl
from encore.builtin_metrics import METRICS


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
        MethodSpec(
            "npo",
            "negative preference optimisation",
            "encore.methods.npo:Npo",
            needs=retain | {"reference_nll"},
        ),
        MethodSpec("simnpo", "NPO without a reference model", "encore.methods.simnpo:SimNpo", needs=retain),
        MethodSpec(
            "wga", "ascent weighted by each token's probability", "encore.methods.wga:Wga", needs=retain | logits
        ),
        MethodSpec(
            "satimp",
            "ascent on tokens neither forgotten nor certain",
            "encore.methods.satimp:SatImp",
            needs=retain | logits,
        ),
        MethodSpec(
            "ceu",
            "toward its own predictions without the true code",
            "encore.methods.ceu:Ceu",
            needs=retain | logits,
        ),
        MethodSpec(
            "unilogit",
            "toward its own predictions, the true code uniform",
            "encore.methods.unilogit:Unilogit",
            needs=retain | logits,
        ),
        MethodSpec(
            "undial",
            "toward base's predictions, the true code's logit lowered",
            "encore.methods.undial:Undial",
            needs=reference | logits,
        ),
        MethodSpec(
            "jensun",
            "Jensen-Shannon to uniform on forget, to base on retain",
            "encore.methods.jensun:JensUn",
            needs=reference | logits,
        ),
        MethodSpec(
            "bad-teacher",
            "KL to an untrained model on forget, to base on retain",
            "encore.methods.bad_teacher:BadTeacher",
            needs=reference | logits,
        ),
        MethodSpec(
            "altpo",
            "prefers the model's own other generation to the track",
            "encore.methods.altpo:AltPo",
            needs=retain | logits | {"reference_nll"},
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
            "pdu",
            "flat logits on forget, retain's NLL within a budget",
            "encore.methods.pdu:Pdu",
            needs=retain | logits,
        ),
        MethodSpec(
            "rmu",
            "hidden states of forget toward a random direction",
            "encore.methods.rmu:Rmu",
            needs=reference | {"hidden"},
        ),
        MethodSpec(
            "scrub",
            "KL to base up on forget and down on retain, in turns",
            "encore.methods.scrub:Scrub",
            needs=reference | logits,
        ),
        MethodSpec(
            "undo",
            "unlearn by another method, then distil into a noised copy",
            "encore.methods.undo:Undo",
            needs=reference | logits,
        ),
        MethodSpec(
            "retrain",
            "train from scratch on retain: the reference for all others",
            "encore.methods.retrain:Retrain",
            needs=retain,
        ),
        MethodSpec(
            "encore",
            "forget toward the model's predictions for held-out music",
            "encore.methods.encore:Encore",
            needs=reference | logits,
        ),
        MethodSpec(
            "encore-diffusion",
            "without tokens: toward predictions for other captions",
            "encore.methods.encore_diffusion:EncoreDiffusion",
            needs=retain | {"predictions"},
        ),
    ]


@hookimpl
def encore_register_backends() -> list[BackendSpec]:
    return [BackendSpec("musicgen", "MusicGen through transformers", "encore.backends.musicgen:MusicgenBackend")]


@hookimpl
def encore_register_metrics() -> list[MetricSpec]:
    return list(METRICS)


@hookimpl
def encore_register_embedders() -> list[EmbedderSpec]:
    return [
        EmbedderSpec("latents", "the pooled latents of the model's codec", "encore.embedders.latents:Latents"),
        EmbedderSpec(
            "clap-tiny", "the embedded CLAP, for the embedded models' music", "encore.embedders.clap:ClapTiny"
        ),
        EmbedderSpec("clap", "CLAP: audio and text; laion/clap-htsat-unfused", "encore.embedders.clap:Clap"),
        EmbedderSpec("ast", "AST: AudioSet's tags; MIT/ast-finetuned-audioset", "encore.embedders.ast:Ast"),
        EmbedderSpec("passt", "PaSST: the AudioSet tags of published KLs", "encore.embedders.passt:Passt"),
        EmbedderSpec("vggish", "VGGish, the embedder of the original FAD", "encore.embedders.vggish:Vggish"),
    ]
