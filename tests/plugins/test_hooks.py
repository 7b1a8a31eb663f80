"""Each hook, from a plugin that is installed like anybody's."""

import json

from encore import plugins

METHODS = """
from encore.api import MethodSpec, hookimpl

@hookimpl
def encore_register_methods():
    return (MethodSpec(name, "a summary", "acme:Method") for name in ["acme-one", "acme-two"])
"""
BACKENDS = """
from encore.api import BackendSpec, hookimpl

@hookimpl
def encore_register_backends():
    return [BackendSpec("acme", "a summary", "acme:Backend")]
"""
METRICS = """
from encore.api import MetricSpec, hookimpl

@hookimpl
def encore_register_metrics():
    return [MetricSpec("acme", "a summary", "acme:Metric", needs={"gold"})]
"""
EMBEDDERS = """
from encore.api import EmbedderSpec, hookimpl

@hookimpl
def encore_register_embedders():
    return [EmbedderSpec("acme", "a summary", "acme:Embedder")]
"""
COMMANDS = """
import typer
from encore.api import hookimpl

@hookimpl
def encore_register_commands(app: typer.Typer) -> None:
    @app.command("acme-hello")
    def hello(name: str, loud: bool = False) -> None:
        '''Say hello.'''
        print(f"hello {name}" + "!" * loud)

    group = typer.Typer()

    @group.command("sing")
    def sing() -> None:
        print("la")

    @group.command("hum")
    def hum() -> None:
        print("hm")

    app.add_typer(group, name="acme-group", help="A group.")
"""


def test_methods(installed):
    installed.add("acme", METHODS)  # any iterable will do, here a generator
    assert {"acme-one", "acme-two", "npo"} <= set(plugins.methods().names)


def test_backends(installed):
    installed.add("acme", BACKENDS)
    assert plugins.backends().names == ["musicgen", "acme"]


def test_metrics(installed):
    installed.add("acme", METRICS)
    assert plugins.metrics().get("acme").spec.needs == {"gold"}


def test_embedders(installed):
    installed.add("acme", EMBEDDERS)
    assert plugins.embedders().names == ["latents", "clap-tiny", "clap", "ast", "passt", "vggish", "acme"]


def test_commands(site, encore):
    site.add("acme", COMMANDS)
    help_text = encore("--help", path=[site.folder])
    assert "acme-hello" in help_text.stdout
    assert "A group." in help_text.stdout
    assert help_text.stderr == ""
    assert encore("acme-hello", "you", "--loud", path=[site.folder]).stdout == "hello you!\n"
    assert encore("acme-group", "hum", path=[site.folder]).stdout == "hm\n"


def test_a_class_can_be_the_plugin(installed):
    """The entry point may name an object in a module, whose hooks are methods."""
    installed.add(
        "acme",
        "from encore.api import MetricSpec, hookimpl\n"
        "class Plugin:\n"
        "    @hookimpl\n"
        "    def encore_register_metrics(self):\n"
        "        return [MetricSpec('acme', 'a summary', 'acme:Metric')]\n"
        "plugin = Plugin()\n",
    )
    (installed.folder / "acme-1.0.dist-info" / "entry_points.txt").write_text("[encore]\nacme = acme:plugin\n")
    assert "acme" in plugins.metrics()
    assert plugins.plugin_errors() == []


def test_every_hook_shows_in_the_listing(site, encore):
    site.add("acme", METHODS + BACKENDS + METRICS + EMBEDDERS + COMMANDS)
    listed = json.loads(encore("plugins", "--json", path=[site.folder]).stdout)
    (acme,) = [plugin for plugin in listed["plugins"] if plugin["name"] == "acme"]
    assert acme["hooks"] == plugins.hook_names()
    assert acme["provides"] == {
        "methods": ["acme-one", "acme-two"], "backends": ["acme"], "metrics": ["acme"], "embedders": ["acme"]
    }  # fmt: skip
