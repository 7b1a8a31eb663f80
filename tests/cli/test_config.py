"""`--config`, and the origin of every value, in a command made for the purpose."""

from typing import Annotated

import pytest
import typer
import typer.main

from encore.cli.config import ConfigFile, MethodOptions, method_settings, origins
from encore.errors import UsageError
from encore.options import TrainOptions

SEEN = {}


def command(
    context: typer.Context,
    model: Annotated[str, typer.Option(envvar="MODEL")] = "tiny",
    seed: int = 0,
    lr: float | None = None,
    steps: int | None = None,
    option: MethodOptions = None,
    config: ConfigFile = None,
) -> None:
    """Record what it is called with."""
    settings = method_settings(context, TrainOptions, option, ["lr", "steps"])
    SEEN.update(model=model, seed=seed, origins=origins(context), options=settings.options, origin=settings.origin)


@pytest.fixture
def call(tmp_path):
    app = typer.Typer(add_completion=False)
    app.command()(command)

    def run(*arguments, toml=""):
        SEEN.clear()
        path = tmp_path / "config.toml"
        path.write_text(toml)
        typer.main.get_command(app)(args=[*arguments, "--config", str(path)], standalone_mode=False)
        return SEEN

    return run


def test_flags_default_config_env_cli(call, monkeypatch):
    monkeypatch.setenv("MODEL", "from-env")
    seen = call("--seed", "3", toml='model = "from-config"\nseed = 2\nlr = 1e-2\n')
    assert (seen["model"], seen["seed"]) == ("from-env", 3)
    assert seen["origins"] | {"config": "cli"} == {
        "model": "env", "seed": "cli", "lr": "config", "steps": "default", "option": "default", "config": "cli"
    }  # fmt: skip
    monkeypatch.delenv("MODEL")
    assert call(toml='model = "from-config"')["model"] == "from-config"


def test_options_from_every_source(call, monkeypatch):
    monkeypatch.setenv("ENCORE_OPTION_LR", "0.2")
    toml = "lr = 0.1\nsteps = 5\n[options]\nbatch_size = 2\nwarmup = 1\n"
    seen = call("-o", "warmup=3", toml=toml)
    options, origin = seen["options"], seen["origin"]
    assert (options.lr, origin["lr"]) == (0.2, "env"), "the environment beats the file, also for a flag"
    assert (options.steps, origin["steps"]) == (5, "config")
    assert (options.batch_size, origin["batch_size"]) == (2, "config")
    assert (options.warmup, origin["warmup"]) == (3, "cli")
    assert origin["schedule"] == "default"
    seen = call("--lr", "0.3", toml=toml)
    assert (seen["options"].lr, seen["origin"]["lr"]) == (0.3, "cli")


def test_unknown_key(call):
    with pytest.raises(UsageError, match="unknown key 'sede'") as caught:
        call(toml="sede = 1")
    assert "did you mean seed" in caught.value.hint


def test_value_of_the_wrong_type_is_a_usage_error(call):
    with pytest.raises(Exception, match="should be a valid integer") as caught:
        call(toml='seed = "many"')
    assert caught.value.exit_code == 2
