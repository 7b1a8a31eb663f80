"""Defaults < file < environment < command line, with the origin of every value, and faults told in one sentence."""

import contextlib
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from encore.errors import InputError, UsageError
from encore.options import Options
from encore.settings import cache_folder, describe_options, read_config, resolve_options
from encore.tensor_cache import TensorCache


class Example(Options):
    lr: float = Field(1e-3, gt=0, description="learning rate")
    batch_size: int = Field(4, ge=1, le=64)
    schedule: Literal["linear", "cosine"] = "linear"
    flag: bool = False
    layers: list[int] = [1]
    level: float | None = None

    @model_validator(mode="after")
    def together(self):
        if self.flag and self.batch_size == 1:
            raise ValueError("Flag needs a batch of two")
        return self


def resolve(**given):
    return resolve_options(Example, environ=given.pop("environ", {}), **given)


def test_defaults():
    settings = resolve()
    assert settings.options == Example()
    assert set(settings.origin.values()) == {"default"}
    assert set(settings.origin) == set(Example.model_fields)


def test_later_sources_beat_earlier_ones():
    settings = resolve(
        config={"lr": 1, "batch-size": 2, "schedule": "cosine", "flag": True},
        environ={"ENCORE_OPTION_LR": "2", "ENCORE_OPTION_BATCH_SIZE": "3", "OTHER": "x"},
        flags={"lr": 4.0, "batch_size": None},
        assignments=["layers=[1, 2]", "level=0.5", "lr=4e0"],
    )
    assert settings.options == Example(lr=4, batch_size=3, schedule="cosine", flag=True, layers=[1, 2], level=0.5)
    assert settings.origin == {
        "lr": "cli", "batch_size": "env", "schedule": "config", "flag": "config", "layers": "cli", "level": "cli"
    }  # fmt: skip


def test_a_flag_and_an_assignment_of_another_value_contradict_each_other():
    with pytest.raises(UsageError, match=r"^--lr 3\.0 and -o lr=4e0 contradict each other$"):
        resolve(flags={"lr": 3.0}, assignments=["lr=4e0"])
    with pytest.raises(UsageError, match="--batch-size 2 and -o batch-size=3"):
        resolve(flags={"batch_size": 2}, assignments=["batch-size=3"])


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("ENCORE_OPTION_LR", "0.5")
    assert resolve_options(Example).options.lr == 0.5


@pytest.mark.parametrize(("text", "value"), [("null", None), ("1e-2", 0.01), (" 3 ", 3.0)])
def test_values_typed_on_the_command_line(text, value):
    assert resolve(assignments=[f"level={text}"]).options.level == value


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"assignments": ["lrr=1"]}, "there is no option 'lrr' (from -o lrr=1)", "did you mean lr?"),
        ({"environ": {"ENCORE_OPTION_BATCHSIZE": "1"}}, "'batchsize' (from ENCORE_OPTION_BATCHSIZE)", "batch_size"),
        ({"config": {"zzz": 1}}, "there is no option 'zzz' (in the config file)", "the options are: batch_size"),
        ({"assignments": ["lr"]}, "-o takes key=value, not 'lr'", "for example"),
        ({"assignments": ["=1"]}, "-o takes key=value", ""),
        ({"assignments": ["lr=fast"]}, "'lr' can't be 'fast' (from -o lr=fast): input should be a valid number", ""),
        ({"assignments": ["lr=0"]}, "'lr' can't be '0' (from -o lr=0): input should be greater than 0", "lr: learning"),
        ({"assignments": ["lr=nan"]}, "'lr' can't be 'nan'", ""),
        ({"config": {"batch_size": 65}}, "'batch_size' can't be 65 (in the config file)", ""),
        ({"assignments": ["schedule=step"]}, "input should be 'linear' or 'cosine'", ""),
        ({"assignments": ["layers=[1"]}, "'layers' can't be '[1'", ""),
        ({"assignments": ["flag=yes", "batch_size=1"]}, "don't fit together: flag needs a batch of two", ""),
    ],
)
def test_faults_are_told_in_one_sentence(given, message, hint):
    with pytest.raises(UsageError) as caught:
        resolve(**given)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message
    assert "pydantic" not in caught.value.message
    assert caught.value.__context__ is None, "no pydantic traceback either"


def test_required_option():
    class Required(Options):
        alpha: float

    with pytest.raises(UsageError, match="the option 'alpha' must be given"):
        resolve_options(Required, environ={})
    (info,) = describe_options(Required)
    assert (info.required, info.default) == (True, None)


@given(st.dictionaries(st.text(), st.text()), st.lists(st.text()))
def test_whatever_is_typed_is_taken_or_refused(environ, assignments):
    with contextlib.suppress(UsageError):
        resolve(environ={f"ENCORE_OPTION_{key}": value for key, value in environ.items()}, assignments=assignments)


def test_describe_options():
    rows = {info.name: info for info in describe_options(Example)}
    assert list(rows) == list(Example.model_fields)
    assert rows["lr"][1:] == ("number", 0.001, False, "> 0", "learning rate")
    assert rows["batch_size"].allowed == ">= 1, <= 64"
    assert rows["schedule"].allowed == "linear | cosine"
    assert (rows["level"].type, rows["level"].default) == ("number or null", None)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_read_config(tmp_path):
    path = write(tmp_path, '\ufeffmodel = "tiny"\nbatch-size = 3\n[options]\nforget-batch-size = 2\n')
    config = read_config(path, {"model", "batch_size"})
    assert config.flags == {"model": "tiny", "batch_size": 3}
    assert config.options == {"forget_batch_size": 2}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("modle = 1", UsageError, "unknown key 'modle'"),
        ("options = 1", UsageError, "must be a table"),
        ("a = ", InputError, "not valid TOML"),
        (b"\xff\xfe", InputError, "not valid TOML"),
        ("a = " + "[" * 100_000, InputError, "not valid TOML"),
        ("#" * (1 << 20) + "#", InputError, "larger than"),
    ],
)
def test_config_faults(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        read_config(write(tmp_path, text), {"model"})


def test_config_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="can't be read: No such file"):
        read_config(tmp_path / "none.toml", ())
    with pytest.raises(InputError, match="can't be read: Is a directory"):
        read_config(tmp_path, ())


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("ENCORE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "encore"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "encore"
    monkeypatch.setenv("ENCORE_CACHE", "~/own")
    assert cache_folder() == TensorCache().folder == tmp_path / "own"
