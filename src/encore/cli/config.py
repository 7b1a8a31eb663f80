"""`--config FILE`, where the value of every flag came from, and flags that commands share.

The file's top-level keys become the command's default map, so that typer itself lets the environment and the command
line beat them and converts them like typed text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encore.settings import Config, Origin, Settings, read_config, resolve_options

if TYPE_CHECKING:
    from encore.settings import OptionsT

META = "encore.config"
# NumPy's global generator takes 32 bits. torch's take 64, which a seed of 32 times a million, plus a row, still fits.
MAX_SEED = 2**32 - 1
ORIGINS: dict[str, Origin] = {"COMMANDLINE": "cli", "ENVIRONMENT": "env", "DEFAULT_MAP": "config", "PROMPT": "cli"}


def _read(context: typer.Context, path: Path | None) -> Path | None:
    if path is None or context.resilient_parsing:
        return path
    names = {str(parameter.name) for parameter in context.command.params} - {"config", "option"}
    config = read_config(path, names)
    context.default_map = dict(config.flags)
    context.meta[META] = config
    return path


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=_read,
        help="TOML file: top-level keys are flags, table [options] those of -o.",
    ),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option("-o", "--option", metavar="KEY=VALUE", help="Option of the method or training; repeat for more."),
]
# Flags that commands share.
Model = Annotated[str, typer.Option(help="`tiny` (embedded), a run or model folder, or a hub name.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use downloaded files only; no network.")]
Family = Annotated[
    str | None, typer.Option(help="Model family, see `encore backends`; default: the run's, else musicgen.")
]
Catalog = Annotated[
    Path | None, typer.Option(help="Catalogue that id:, isrc:, sha256:, artist: lines are looked up in.")
]
Roots = Annotated[list[Path] | None, typer.Option(help="Further folder that listed files may be in; repeat for more.")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Continue without lines that match nothing.")]
MaxSeconds = Annotated[float | None, typer.Option(help="Seconds of training at most.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Precision = Annotated[str, typer.Option(help="auto, fp32 or bf16.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Random seed.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run begun in --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CheckpointActivations = Annotated[
    str, typer.Option(help="Recompute activations in the backward pass: auto, on or off; slower, less memory.")
]
AdapterKind = Annotated[
    str | None, typer.Option(help="Train an adapter, merged when the run ends: lora; default: all weights.")
]
LoraRank = Annotated[int | None, typer.Option(min=1, help="Rank of the adapter; default: 16.")]
LoraAlpha = Annotated[float | None, typer.Option(help="Scale of the adapter, divided by its rank; default: 32.")]
LoraLayers = Annotated[
    str | None,
    typer.Option(help="Layers that get an adapter: attention, mlp, all (both), or a regular expression; default: all."),
]
KeepAdapter = Annotated[bool, typer.Option("--keep-adapter", help="Also write the adapter, in peft's format.")]
Weights = Annotated[
    str,
    typer.Option(
        help="Type of the weights during the run: fp32, or bf16, which saves memory; updates stay exact to float32."
    ),
]
OptimizerStates = Annotated[str, typer.Option(help="Type of the moments of AdamW: fp32, or 8bit by bitsandbytes.")]
Fsdp = Annotated[
    bool, typer.Option("--fsdp", help="Split weights and optimiser state over torchrun's processes (FSDP2).")
]


def listed(given: str) -> list[str]:
    """Names with commas between, each once, in their order."""
    return list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))


def origins(context: typer.Context) -> dict[str, Origin]:
    """The origin of every parameter of the running command."""
    sources: dict[str, Origin] = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        sources[str(parameter.name)] = ORIGINS.get(source.name if source else "", "default")
    return sources


def method_settings(
    context: typer.Context, options: type[OptionsT], assignments: Sequence[str] | None, flags: Collection[str] = ()
) -> Settings[OptionsT]:
    """A method's options from the config file, the environment, some flags, and `-o`.

    Args:
        context: the running command's.
        options: the method's `Options`.
        assignments: what followed each `-o`.
        flags: parameters of the command that name an option of the same name ("lr", "steps"), None by default.

    Raises:
        UsageError: as `encore.settings.resolve_options`.
    """
    config: Config = context.meta.get(META, Config())
    origin = origins(context)
    low = {name: context.params[name] for name in flags if origin[name] == "config"}  # the environment beats these
    high = {name: context.params[name] for name in flags if origin[name] in ("cli", "env")}
    return resolve_options(options, config={**low, **config.options}, flags=high, assignments=assignments or ())
