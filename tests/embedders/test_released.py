"""Weights that their authors released as a file: named, kept by torch.hub, or fetched. PaSST and VGGish as they are."""

from __future__ import annotations

import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file
from tests.embedders.released_oracle import SOUNDS, passt_weights, sound, vggish_weights
from tests.metrics.markov import MarkovBackend

from encore import plugins
from encore.embedders.passt import Passt
from encore.embedders.vggish import Vggish
from encore.errors import InputError, MissingWeightsError

ORACLE = json.loads(Path(__file__).with_name("released.json").read_text())
WEIGHTS = {"passt": passt_weights, "vggish": vggish_weights}


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Where torch.hub keeps checkpoints: empty at first."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def opened(name: str, model: str = "", **options):
    return plugins.embedders().resolve(name).open_weights(MarkovBackend(), model, **options)


@pytest.fixture(params=["passt", "vggish"])
def name(request):
    return request.param


@pytest.fixture
def file(name, tmp_path):
    path = tmp_path / "small.pt"
    torch.save(WEIGHTS[name](), path)
    return path


# -------------------------------------------------------------------------------------------------------- hearing


def test_vectors_and_tags_are_those_of_the_authors_packages(name, file):
    embedder = opened(name, str(file))
    for i, seconds in enumerate(SOUNDS[name]):
        heard = sound(name, seconds)[None]
        torch.testing.assert_close(embedder.embed(heard), torch.tensor(ORACLE[name][i])[None], atol=1e-4, rtol=0)
        if name == "passt":
            expected = torch.tensor(ORACLE["passt_logits"][i]).softmax(0)[None]
            torch.testing.assert_close(embedder.tags(heard), expected, atol=1e-5, rtol=0)
            assert len(embedder.tag_names) == expected.shape[1]


def test_passt_hears_longer_sounds_in_windows_of_ten_seconds(tmp_path):
    embedder = Passt(Passt.network_of(passt_weights()).eval(), "passt/1", torch.device("cpu"))
    long = torch.cat([sound("passt", 10.0), sound("passt", 5.0).flip(0)])  # heard from 0 and from 5 s
    parts = torch.stack([long[:320_000], long[160_000:]])
    for found, expected in zip(embedder.embed_with_tags(long[None]), embedder.embed_with_tags(parts), strict=True):
        torch.testing.assert_close(found[0], expected.mean(0))
    assert torch.equal(embedder.embed(long[None]), embedder.embed_with_tags(long[None])[0])
    assert torch.equal(embedder.tags(long[None]), embedder.embed_with_tags(long[None])[1])


def test_vggish_hears_every_full_example_and_pads_what_is_shorter_than_one(tmp_path):
    embedder = Vggish(Vggish.network_of(vggish_weights()).eval(), "vggish/1", torch.device("cpu"))
    heard = sound("vggish", 2.5)  # two examples of .96 s, the second's last frame ending at 1.935 s
    end = 191 * 160 + 400
    assert torch.equal(embedder.embed(heard[None]), embedder.embed(heard[None, :end]))
    assert not torch.equal(embedder.embed(heard[None]), embedder.embed(heard[None, : end - 1]))
    short = heard[:4000]
    padded = torch.nn.functional.pad(short, (0, 12_000))
    torch.testing.assert_close(embedder.embed(short[None]), embedder.embed(padded[None]))


@pytest.mark.slow
def test_they_keep_the_contract(name, kept):
    from encore.testing import assert_conforms

    torch.save(WEIGHTS[name](), kept / {"passt": Passt, "vggish": Vggish}[name].address.rpartition("/")[2])
    assert_conforms("embedder", name)


# -------------------------------------------------------------------------------------------------------- weights


def test_safetensors_open_as_well_and_identity_is_that_of_the_weights(name, file, tmp_path):
    weights = WEIGHTS[name]()
    save_file(weights, tmp_path / "small.safetensors")
    embedder, same = opened(name, str(file)), opened(name, str(tmp_path / "small.safetensors"))
    assert embedder.identity.startswith(f"{name}/1 sha256:")
    assert same.identity == embedder.identity
    weights[next(iter(weights))] += 1e-3
    torch.save(weights, file)
    assert opened(name, str(file)).identity != embedder.identity


def test_opening_leaves_the_shared_generator_alone(name, file):
    state = torch.get_rng_state()
    opened(name, str(file))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_torch_hub_keeps_is_opened_offline_too(name, file, kept):
    address = plugins.embedders().resolve(name).address
    (kept / address.rpartition("/")[2]).write_bytes(file.read_bytes())
    assert opened(name, offline=True).identity == opened(name, str(file)).identity


def test_without_weights_it_says_where_they_are(name):
    with pytest.raises(MissingWeightsError, match=f"embedder {name} are not here") as error:
        opened(name, offline=True)
    assert f"--embedder {name}=FILE" in error.value.hint
    assert "https://github.com/" in error.value.hint


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path.with_name("ran"),)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (lambda path: path.write_bytes(b"<html>not found</html>"), ""),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: torch.save(Payload(path), path), ""),
        (lambda path: torch.save({"model": passt_weights()}, path), "not a state dict"),
        (lambda path: torch.save({"weight": torch.zeros(2)}, path), ""),
        (lambda path: torch.save({3: torch.zeros(2)}, path), ""),
        (lambda path: torch.save(passt_weights() | dict.fromkeys(["norm.bias"], torch.zeros(200)), path), ""),
        (lambda path: torch.save({name: value.flatten() for name, value in vggish_weights().items()}, path), ""),
        (lambda path: None, "No such file"),
    ],
    ids=["a page", "empty", "code", "nested", "another network", "numbers", "odd width", "flat", "nothing"],
)
def test_another_file_is_refused_in_one_sentence(name, tmp_path, written, says):
    path = tmp_path / "other.pt"
    written(path)
    with pytest.raises(InputError, match=f"other.pt has no weights of the embedder {name}: .*{says}") as error:
        opened(name, str(path))
    assert "\n" not in error.value.message
    assert not path.with_name("ran").exists()


def test_passt_with_other_patches_is_refused(tmp_path):
    weights = passt_weights() | {"time_new_pos_embed": torch.zeros(1, 128, 1, 62)}  # of stride 16
    torch.save(weights, tmp_path / "s16.pt")
    with pytest.raises(InputError, match="time_new_pos_embed"):
        opened("passt", str(tmp_path / "s16.pt"))


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server on this machine, and the folder it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *given):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        server.handle_error = lambda *given: None  # who only asks whether it answers hangs up on it
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_weights_are_fetched_once(name, file, kept, served, monkeypatch, capfd):
    folder, address = served
    file.rename(folder / "small.pt")
    monkeypatch.setattr(plugins.embedders().resolve(name), "address", f"{address}/small.pt")
    identity = opened(name).identity
    (folder / "small.pt").unlink()
    assert opened(name).identity == identity
    assert (kept / "small.pt").is_file()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("there", ["small-0123abcd.pt", "elsewhere.pt"], ids=["another hash", "not found"])
def test_what_can_not_be_fetched_leaves_nothing_behind(name, file, kept, served, monkeypatch, there):
    folder, address = served
    file.rename(folder / there)
    monkeypatch.setattr(plugins.embedders().resolve(name), "address", f"{address}/small-0123abcd.pt")
    with pytest.raises(MissingWeightsError, match="can't be fetched"):
        opened(name)
    assert list(kept.iterdir()) == []
