"""Encore's built-in plugin, registered through the same entry point and hooks as third-party plugins."""

from __future__ import annotations

from encore.api import BackendSpec, EmbedderSpec, MethodSpec, MetricSpec, hookimpl
from encore.builtin_metrics import METRICS


def _method(name: str, summary: str, target: str, needs: str = "") -> MethodSpec:
    return MethodSpec(name, summary, f"encore.methods.{target}", needs=frozenset(needs.split()))


@hookimpl
def encore_register_methods() -> list[MethodSpec]:
    return [
        _method("ga", "gradient ascent on the forget tracks (No Encore)", "ga:GradientAscent"),
        _method("rl", "random labels on forget, plus retain (No Encore)", "rl:RandomLabels", "retain"),
        _method("ft", "fine-tune on retain only", "ft:FineTune", "retain"),
        _method("graddiff", "ascent on forget, descent on retain", "graddiff:GradDiff", "retain"),
        _method("ga-kl", "ascent on forget, KL to base on retain", "ga_kl:GaKl", "retain reference logits"),
        _method("npo", "negative preference optimisation", "npo:Npo", "retain reference_nll"),
        _method("simnpo", "NPO without a reference model", "simnpo:SimNpo", "retain"),
        _method("wga", "ascent weighted by each token's probability", "wga:Wga", "retain logits"),
        _method("satimp", "ascent on tokens neither forgotten nor certain", "satimp:SatImp", "retain logits"),
        _method("ceu", "toward its own predictions without the true code", "ceu:Ceu", "retain logits"),
        _method("unilogit", "toward its own predictions, the true code at 1/V", "unilogit:Unilogit", "retain logits"),
        _method(
            "undial",
            "toward base's predictions, the true code's logit lowered",
            "undial:Undial",
            "retain reference logits",
        ),
        _method(
            "jensun",
            "Jensen-Shannon to uniform on forget, to base on retain",
            "jensun:JensUn",
            "retain reference logits",
        ),
        _method(
            "bad-teacher",
            "KL to an untrained model on forget, to base on retain",
            "bad_teacher:BadTeacher",
            "retain reference logits",
        ),
        _method(
            "altpo",
            "prefer the model's own generation to the track",
            "altpo:AltPo",
            "retain reference_nll logits",
        ),
        _method("task-vector", "subtract what fine-tuning on forget adds", "task_vector:TaskVector"),
        _method("salun", "rl on the weights with forget's largest gradients", "salun:SalUn", "retain"),
        _method("ssd", "dampen weights that matter more to forget than to all", "ssd:Ssd", "retain fisher"),
        _method(
            "fisher-noise", "noise on weights that matter little to retain", "fisher_noise:FisherNoise", "retain fisher"
        ),
        _method("ewc", "ascent with an EWC penalty from retain's Fisher", "ewc:Ewc", "retain fisher"),
        _method("newton", "gradient-ascent step divided by retain's Fisher", "newton:Newton", "retain fisher"),
        _method("pdu", "flat logits on forget, retain's NLL within a budget", "pdu:Pdu", "retain logits"),
        _method("rmu", "hidden states of forget toward a random direction", "rmu:Rmu", "retain reference hidden"),
        _method(
            "scrub", "KL to base up on forget and down on retain, in turns", "scrub:Scrub", "retain reference logits"
        ),
        _method(
            "undo", "unlearn by another method, then distil into a noised copy", "undo:Undo", "retain reference logits"
        ),
        _method("retrain", "train from scratch on retain: the reference for all others", "retrain:Retrain", "retain"),
        _method(
            "encore",
            "forget toward the model's predictions for held-out music",
            "encore:Encore",
            "retain reference logits",
        ),
        _method(
            "encore-diffusion",
            "diffusion models: toward predictions for other captions",
            "encore_diffusion:EncoreDiffusion",
            "retain predictions",
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
