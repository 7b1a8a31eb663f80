"""Folders of strangers: no code of theirs is run or asked for, nothing outside is read, and each is one sentence."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, Done

from encore import assets
from encore.hub import check_folder, is_code

Call = Callable[..., Done]
MARKER = "marker-of-code-that-ran"
CODE = f"open({MARKER!r}, 'w').close()\n\nclass Evil:\n    def __init__(self, *a, **k): ...\n"
AUTO = {f"Auto{name}": "evil.Evil" for name in ("Config", "Model", "ModelForTextToWaveform", "Processor")}
AUTO |= {f"Auto{name}": "evil.Evil" for name in ("FeatureExtractor", "ModelForAudioClassification")}
AUTO_TOKENIZER = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def copy_of(source: Path, name: str = "model") -> Path:
    return Path(shutil.copytree(source, name))


def with_code(folder: Path, files: list[str]) -> Path:
    """The folder asks for code in the named files, which lies beside them."""
    (folder / "evil.py").write_text(CODE)
    for name in files:
        change(folder / name, auto_map=AUTO | AUTO_TOKENIZER)
    return folder


def generate(call: Call, folder: Path, *more: object) -> Done:
    return call("generate", "a", "--seconds", "0.3", "--model", folder, "--overwrite", *more)


def refused(done: Done, *words: str) -> None:
    assert done.code == 3, done.err
    assert done.err.count("error:") == 1
    assert "not expected" not in done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


# ----------------------------------------------------------------------------------------------------- C1: code


@pytest.fixture
def answers_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks on stdin is told yes, many times over."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))


SETTINGS = ["config.json", "tokenizer_config.json", "processor_config.json"]


@pytest.mark.parametrize("files", [[name] for name in SETTINGS] + [SETTINGS])
def test_case_C1_a_models_own_code_is_neither_run_nor_asked_for(
    studio: Path, call: Call, answers_yes: None, files: list[str]
) -> None:
    """transformers knows the kind of the model, so that its own classes serve."""
    done = generate(call, with_code(copy_of(studio / "model"), files))
    assert done.code in (0, 3), done.err
    assert "[y/N]" not in done.out + done.err
    assert not Path(MARKER).exists()


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("config.json", {"model_type": "evil"}),
        ("tokenizer_config.json", {"tokenizer_class": "Evil"}),
        ("processor_config.json", {"processor_class": "Evil"}),
    ],
)
def test_case_C1_a_model_that_needs_its_own_code_is_refused(
    studio: Path, call: Call, answers_yes: None, file: str, changed: dict[str, Any]
) -> None:
    folder = with_code(copy_of(studio / "model"), SETTINGS)
    change(folder / file, **changed)
    done = generate(call, folder)
    if done.code != 0:  # where transformers finds a class of its own in spite of all, nothing was needed
        refused(done, "can't load")
    if file == "config.json":
        refused(done, "code of a model is never run")
    assert "[y/N]" not in done.out + done.err
    assert not Path(MARKER).exists()


@pytest.mark.parametrize("name", ["clap", "ast"])
def test_case_C1_an_embedders_own_code_is_not_run(studio: Path, call: Call, answers_yes: None, name: str) -> None:
    folder = with_code(copy_of(assets.FOLDER / assets.CLAP, "clap"), SETTINGS)
    change(folder / "config.json", model_type="evil")
    from encore import plugins
    from encore.errors import InputError

    backend = plugins.backends().resolve("musicgen").load(str(studio / "model"))
    with contextlib.suppress(InputError):  # an embedder names its class, and may do without
        plugins.embedders().resolve(name).open_weights(backend, str(folder))
    assert not Path(MARKER).exists()


def test_case_C1_only_one_place_calls_from_pretrained_and_it_says_no_to_code() -> None:
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")]
    found = [
        path.name
        for path in sources
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained"
    ]
    assert found == ["hub.py"]
    text = (ROOT / "src/encore/hub.py").read_text()
    assert 'where["trust_remote_code"] = False' in text
    assert not any("trust_remote_code=" + "True" in path.read_text("utf-8") for path in sources)


@pytest.mark.parametrize("name", ["evil.py", "EVIL.PY", "model/sub/x.pyc", "x.so"])
def test_case_C1_what_is_code_by_its_name(name: str) -> None:
    assert is_code(name)
    assert not any(map(is_code, ("config.json", "model.safetensors", "README.md", "spiece.model", "merges.txt")))


# ----------------------------------------------------------------------------------- C2: files outside, or no weights


def sharded(studio: Path, names: dict[str, str] | object) -> Path:
    folder = copy_of(studio / "model")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def weights_of(studio: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(studio / "model/model.safetensors", "pt") as file:
        return list(file.keys())


def test_case_C2_a_model_in_parts_is_read(studio: Path, call: Call) -> None:
    done = generate(call, sharded(studio, dict.fromkeys(weights_of(studio), "part.safetensors")))
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "../outside.safetensors", "ABSOLUTE", "link.safetensors", "sub/x.safetensors",
        "gone.safetensors", "part.safetensors/../../outside.safetensors", 5, None,
    ],
)  # fmt: skip
def test_case_C2_an_index_that_names_other_files_is_refused(studio: Path, call: Call, name: Any) -> None:
    shutil.copy(studio / "model/model.safetensors", "outside.safetensors")
    name = str(Path("outside.safetensors").resolve()) if name == "ABSOLUTE" else name
    folder = sharded(studio, dict.fromkeys(weights_of(studio), name))
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "link.safetensors").symlink_to(Path("outside.safetensors").resolve())
    refused(generate(call, folder), "can't load")


@pytest.mark.parametrize("names", [[], "x", 5, None, {}])
def test_case_C2_an_index_of_another_kind_is_refused(studio: Path, call: Call, names: object) -> None:
    refused(generate(call, sharded(studio, names)), "can't load")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_case_C2_a_file_that_leads_out_is_refused(studio: Path, call: Call, name: str) -> None:
    folder = copy_of(studio / "model")
    shutil.move(folder / name, name)
    (folder / name).symlink_to(Path(name).resolve())
    refused(generate(call, folder), f"{name} leads out of the folder")


def test_case_C2_a_folder_of_the_hubs_cache_is_read(studio: Path, call: Call) -> None:
    """Its files are links, to blobs beside the snapshots."""
    folder = copy_of(studio / "model", "models--owner--name/snapshots/0123")
    blobs = folder.parents[1] / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    done = generate(call, folder)
    assert done.code == 0, done.err


def test_case_C2_a_pipe_does_not_hang(studio: Path, call: Call) -> None:
    folder = copy_of(studio / "model")
    (folder / "generation_config.json").unlink()
    os.mkfifo(folder / "generation_config.json")
    refused(generate(call, folder), "generation_config.json is not a regular file")


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("adapter_config.json", {"base_model_name_or_path": "../../other"}, "an adapter to another model"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../x.json"]}, "names files outside"),
        ("config.json", {"transformers_weights": "../x.safetensors"}, "names files outside"),
        ("config.json", {"attn_implementation": "owner/kernel"}, "needs a kernel"),
    ],
)
def test_case_C2_settings_that_lead_elsewhere_are_refused(
    studio: Path, call: Call, file: str, values: dict[str, Any], words: str
) -> None:
    folder = copy_of(studio / "model")
    if not (folder / file).exists():
        (folder / file).write_text("{}")
    change(folder / file, **values)
    refused(generate(call, folder), words)


def test_case_C2_the_embedded_models_are_as_they_should_be() -> None:
    for folder in [assets.FOLDER / assets.CLAP, *(assets.model_folder(name) for name in assets.MODELS)]:
        assert folder is not None
        check_folder(folder, "can't load")


# -------------------------------------------------------------------------------------- C10: settings that are nonsense

NONSENSE: list[Any] = [0, -1, None, [], {}, "x", True, 1e308, 10**12, 2**63, 0.5, [0], [[]], {"a": 1}, "\0", [None] * 3]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in a JSON document, containers included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inner for place in [(*path, key), *leaves(item, (*path, key))]]


def put(document: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        document = document[key]
    document[place[-1]] = value


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("file", "place", "number"),
    [
        ("config.json", ("num_labels",), 10**9),
        ("config.json", ("text_encoder", "num_labels"), 10**9),
        ("config.json", ("decoder", "max_position_embeddings"), 10**8),
        ("config.json", ("audio_encoder", "num_residual_layers"), 900),
        ("tokenizer_config.json", ("extra_ids",), 10**9),
    ],
)
def test_case_C10_a_number_that_would_fill_the_memory_is_refused(
    studio: Path, call: Call, file: str, place: tuple[str, ...], number: int
) -> None:
    folder = copy_of(studio / "model")
    settings = json.loads((folder / file).read_text())
    put(settings, place, number)
    (folder / file).write_text(json.dumps(settings))
    refused(generate(call, folder), f"has {place[-1]} {number:,}, more than")


def test_case_C10_weights_of_other_shapes_are_a_sentence_of_ours(studio: Path, call: Call) -> None:
    folder = copy_of(studio / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings["decoder"]["ffn_dim"] *= 2
    (folder / "config.json").write_text(json.dumps(settings))
    refused(generate(call, folder), "the shapes of its weights don't match its settings")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("decoder", "num_attention_heads"), 0),
        (("decoder", "num_hidden_layers"), 10**9),
        (("decoder", "num_hidden_layers"), -1),
        (("decoder", "num_codebooks"), 0),
        (("decoder", "max_position_embeddings"), 1),
        (("audio_encoder", "target_bandwidths"), []),
        (("audio_encoder", "upsampling_ratios"), [0, 8]),
        (("audio_encoder", "sampling_rate"), None),
        (("audio_encoder", "num_residual_layers"), 10**9),
        (("text_encoder", "num_heads"), -1),
        (("text_encoder", "vocab_size"), 3),
        (("audio_encoder",), 5),
        (("model_type",), []),
    ],
    ids=str,
)
def test_case_C10_a_config_that_no_network_can_have(
    studio: Path, call: Call, place: tuple[str, ...], value: Any
) -> None:
    folder = copy_of(studio / "model")
    config = json.loads((folder / "config.json").read_text())
    put(config, place, value)
    (folder / "config.json").write_text(json.dumps(config))
    refused(generate(call, folder), str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("text", ["", "[" * 100_000, "null", "[]", '{"a": ', "\x00\xff", '{"version": 5, "model": 7}'])
def test_case_C10_settings_that_are_no_settings(studio: Path, call: Call, name: str, text: str) -> None:
    folder = copy_of(studio / "model")
    (folder / name).write_text(text, encoding="latin-1")
    done = generate(call, folder)
    if done.code:  # what the library can do without is no fault
        refused(done, "can't load", str(folder))
    assert done.code == 3 or name == "processor_config.json" or text.startswith('{"version'), done.err


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(9))
def test_case_C10_mutated_model_folders_are_read_or_refused(
    studio: Path, call: Call, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Some 70 folders, two or three values of each changed."""
    draw = random.Random(seed)
    refusals = 0
    for number in range(8):
        folder = copy_of(studio / "model", f"model-{number}")
        changed = []
        for _ in range(draw.randint(1, 3)):
            path = folder / draw.choice(["config.json"] * 5 + SETTINGS + ["generation_config.json", "tokenizer.json"])
            document = json.loads(path.read_text())
            place = draw.choice(leaves(document))
            value = draw.choice(NONSENSE)
            put(document, place, value)
            path.write_text(json.dumps(document))
            changed.append((path.name, place, value))
        done = generate(call, folder)
        assert done.code in (0, 3), (changed, done.err)
        assert "not expected" not in done.err, changed
        refusals += done.code == 3
        shutil.rmtree(folder)
    assert refusals


@pytest.mark.parametrize("command", ["generate", "train", "forget"])
@pytest.mark.parametrize(("value", "part"), [("nan", "lm_heads.0"), ("inf", "text_encoder")])
def test_a_model_whose_weights_are_not_finite_is_refused(
    studio: Path, call: Call, command: str, value: str, part: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of(studio / "model")
    weights = load_file(folder / "model.safetensors")
    next(weight for name, weight in weights.items() if part in name).flatten()[0] = float(value)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    music = studio / "music"
    lists = {
        "generate": ["a", "--seconds", "0.3"],
        "train": ["--tracks", music / "retain.txt", "--epochs", "1"],
        "forget": ["--tracks", music / "forget.txt", "--catalog", music / "catalog.jsonl"],
    }
    done = call(command, *lists[command], "--model", folder, "--out", "out")
    refused(done, "the weights of model are not finite, first of all ")
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["generate", "train", "forget"])
def test_a_model_whose_nll_is_not_finite_is_refused(studio: Path, call: Call, command: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of(studio / "model")
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "lm_heads" in name or (command == "generate" and "decoder.layer_norm" in name):
            weight.mul_(1e37)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    music = studio / "music"
    lists = {
        "generate": ["a", "--seconds", "0.3"],
        "train": ["--tracks", music / "retain.txt", "--epochs", "1"],
        "forget": ["--tracks", music / "forget.txt", "--catalog", music / "catalog.jsonl", "--steps", "3"],
    }
    done = call(command, *lists[command], "--model", folder, "--out", "out")
    words = ["the predictions of model", " not finite"]
    refused(done, *(words if command == "generate" else ["the model's NLL of ", " is not finite before training"]))
    assert not {*Path("out").glob("run.json"), *Path("out").glob("*.wav")}
