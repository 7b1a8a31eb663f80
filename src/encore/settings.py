"""Merge settings: defaults < TOML file < environment < command line.

A method's options are a pydantic model whose fields are the keys, so third-party methods need no change here. An
invalid value gives an error of one sentence, never a pydantic traceback.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from encore.errors import InputError, UsageError

if TYPE_CHECKING:
    from encore.options import Options

OptionsT = TypeVar("OptionsT", bound="Options")
Origin = Literal["default", "config", "env", "cli"]

ENV_PREFIX = "ENCORE_OPTION_"
MAX_CONFIG_BYTES = 1 << 20
ENVIRONMENT = {  # every variable of Encore; `encore config --env` shows them
    "ENCORE_CACHE": "the cache folder; default: encore in XDG_CACHE_HOME or ~/.cache",
    "ENCORE_DEBUG": "1 shows the traceback of every error",
    "ENCORE_OPTION_": "with the name of a method's option after it, sets that option: ENCORE_OPTION_LR=1e-4",
    "ENCORE_NATIVE": "0 disables the native extension: pure torch then computes everything",
    "ENCORE_CPU_ISA": "amx, avx512, avx2 or portable: instructions that the extension uses, instead of the best",
    "ENCORE_CUDA_KERNEL": "simt, sm80, sm90 or sm90-single: the CUDA kernel, for a comparison",
    "_ENCORE_COMPLETE": "set by the shell while it completes a command; don't set it yourself",
}
FEW = 12  # names that a hint lists in full


class Config(NamedTuple):
    """A `--config` file: `flags` are its top-level keys (as parameter names), `options` its table `[options]`."""

    flags: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}


class Settings(NamedTuple, Generic[OptionsT]):
    """Validated options, and the origin of every value by its key."""

    options: OptionsT
    origin: Mapping[str, Origin]


class OptionInfo(NamedTuple):
    """One option of a method, for a listing: `type` and `allowed` in words, `default` None where it is required."""

    name: str
    type: str
    default: Any
    required: bool
    allowed: str
    description: str


def cache_folder() -> Path:
    """Encore's cache folder: `ENCORE_CACHE`, else a folder in the user's cache folder."""
    path = os.environ.get("ENCORE_CACHE")
    folder = Path(path) if path else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "encore")
    return folder.expanduser()


def read_config(path: Path, flags: Collection[str]) -> Config:
    """Read a TOML file of settings.

    Args:
        path: the file. Its table `[options]` holds the method's options; a top-level key sets a flag.
        flags: parameter names allowed at the top level ("batch_size" also as `batch-size`).

    Raises:
        InputError: the file can't be read, or is not TOML.
        UsageError: a top-level key is not a flag, or `[options]` is not a table.
    """
    import tomllib

    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise InputError(f"the config file {str(path)!r} can't be read: {error.strerror}") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise InputError(f"the config file {str(path)!r} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        table = tomllib.loads(raw.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"the config file {str(path)!r} is not valid TOML: {error}") from error
    options = table.pop("options", {})
    if not isinstance(options, dict):
        raise UsageError(f"'options' in {str(path)!r} must be a table", "write [options], then key = value per line")
    values = {_key(name): value for name, value in table.items()}
    for name in values:
        if name not in flags:
            raise UsageError(
                f"the config file {str(path)!r} has the unknown key {name!r}",
                near_hint(name, flags, "the keys are") + " A method's options go under [options]",
            )
    return Config(values, {_key(name): value for name, value in options.items()})


def resolve_options(
    options: type[OptionsT],
    *,
    config: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> Settings[OptionsT]:
    """Merge and validate a method's options; later arguments take precedence.

    Args:
        options: the method's `Options`.
        config: `Config.options`.
        environ: searched for `ENCORE_OPTION_<KEY>`; default: the process environment.
        flags: values of flags that name an option ("lr", "steps"); None for flags not given.
        assignments: the arguments of `-o`: "key=value".

    Raises:
        UsageError: the method has no such option, the value is invalid, or a flag and `-o` give different values.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origin: dict[str, Origin] = dict.fromkeys(options.model_fields, "default")
    spelling: dict[str, str] = {}  # key -> where the user set it, in words

    def put(key: str, value: Any, source: Origin, written: str) -> None:
        if key not in options.model_fields:
            hint = near_hint(key, options.model_fields, "the options are")
            raise UsageError(f"there is no option {key!r} ({written})", hint)
        values[key], origin[key], spelling[key] = value, source, written

    for key, value in (config or {}).items():
        put(_key(key), value, "config", "in the config file")
    for variable, text in environ.items():
        if variable.startswith(ENV_PREFIX):
            put(variable.removeprefix(ENV_PREFIX).lower(), _parse(text), "env", f"from {variable}")
    for key, value in (flags or {}).items():
        if value is not None:
            put(_key(key), value, "cli", f"from --{key.replace('_', '-')}")
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"-o takes key=value, not {assignment!r}", "for example: -o lr=1e-4")
        put(_key(key), _parse(text.strip()), "cli", f"from -o {assignment}")
    settings = Settings(_validate(options, values, spelling), origin)
    typed = {_key(key): value for key, value in (flags or {}).items() if value is not None}
    replaced = {key: value for key, value in typed.items() if values[key] != value}
    by_flags = _validate(options, {**values, **replaced}, spelling) if replaced else settings.options
    for key, value in replaced.items():
        if getattr(by_flags, key) != getattr(settings.options, key):
            flag, other = f"--{key.replace('_', '-')} {value}", spelling[key].removeprefix("from ")
            raise UsageError(f"{flag} and {other} contradict each other", "give one of the two")
    return settings


def describe_options(options: type[Options]) -> list[OptionInfo]:
    """Every option with its type, default, limits and description, from the model's JSON schema."""
    schema = options.model_json_schema()
    required = schema.get("required", [])
    return [
        OptionInfo(
            name=name,
            type=_type(field_),
            default=field_.get("default"),
            required=name in required,
            allowed=_allowed(field_),
            description=field_.get("description", ""),
        )
        for name, field_ in schema.get("properties", {}).items()
    ]


# --------------------------------------------------------------------------------------------------------- helpers


def _key(text: str) -> str:
    return text.strip().replace("-", "_")


def _parse(text: str) -> Any:
    """Parse lists, tables and null as JSON; other values stay text, which pydantic parses by the field's type."""
    import json

    if text == "null" or text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _validate(options: type[OptionsT], values: Mapping[str, Any], spelling: Mapping[str, str]) -> OptionsT:
    from pydantic import ValidationError

    try:
        return options.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    sentences = [_sentence(fault, spelling) for fault in faults]
    keys = {str(fault["loc"][0]) for fault in faults if fault["loc"]}
    about = [f"{info.name}: {info.description}" for info in describe_options(options) if info.name in keys]
    raise UsageError("; ".join(sentences), "; ".join(text for text in about if not text.endswith(": ")))


def _sentence(fault: Mapping[str, Any], spelling: Mapping[str, str]) -> str:
    """One pydantic error as a sentence: which option, which value, what is allowed."""
    reason = str(fault["msg"]).removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if not fault["loc"]:
        return f"the options don't fit together: {reason}"
    key = str(fault["loc"][0])
    if fault["type"] == "missing":
        return f"the option {key!r} must be given"
    written = f" ({spelling[key]})" if key in spelling else ""
    return f"the option {key!r} can't be {fault['input']!r}{written}: {reason}"


def near_names(name: str, known: Collection[str], most: int = 4) -> list[str]:
    """Known names that may have been meant: those spelt similarly, or that contain the name or are contained in it."""
    parts = [other for other in known if name and (name in other or (other in name and len(other) > 2))]
    parts.sort(key=lambda other: (not other.startswith(name), len(other)))
    return list(dict.fromkeys([*difflib.get_close_matches(name, known, n=2), *parts]))[:most]


def near_hint(name: str, known: Collection[str], listing: str, elsewhere: str = "") -> str:
    """The hint for an unknown name: similar names, else all known names where they are few.

    Args:
        name: the unknown name.
        known: all names.
        listing: introduces the full list: "the keys are".
        elsewhere: where all names are listed; without it the hint always lists them.
    """
    near = near_names(name, known)
    if near:
        return f"did you mean {' or '.join(near)}?" + (f" {elsewhere}" if elsewhere else "")
    few = len(known) <= FEW or not elsewhere
    return f"{listing}: {', '.join(sorted(known)) or 'none'}" if few else elsewhere


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return "choice"
    return str(schema.get("type", "any"))


def _allowed(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(filter(None, map(_allowed, schema["anyOf"])))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return ", ".join(f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)
