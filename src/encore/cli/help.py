"""How every command's help looks: flags in panels, plain names for values, the choices there are, and examples.

One table for all commands, since a flag of one name means the same in each. The text itself stands with each command.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
import typer.core

from encore.cli import complete, console

PANELS = {  # title -> parameters, in this order
    "Tracks": (
        "tracks", "without", "forget_sizes", "listed_as", "catalog", "retain", "holdout", "root", "allow_missing",
        "skip_unreadable", "drop_duplicates",
    ),
    "Model": ("model", "from_scratch", "backend", "revision", "base", "gold", "gold2", "offline"),
    "Method": (
        "method", "methods", "preset", "option", "config", "epochs", "steps", "max_seconds", "lr", "batch_size",
        "per_track_clip", "optim", "retain_budget", "robust_to", "adapter", "lora_rank", "lora_alpha", "lora_layers",
        "keep_adapter",
    ),
    "Measuring": ("metrics", "full", "embedder", "samples_per_caption", "force", "no_cache"),
    "Run": (
        "out", "overwrite", "seed", "seeds", "sequential", "device", "precision", "weights", "optimizer_states",
        "checkpoint_activations", "fsdp", "jobs", "workers", "launcher", "resource", "trial", "meta", "resume",
        "calibrate", "tracker", "dry_run", "requester", "requested", "fail_on_found",
    ),
    "Output": ("json", "quiet", "verbose", "help"),
}  # fmt: skip
FEW = 8  # options that need no panels
VALUES = {  # parameter -> what its value is called; of others the type says it
    **dict.fromkeys(("tracks", "retain", "holdout"), "LIST"),
    **dict.fromkeys(("model", "base", "gold", "gold2"), "MODEL"),
    **dict.fromkeys(("methods", "metrics", "embedder"), "NAMES"), **dict.fromkeys(("method", "backend"), "NAME"),
    "kind": "method|backend|metric|embedder",
    "launcher": "local|ray|slurm", "tracker": "tensorboard|wandb",
    "tolerance": "exact|machine|chance", "root": "FOLDER",
    "device": "DEVICE", "catalog": "FILE", "precision": "auto|fp32|bf16", "checkpoint_activations": "auto|on|off",
    "weights": "fp32|bf16", "optimizer_states": "fp32|8bit",
    "adapter": "lora", "lora_layers": "LAYERS", "revision": "REVISION",
}  # fmt: skip
TYPES = {int: "N", float: "NUMBER", Path: "PATH", str: "TEXT"}
CHOICES: dict[str, Callable[[str], list[tuple[str, str]]]] = {
    "method": complete.methods, "backend": complete.backends, "embedder": complete.embedders,
    "clear": complete.cache_kinds,
}  # fmt: skip
COMPLETED = {  # parameter, or listing command, -> what its value is completed with
    **CHOICES, "device": complete.devices, "metrics": complete.listed(complete.metrics),
    "methods": complete.listed(complete.methods), "backends": complete.backends,
    "embedders": complete.embedders, "embedder": complete.listed(complete.embedders),
}  # fmt: skip
EXAMPLES = {
    "encore": ("encore forget --tracks forget.txt --out runs/a", "encore eval runs/a", "encore open runs/a"),
    "forget": (
        "encore forget --tracks forget.txt --out runs/a",
        "encore forget --tracks forget.txt --out runs/b --method npo -o beta=0.5",
        "encore forget --tracks mine.txt --catalog music/metadata.jsonl --model ./my-musicgen --dry-run",
    ),
    "eval": (
        "encore eval runs/a",
        "encore eval runs/a --metrics nll,verbatim --json",
        "encore eval --model ./unlearned --tracks forget.txt --base ./my-musicgen",
    ),
    "check": (
        "encore check --tracks forget.txt",
        "encore check --tracks my-music --model facebook/musicgen-small --holdout other-music",
        "encore check --tracks release.txt --model runs/a --gold models/gold --fail-on-found",
    ),
    "train": (
        "encore train --model facebook/musicgen-small --tracks mine.txt --out models/base",
        "encore train --model facebook/musicgen-small --tracks mine.txt --without forget.txt --out models/gold",
        "encore train --tracks mine.txt --from-scratch --epochs 100 --seed 1 --out models/base",
    ),
    "bench": (
        "encore bench --methods encore,npo --seeds 3 --out runs/bench",
        "encore bench --methods npo,npo@long -o npo@long.steps=120",
        "encore bench --methods encore --forget-sizes 1,3,8 --list mine=mine.txt --gold mine=models/gold",
        "encore bench --preset finetuned --model facebook/musicgen-small --tracks forget.txt --retain keep.txt",
        "encore bench --meta --out runs/bench",
    ),
    "report": ("encore report runs/a", "encore report runs/a --embed-audio --out for-me.html"),
    "bundle": ("encore bundle runs/a", "encore bundle runs/a --sign key.pem"),
    "verify": ("encore verify runs/a.evidence.zip", "encore verify runs/a.evidence.zip --json"),
    "encode": (
        "encore encode --catalog music/metadata.jsonl --model ./my-musicgen --out tokens",
        "encore forget --tracks forget.txt --catalog tokens --model ./my-musicgen",
    ),
    "generate": (
        'encore generate "slow church organ"',
        "encore generate --model runs/a --captions captions.txt --out generated",
    ),
    "attribute": (
        "encore attribute generated/000.wav",
        "encore attribute clip.wav --catalog music/metadata.jsonl --top 3",
    ),
    "methods": ("encore methods", "encore methods npo"),
    "backends": ("encore backends", "encore backends musicgen"),
    "metrics": ("encore metrics", "encore metrics kl_gold", "encore metrics nll --bench runs/bench"),
    "embedders": ("encore embedders", "encore embedders latents --json"),
    "runs": ("encore runs", "encore runs runs/bench --json"),
    "compare": ("encore compare runs/a runs/b", "encore compare runs/a runs/b --json"),
    "open": ("encore open runs/a", "encore open runs/a --print"),
    "cache": ("encore cache", "encore cache --max-size 5GB", "encore cache --clear evaluations --older 30"),
    "config": ("encore config > encore.toml", "encore config --method npo", "encore config --env"),
    "plugins": ("encore plugins", "encore plugins new mine", "encore plugins check mine"),
    "doctor": ("encore doctor", "encore doctor --json"),
    "plugins check": ("encore plugins check npo", "encore plugins check --distribution encore-mine"),
    "plugins new": ("encore plugins new mine",),
}  # fmt: skip


class _Examples:
    """Ends the help with the examples, as they are typed."""

    name: str | None

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        super().format_epilog(ctx, formatter)  # type: ignore[misc]
        examples = EXAMPLES.get(" ".join(str(ctx.command_path).split()[1:]) or "encore", ())
        if examples:
            formatter.write(f"\n{'Example' if len(examples) == 1 else 'Examples'}:\n")
            formatter.write("".join(f"  {line}\n" for line in examples))


class Group(_Examples, typer.core.TyperGroup):
    """A group of commands, with examples."""


class Command(_Examples, typer.core.TyperCommand):
    """A command with help of this kind."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options by panel; what is in no panel comes first."""
        shown = {str(param.name): param for param in self.get_params(ctx) if not getattr(param, "hidden", False)}
        arguments = [param for param in shown.values() if param.param_type_name == "argument"]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([_record(param, ctx) for param in arguments])
        options = {name: param for name, param in shown.items() if param.param_type_name == "option"}
        panels = PANELS if len(options) > FEW else {}
        placed = {name for names in panels.values() for name in names}
        sections = {"Options": [name for name in options if name not in placed], **panels}
        for title, names in sections.items():
            records = [_record(options[name], ctx) for name in names if name in options]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _record(param: Any, ctx: Any) -> tuple[str, str]:
    """Names and value of a parameter, and its help, with the choices there are."""
    name = str(param.name)
    _, text = param.get_help_record(ctx) or ("", "")
    text = text.replace("x>=", "at least ").replace("<=x<=", " to ")
    names = sorted(param.opts, key=len) if param.param_type_name == "option" else [param.metavar or name]
    value = param.metavar or VALUES.get(name) or _type(param)
    if getattr(param, "is_flag", False) or getattr(param, "count", False) or param.param_type_name == "argument":
        value = ""
    if name in CHOICES:
        text += f"  One of: {', '.join(choice for choice, _ in CHOICES[name](''))}."
    return " ".join(filter(None, (", ".join(names), value))), text


def _type(param: Any) -> str:
    kind = param.type_descriptor.annotation
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
    return TYPES.get(kind, "VALUE")


def dressed(function: Any) -> Any:
    """A command with -q and -v beside its own flags, and with completion of the names it takes.

    An application of several commands is returned as it is: it dresses its own.
    """
    if isinstance(function, typer.Typer):
        return function

    @functools.wraps(function)
    def command(*, quiet: bool, verbose: bool, **given: Any) -> None:
        if quiet or verbose:  # else those of the group that it is in
            console.set_verbosity(quiet=quiet, verbose=verbose)
        function(**given)

    signature = inspect.signature(function, eval_str=True)
    flags = inspect.signature(_flags, eval_str=True).parameters.values()
    parameters = [_completed(function.__name__, parameter) for parameter in (*signature.parameters.values(), *flags)]
    setattr(command, "__signature__", signature.replace(parameters=parameters))  # noqa: B010  (unknown to mypy)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__  # type: ignore[attr-defined]  # to whoever looks, this is the command, with all its flags
    return command


def _completed(command: str, parameter: inspect.Parameter) -> inspect.Parameter:
    completion = COMPLETED.get(command if parameter.name == "name" else parameter.name)
    if completion is None or get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, info = get_args(parameter.annotation)
    info = copy.copy(info)
    info.autocompletion = completion
    return parameter.replace(annotation=Annotated[kind, info])


def _flags(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print results, warnings and errors only.")] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Print every step, and tracebacks of errors.")
    ] = False,
) -> None:
    """The flags that every command has."""
