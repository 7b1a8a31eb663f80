"""The plugin manager, and one lazy registry for each kind of object that plugins register.

Entry points are loaded and hooks called plugin by plugin, so that a broken plugin affects only itself: its faults are
recorded as `Problem`s. Listing imports the plugins, never their targets.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import pluggy

from encore import api, hookspecs
from encore.entrypoints import EntryPoint, entry_points
from encore.errors import Interrupted, MissingExtraError, PluginError, UnknownNameError, one_line

GROUP = "encore"
OWN = "encore-music"

SpecT = TypeVar("SpecT", bound=api.Spec)
ObjectT = TypeVar("ObjectT")


class Broken(Exception):
    """Third-party code raised `error`; the text is that error in one line."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(one_line(error))
        self.error = error


def third_party(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call third-party code.

    Raises:
        Broken: it raised anything, also `SystemExit` or `KeyboardInterrupt`: a plugin must not end the process.
    """
    try:
        return function(*arguments)
    except BaseException as error:
        if is_interruption(error):
            raise
        raise Broken(error) from error


def is_interruption(error: BaseException) -> bool:
    """Whether an exception comes from a signal that stops the process, and so must not be caught."""
    if isinstance(error, KeyboardInterrupt):  # the command line has a handler that raises Interrupted instead
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, Interrupted)


class Problem(NamedTuple):
    """A fault of a plugin.

    Args:
        source: the plugin.
        where: "import", a hook's name, or the name of a registered object.
        message: one sentence.
        error: the exception that caused it, if any.
    """

    source: EntryPoint
    where: str
    message: str
    error: BaseException | None = None

    def __str__(self) -> str:
        return f"plugin {self.source.name!r} of {self.source}, {self.where}: {self.message}"


class Entry(NamedTuple, Generic[SpecT]):
    """A spec and the plugin it came from."""

    spec: SpecT
    source: EntryPoint

    def missing(self) -> list[str]:
        """The required distributions that are not installed."""
        return [name for name in self.spec.requires if not _installed(name)]


class Plugins:
    """All plugins that could be loaded, and the problems of the others.

    Args:
        points: the entry points to load; default: all of the group `encore`.

    Attributes:
        points: Encore's first, then the others.
        problems: every fault found so far.
    """

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        points = entry_points(GROUP) if points is None else points
        self.points = sorted(points, key=lambda point: (point.distribution != OWN, point))
        self.problems: list[Problem] = []
        self._listeners: list[Callable[[Problem], None]] = []
        self._sources: dict[str, EntryPoint] = {}  # pluggy's plugin name -> where it came from
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        for point in self.points:
            self._load(point)

    # ------------------------------------------------------------------------------------------------- problems

    def report(self, source: EntryPoint, where: str, message: str, error: BaseException | None = None) -> None:
        """Record a problem once, and pass it to the listeners."""
        problem = Problem(source, where, message, error)
        if problem[:3] not in [known[:3] for known in self.problems]:
            self.problems.append(problem)
            for listener in self._listeners:
                listener(problem)

    def listen(self, listener: Callable[[Problem], None]) -> None:
        """Call `listener` with every problem, recorded or future."""
        for problem in self.problems:
            listener(problem)
        self._listeners.append(listener)

    # -------------------------------------------------------------------------------------------------- loading

    def _load(self, point: EntryPoint) -> None:
        name = f"{point.distribution}:{point.name}"  # two distributions may give their plugin the same name
        self._sources[name] = point
        try:
            plugin = third_party(_import, point.module, point.attribute)
        except Broken as broken:
            self.report(point, "import", f"it could not be imported: {broken}", broken.error)
            return
        try:
            third_party(self._register, plugin, point, name)
        except Broken as broken:
            self.report(point, "import", f"it could not be registered: {broken}", broken.error)

    def _register(self, plugin: Any, point: EntryPoint, name: str) -> None:
        self._check_hook_names(plugin, point)
        self._manager.register(plugin, name=name)

    def _check_hook_names(self, plugin: Any, point: EntryPoint) -> None:
        known = hook_names()
        for name in [name for name in dir(plugin) if name.startswith("encore_") and callable(getattr(plugin, name))]:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                self.report(point, name, "there is no such hook" + (f", did you mean {near[0]}?" if near else ""))
            elif not hasattr(getattr(plugin, name), "encore_impl"):
                self.report(point, name, "it is not marked with @encore.hookimpl, so it is never called")

    # -------------------------------------------------------------------------------------------------- calling

    def hooks(self, source: EntryPoint) -> list[str]:
        """The hooks that a plugin implements."""
        return [name for name in hook_names() for impl in self._implementations(name) if impl[0] == source]

    def _implementations(self, hook: str) -> list[tuple[EntryPoint, Callable[..., Any], tuple[str, ...]]]:
        """(plugin, function, its argument names) in the order of loading."""
        impls = getattr(self._manager.hook, hook).get_hookimpls()
        return [(self._sources[impl.plugin_name], impl.function, impl.argnames) for impl in impls]

    def call(self, hook: str, arguments: Callable[[], dict[str, Any]] = dict) -> Iterator[tuple[EntryPoint, Any, Any]]:
        """Call one hook, plugin by plugin; yields (plugin, its arguments, its result) for those that did not raise.

        Args:
            hook: a name from `encore.hookspecs`.
            arguments: creates the arguments, separately for each plugin.
        """
        for source, function, names in self._implementations(hook):
            values = arguments()
            try:
                result = third_party(function, *(values[name] for name in names))
            except Broken as broken:
                self.report(source, hook, f"it raised {broken}", broken.error)
                continue
            yield source, values, result

    def specs(self, hook: str, spec_class: type[SpecT]) -> list[Entry[SpecT]]:
        """The specs that all plugins returned from a registering hook; invalid ones are reported and left out."""
        entries: list[Entry[SpecT]] = []
        expected = spec_class.__name__
        for source, _, result in self.call(hook):
            try:
                specs = third_party(list, result)
            except Broken as broken:
                self.report(source, hook, f"it must return a list of {expected}: {broken}", broken.error)
                continue
            for spec in specs:
                if not issubclass(type(spec), spec_class):
                    self.report(source, hook, f"it returned a {type(spec).__name__} in place of a {expected}")
                elif fault := api.Spec.fault(spec):  # not a method that the plugin may override
                    self.report(source, hook, f"it registered a {spec.kind} whose {fault}")
                else:
                    entries.append(Entry(spec, source))
        return entries


# -------------------------------------------------------------------------------------------------------- registry


class Registry(Generic[SpecT, ObjectT]):
    """All registered objects of one kind, by name.

    A name that two plugins register can't be used: listing shows both, using it raises.
    """

    def __init__(self, plugins: Plugins, hook: str, spec_class: type[SpecT], base: type[Any]) -> None:
        self.kind = spec_class.kind
        self.base = base
        self._by_name: dict[str, list[Entry[SpecT]]] = {}
        for entry in plugins.specs(hook, spec_class):
            self._by_name.setdefault(entry.spec.name, []).append(entry)
        for name, entries in self._by_name.items():
            for entry in entries[1:]:
                plugins.report(entry.source, name, self._clash(name))

    def __iter__(self) -> Iterator[Entry[SpecT]]:
        """All entries, also those that share a name, in the order of registration."""
        return (entry for entries in self._by_name.values() for entry in entries)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def names(self) -> list[str]:
        """All names, in the order of registration."""
        return list(self._by_name)

    def get(self, name: str) -> Entry[SpecT]:
        """The entry of a name, without importing its target.

        Raises:
            UnknownNameError: no plugin registers the name.
            PluginError: more than one does.
        """
        entries = self._by_name.get(name)
        if not entries:
            from encore.settings import near_hint

            every = f"`encore {self.kind}s` lists all {len(self.names)}"
            hint = near_hint(name, self.names, f"the {self.kind}s are", every)
            raise UnknownNameError(f"there is no {self.kind} {name!r}", hint)
        if len(entries) > 1:
            raise PluginError(self._clash(name), "uninstall one of them")
        return entries[0]

    def resolve(self, name: str) -> type[ObjectT]:
        """Import the class of a name, check its contract, and set its `spec`.

        Raises:
            UnknownNameError: as in `get`.
            PluginError: as in `get`; or the target can't be imported, or breaks its contract.
            MissingExtraError: required packages are not installed.
        """
        entry = self.get(name)
        missing = entry.missing()
        if missing:
            needed = " and ".join(missing)
            verb = "is" if len(missing) == 1 else "are"
            raise MissingExtraError(
                f"the {self.kind} {name!r} needs {needed}, which {verb} not installed",
                entry.spec.install or f"pip install {' '.join(missing)}",
            )
        try:
            target = third_party(_import_target, entry.spec.target)
        except Broken as broken:
            raise self._broken(entry, f"can't be imported: {broken}") from broken.error
        fault = self._contract(target)
        if fault:
            raise self._broken(entry, fault)
        if target.__dict__.get("spec", entry.spec) != entry.spec:  # two names of one class: each gets a subclass
            target = type(target.__name__, (target,), {"__module__": target.__module__, "__doc__": target.__doc__})
        target.spec = entry.spec
        return target  # type: ignore[no-any-return]

    def _contract(self, target: Any) -> str:
        """Why a target breaks its contract; empty where it does not."""
        base = self.base.__name__
        if not (isinstance(target, type) and issubclass(target, self.base)):
            return f"is not a subclass of encore.api.{base}"
        if inspect.isabstract(target):
            return f"does not implement {', '.join(sorted(_abstract(target)))} of encore.api.{base}"
        return _method_contract(target) if issubclass(target, api.Method) else ""

    def _broken(self, entry: Entry[SpecT], fault: str) -> PluginError:
        spec = entry.spec
        return PluginError(
            f"the {self.kind} {spec.name!r} of {entry.source} is broken: its target {spec.target!r} {fault}",
            "report it to the plugin's authors, or uninstall the plugin",
        )

    def _clash(self, name: str) -> str:
        sources = " and ".join(str(entry.source) for entry in self._by_name[name])
        return f"more than one plugin registers the {self.kind} {name!r}: {sources}"


def _abstract(target: Any) -> frozenset[str]:
    return frozenset(target.__abstractmethods__)


def _method_contract(target: type[api.Method]) -> str:
    from encore.options import Options, TrainOptions

    if not issubclass(target, (api.LossMethod, api.EditMethod)):
        return "derives from encore.api.Method itself, not from LossMethod or EditMethod"
    options = getattr(target, "Options", None)
    needed = TrainOptions if issubclass(target, api.LossMethod) else Options
    if not (isinstance(options, type) and issubclass(options, needed)):
        return f"has no class Options that derives from encore.options.{needed.__name__}"
    return ""


# ------------------------------------------------------------------------------------------------ loaded plugins


@functools.cache
def manager() -> Plugins:
    """The plugins of this process, loaded once."""
    return Plugins()


@functools.cache
def methods() -> Registry[api.MethodSpec, api.Method]:
    return Registry(manager(), "encore_register_methods", api.MethodSpec, api.Method)


@functools.cache
def backends() -> Registry[api.BackendSpec, api.Backend]:
    return Registry(manager(), "encore_register_backends", api.BackendSpec, api.Backend)


@functools.cache
def metrics() -> Registry[api.MetricSpec, api.Metric]:
    return Registry(manager(), "encore_register_metrics", api.MetricSpec, api.Metric)


@functools.cache
def embedders() -> Registry[api.EmbedderSpec, api.Embedder]:
    return Registry(manager(), "encore_register_embedders", api.EmbedderSpec, api.Embedder)


def registries() -> dict[str, Registry[Any, Any]]:
    """The four registries, by the plural of their kind."""
    return {"methods": methods(), "backends": backends(), "metrics": metrics(), "embedders": embedders()}


def plugin_errors() -> list[Problem]:
    """All problems of plugins while they were loaded and registered."""
    registries()
    return list(manager().problems)


def reset() -> None:
    """Forget all loaded plugins: for tests, and after an installation in a running process."""
    for cached in (manager, methods, backends, metrics, embedders):
        cached.cache_clear()


def failing_plugin(error: BaseException) -> EntryPoint | None:
    """The third-party plugin that an exception passed through, the last called one; None where there is none."""
    packages = {point.module.partition(".")[0]: point for point in manager().points}
    for registry in registries().values():
        packages |= {entry.spec.target.partition(":")[0].partition(".")[0]: entry.source for entry in registry}
    called = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    known = [packages[top] for top in (name.partition(".")[0] for name in called) if top in packages]
    return next((point for point in reversed(known) if point.distribution != OWN), None)


def hook_names() -> list[str]:
    """The names of all hooks."""
    return [name for name in vars(hookspecs) if name.startswith("encore_")]


def distributions(**used: Iterable[str]) -> list[str]:
    """The distributions that register some names, sorted; unknown names are ignored.

    Args:
        used: names by the plural of their kind: `methods=["npo"], backends=["musicgen"]`.
    """
    known = registries()
    return sorted(
        {e.source.distribution for kind, names in used.items() for e in known[kind] if e.spec.name in set(names)}
    )


def installed() -> list[dict[str, str | None]]:
    """Every plugin with the hash of its code, as `run.json` records it.

    Returns:
        name, distribution, version, module, and sha256: over the path and content of every file of the entry point's
        package (also for an editable install), None where the package can't be found.
    """
    return [
        {
            "name": point.name,
            "distribution": point.distribution,
            "version": point.version,
            "module": point.module,
            "sha256": _code_hash(point.module.partition(".")[0]),
        }
        for point in manager().points
    ]


def _code_hash(package: str) -> str | None:
    import hashlib
    from pathlib import Path

    try:
        spec = third_party(importlib.util.find_spec, package)
    except Broken:
        return None
    if spec is None:
        return None
    roots = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [
        (path.relative_to(root).as_posix(), path)
        for root in roots
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    if not roots and spec.origin:
        files = [(Path(spec.origin).name, Path(spec.origin))]
    digest = hashlib.sha256()
    for name, path in sorted(files):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest() if files else None


# --------------------------------------------------------------------------------------------------------- helpers


def _import_target(target: str) -> Any:
    module, colon, name = target.partition(":")
    if not colon:
        raise ImportError('a target is written "package.module:Class"')
    return _import(module, name)


def _import(module: str, attribute: str) -> Any:
    target: Any = importlib.import_module(module)
    for part in filter(None, attribute.split(".")):
        target = getattr(target, part)
    return target


def _installed(distribution: str) -> bool:
    import importlib.metadata

    try:
        importlib.metadata.distribution(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
    return True
