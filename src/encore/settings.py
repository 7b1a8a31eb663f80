"""Where every setting comes from: defaults < TOML file < environment < command line.

A method's options are a pydantic model, so a third party's method needs no change here: its fields are the keys.
Whatever is wrong with a value is told in one sentence, never as a pydantic traceback.
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
ENVIRONMENT = {  # every variable that Encore reads of its own; `encore config --env` shows them
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
    """Where Encore keeps what it can compute again: `ENCORE_CACHE`, else the user's cache folder."""
    given = os.environ.get("ENCORE_CACHE")
    folder = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "encore")
    return folder.expanduser()


def read_config(path: Path, flags: Collection[str]) -> Config:
    """Read a TOML file of settings.

    Args:
        path: the file. Its table `[options]` holds the method's options; a top-level key mirrors a flag.
        flags: parameter names that may stand at the top level ("batch_size" also as `batch-size`).

    Raises:
        InputError: the file can't be read, or is not TOML.
        UsageError: a top-level key is no flag, or `[options]` is no table.
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
        raise UsageError(f"'options' in {str(path)!r} must be a table", "write [options], then one key = value a line")
    given = {_key(name): value for name, value in table.items()}
    for name in given:
        if name not in flags:
            raise UsageError(
                f"the config file {str(path)!r} has the unknown key {name!r}",
                near_hint(name, flags, "the keys are") + " A method's own options go under [options]",
            )
    return Config(given, {_key(name): value for name, value in options.items()})


def resolve_options(
    options: type[OptionsT],
    *,
    config: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> Settings[OptionsT]:
    """Merge a method's options, the later beating the earlier, and validate them.

    Args:
        options: the method's `Options`.
        config: `Config.options`.
        environ: where `ENCORE_OPTION_<KEY>` is looked up; default: the process environment.
        flags: values of flags that name an option ("lr", "steps"); None means that the flag was not given.
        assignments: what followed each `-o`: "key=value".

    Raises:
        UsageError: a key that the method does not have, or a value that it does not take.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origin: dict[str, Origin] = dict.fromkeys(options.model_fields, "default")
    spelling: dict[str, str] = {}  # key -> what the user wrote it as

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
    return Settings(_validate(options, values, spelling), origin)


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
    """Lists, tables and null are JSON; numbers and flags stay text, which pydantic reads by the field's type."""
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
        found = error.errors(include_url=False)
    told = [_sentence(fault, spelling) for fault in found]
    keys = {str(fault["loc"][0]) for fault in found if fault["loc"]}
    about = [f"{info.name}: {info.description}" for info in describe_options(options) if info.name in keys]
    raise UsageError("; ".join(told), "; ".join(text for text in about if not text.endswith(": ")))


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
    """Of the names there are, those that may have been meant: written alike, or with the name as a part of theirs."""
    parts = [other for other in known if name and (name in other or (other in name and len(other) > 2))]
    parts.sort(key=lambda other: (not other.startswith(name), len(other)))
    return list(dict.fromkeys([*difflib.get_close_matches(name, known, n=2), *parts]))[:most]


def near_hint(name: str, known: Collection[str], listing: str, elsewhere: str = "") -> str:
    """What to do about a name that there is none of: near names, else all of them where they are few.

    Args:
        name: as it was written.
        known: the names there are.
        listing: what comes before all of them: "the keys are".
        elsewhere: where they are all listed; without it they always are, in the hint.
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
