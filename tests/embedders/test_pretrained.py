from __future__ import annotations

import json
import shutil

import pytest
import torch
from tests.embedders.networks import save_ast, save_clap
from tests.metrics.markov import MarkovBackend

from encore import plugins
from encore.embedders.pretrained import windows
from encore.errors import InputError, MissingWeightsError


def opened(name: str, folder):
    return plugins.embedders().resolve(name).open_weights(MarkovBackend(), str(folder), offline=True)


@pytest.mark.parametrize(("samples", "starts"), [(3, [0]), (8, [0]), (9, [0, 1]), (20, [0, 6, 12])])
def test_windows_cover_a_sound_at_even_distances(samples, starts):
    found = windows(torch.arange(samples), 8)
    assert [int(one[0]) for one in found] == starts
    assert int(found[-1][-1]) == samples - 1
    assert {len(one) for one in found} == {min(samples, 8)}


@pytest.mark.parametrize(("name", "save", "window"), [("clap", save_clap, 16000), ("ast", save_ast, 10240)])
def test_a_long_sound_is_the_mean_of_its_windows_and_draws_nothing(name, save, window, tmp_path):
    embedder = opened(name, save(tmp_path))
    sound = torch.randn(1, window + 4000, generator=torch.Generator().manual_seed(0))
    vectors, tags = embedder.embed_with_tags(sound)
    parts = embedder.embed_with_tags(torch.stack([sound[0, :window], sound[0, 4000:]]))
    mean = parts[0].mean(0)
    expected = mean / mean.norm() if name == "clap" else mean
    torch.testing.assert_close(vectors[0], expected)
    torch.testing.assert_close(tags[0], parts[1].mean(0))
    torch.testing.assert_close(embedder.embed_with_tags(sound)[0], vectors, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["clap", "ast"])
def test_weights_that_are_not_there_are_named_with_the_way_to_get_them(name):
    with pytest.raises(MissingWeightsError, match=f"for the embedder {name}") as caught:
        plugins.embedders().resolve(name).open_weights(MarkovBackend(), "nobody/nothing", offline=True)
    assert "hf download nobody/nothing" in caught.value.hint
    assert f"--embedder {name}=FOLDER" in caught.value.hint


def test_a_folder_of_pickles_or_of_another_family_is_refused(tmp_path):
    folder = save_clap(tmp_path / "clap")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        opened("clap", folder)
    with pytest.raises(InputError, match="the embedder clap"):
        opened("clap", save_ast(tmp_path / "ast"))


def test_identity_is_that_of_the_weights_wherever_they_lie(tmp_path):
    folder = save_ast(tmp_path / "one" / "net")
    shutil.copytree(folder, tmp_path / "two" / "net")
    first, second = (opened("ast", tmp_path / where / "net").identity for where in ("one", "two"))
    assert first == second
    assert first.startswith("ast/1 net sha256:")


@pytest.mark.parametrize(
    ("file", "setting", "value"),
    [("processor_config.json", "frequency_max", 3000), ("config.json", "projection_hidden_act", "gelu")],
)
def test_identity_is_another_where_the_same_weights_hear_otherwise(file, setting, value, tmp_path):
    sound = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    first = opened("clap", save_clap(tmp_path))
    settings = json.loads((tmp_path / file).read_text())
    (settings["feature_extractor"] if file == "processor_config.json" else settings)[setting] = value
    (tmp_path / file).write_text(json.dumps(settings))
    second = opened("clap", tmp_path)
    assert not torch.equal(first.embed(sound), second.embed(sound))
    assert first.identity != second.identity
