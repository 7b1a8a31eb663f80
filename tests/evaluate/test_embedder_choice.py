from __future__ import annotations

import json

import pytest
from tests.metrics.markov import MarkovBackend

from encore import assets
from encore.backends.musicgen import MusicgenBackend
from encore.embedders.clap import ClapTiny
from encore.errors import UnknownNameError, UsageError
from encore.evaluate.embedder_choice import default_embedders, open_embedders, parsed
from encore.hashing import module_sha256


def test_names_and_weights_are_read():
    assert parsed("latents, clap=a/b@main,ast=folder") == {"latents": "", "clap": "a/b@main", "ast": "folder"}


@pytest.mark.parametrize("asked", ["", "latents,", "=folder", "latents,latents"])
def test_a_list_that_makes_no_sense_is_refused(asked):
    with pytest.raises(UsageError):
        parsed(asked)


def test_a_misspelt_name_is_told():
    with pytest.raises(UnknownNameError) as caught:
        parsed("latents,clab")
    assert "did you mean clap" in caught.value.hint


def test_without_a_choice_the_embedded_clap_hears_the_embedded_codec_alone():
    tiny = MusicgenBackend.load("tiny", offline=True)
    record = json.loads((assets.FOLDER / "build.json").read_text())["clap"]
    assert record["codec_sha256"] == module_sha256(tiny.frozen()["codec"])
    assert default_embedders(tiny) == "latents,clap-tiny"
    next(tiny.frozen()["codec"].parameters()).data[0] += 1.0
    assert default_embedders(tiny) == "latents"
    opened, unopened = open_embedders("clap-tiny", tiny)
    assert isinstance(opened["clap-tiny"], ClapTiny)
    assert not unopened


def test_an_embedder_that_does_not_open_leaves_the_others():
    opened, unopened = open_embedders("latents,clap-tiny,clap=nobody/nothing", MarkovBackend(), offline=True)
    assert list(opened) == ["clap-tiny"]
    assert "needs a codec" in unopened["latents"]
    assert "can't load nobody/nothing" in unopened["clap"]
