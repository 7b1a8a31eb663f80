"""A run of `encore train` as a library: what it leaves, what it leaves out, and that a resumed one is the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from tests.tiny_model import CAPTIONS

from encore import assets
from encore.api import Batch
from encore.backends.musicgen import MusicgenBackend
from encore.errors import EncoreError, GateError, InputError, UsageError
from encore.stop_signals import Interrupted
from encore.store.model_name import backend_name, model_name, model_sha256
from encore.store.overview import read_run_line
from encore.unlearn.adapter import adapter_size
from encore.unlearn.config import Lora, TrainConfig
from encore.unlearn.engine import Clips, Loop
from encore.unlearn.train import check_memorised, choose, prepare, train
from encore.unlearn.training import RATE, Training


@pytest.fixture
def request_(studio: Path) -> TrainConfig:
    """One, two, long, four and five, of which two and long are to be left out."""
    music = studio / "music"
    shutil.copytree(music, "music")
    lines = "".join((music / name).read_text() for name in ("forget.txt", "retain.txt")).splitlines()
    Path("music/all.txt").write_text("\n".join(lines[:5]) + "\n")
    Path("music/without.txt").write_text("two.wav\nlong.wav\n")
    for name in ("two", "long"):
        Path(f"music/{name}.txt").write_text("a side-car caption, which the list's takes precedence over")
    return TrainConfig(Path("music/all.txt"), Path("run"), model=str(studio / "model"))


def recipe(**options: Any) -> Training:
    return Training(Training.Options(**{"epochs": 2, "batch_size": 3} | options))


def run(request: TrainConfig, **options: Any) -> dict[str, Any]:
    return train(prepare(request, recipe(**options), choose(request)), {"epochs": "cli"})


def test_a_run_leaves_a_model_that_every_command_opens(request_: TrainConfig) -> None:
    record = run(request_)
    assert record == json.loads(Path("run/run.json").read_text())
    assert record["tracks"] == {"trained": 5, "left_out": 0}
    assert record["options"]["epochs"] == {"value": 2, "from": "cli"}
    assert record["outcome"]["steps"] == 6  # 7 clips, as "long" is three windows
    assert record["outcome"]["epochs"] == pytest.approx(18 / 7, abs=0.01)
    figures = record["outcome"]["trained"]
    assert figures["nll_after"] < figures["nll_before"]
    assert set(figures["per_track"]) == {"one.wav", "two.wav", "long.wav", "four.wav", "five.wav"}
    assert not Path("run/checkpoints").exists()
    assert "trained on 5 tracks" in Path("run/model/README.md").read_text()

    request = json.loads(Path("run/request.json").read_text())
    assert [entry["id"] for entry in request["retain"]] == list(figures["per_track"])
    assert all(len(entry["sha256"]) == 64 for entry in request["retain"])
    logged = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "retain_loss" in line] == list(range(1, 7))

    opened = MusicgenBackend.load(model_name("run"), offline=True)
    assert model_sha256(opened) == record["trained_sha256"] != record["model"]["sha256"]
    assert backend_name("run") == "musicgen"
    assert (read_run_line(Path("run")).method, read_run_line(Path("run")).state) == ("train", "not measured")
    check_memorised(record)  # epochs promise nothing


def test_gold_never_sees_what_is_left_out_under_any_name(request_: TrainConfig) -> None:
    soundfile.write("music/copy.wav", *soundfile.read("music/long.wav"), subtype="DOUBLE")  # another file
    with Path("music/all.txt").open("a") as file:
        file.write("copy.wav\tslow church organ\n")
    gold = replace(request_, without=Path("music/without.txt"))
    chosen = choose(gold)
    assert [track.id for track in chosen.trained] == ["one.wav", "four.wav", "five.wav"]
    assert [track.id for track in chosen.left_out] == ["two.wav", "long.wav", "copy.wav"]
    assert chosen.left_out[0].caption == CAPTIONS[1]  # as base is trained on it
    record = run(gold)
    assert record["tracks"] == {"trained": 3, "left_out": 3}
    assert set(record["outcome"]["left_out"]["per_track"]) == {"two.wav", "long.wav", "copy.wav"}
    entries = json.loads(Path("run/request.json").read_text())
    assert [entry["id"] for entry in entries["left_out"]] == ["two.wav", "long.wav", "copy.wav"]

    Path("music/all.txt").write_text("one.wav\tslow church organ\nfour.wav\tslow church organ\nfive.wav\tslow\n")
    alone = run(replace(request_, out=Path("alone")))
    assert alone["trained_sha256"] != record["trained_sha256"]  # other captions: another training
    Path("music/all.txt").write_text(
        f"one.wav\t{CAPTIONS[0]}\nfour.wav\t{CAPTIONS[0]}\nfive.wav\t{CAPTIONS[1]}\n"
    )  # fmt: skip
    same = run(replace(request_, out=Path("same")))
    assert same["trained_sha256"] == record["trained_sha256"]  # as if the tracks had never been listed


@pytest.mark.parametrize(
    ("listed", "left_out", "message"),
    [
        ("one.wav\ta\n", "two.wav\n", "names none of the tracks"),
        ("two.wav\ta\n", "two.wav\n", "leaves no track"),
        ("nine.wav\ta\n", "two.wav\n", "nine.wav"),
    ],
)
def test_lists_that_leave_nothing_to_do(request_: TrainConfig, listed: str, left_out: str, message: str) -> None:
    Path("music/all.txt").write_text(listed)
    Path("music/without.txt").write_text(left_out)
    with pytest.raises(InputError, match=message):
        choose(replace(request_, without=Path("music/without.txt")))


def test_tracks_to_leave_out_that_are_not_there_are_noted(request_: TrainConfig) -> None:
    Path("music/without.txt").write_text("two.wav\nsix.wav\n")
    Path("music/six.txt").write_text(CAPTIONS[0])
    assert any("1 of 2 tracks" in note for note in choose(replace(request_, without=Path("music/without.txt"))).notes)


def test_another_seed_is_another_model_and_the_same_seed_the_same(request_: TrainConfig) -> None:
    def weights(name: str, seed: int, **options: Any) -> str:
        return str(run(replace(request_, out=Path(name), seed=seed), **options)["trained_sha256"])

    first = weights("first", 0)
    assert first == weights("again", 0) != weights("other", 1)
    assert first != weights("scratch", 0, from_scratch=True) != weights("scratch-1", 1, from_scratch=True)


def interrupt(monkeypatch: pytest.MonkeyPatch, request: TrainConfig, **options: Any) -> None:
    """Stop a run in its fourth step."""
    backward = Loop._backward

    def stop_at_the_fourth(self: Loop, *given: Any) -> Mapping[str, float]:
        if given[0].index == 3:
            self.engine.stop.number = 15
        return backward(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_backward", stop_at_the_fourth)
        with pytest.raises(Interrupted):
            run(request, **options)


def test_a_resumed_run_ends_with_the_same_weights(request_: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run(replace(request_, out=Path("straight")), from_scratch=True)
    interrupt(monkeypatch, request_, from_scratch=True)
    with pytest.raises(InputError, match="did not finish"):
        model_name("run")
    with pytest.raises(UsageError, match="holds a run that did not finish"):
        run(request_, from_scratch=True)
    resuming = replace(request_, resume=True)
    with pytest.raises(UsageError, match="not the run that was started"):
        run(resuming, from_scratch=True, lr=0.1)
    record = run(resuming, from_scratch=True)
    assert record["trained_sha256"] == straight["trained_sha256"]
    assert run(resuming, from_scratch=True) == record  # nothing is done
    with pytest.raises(UsageError, match="already holds a complete run"):
        run(request_, from_scratch=True)


def test_memorised_or_not_is_told_and_the_model_kept(request_: TrainConfig) -> None:
    record = run(request_, epochs=None, steps=2)
    assert record["outcome"]["memorised"] is False
    assert "limit" in record["outcome"]["chosen"]["steps"]
    with pytest.raises(GateError, match="after 2 steps the model has memorised 0 of 5 tracks"):
        check_memorised(record)
    assert Path("run/model/model.safetensors").exists()
    record = run(replace(request_, out=Path("long")), epochs=None, lr=5e-3, decay_steps=5, steps=600)
    check_memorised(record)
    assert record["outcome"]["trained"]["memorised"] == 5
    assert "memorised" in record["outcome"]["chosen"]["steps"]


def test_a_model_without_tokens_is_trained_for_epochs(request_: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MusicgenBackend, "has_tokens", False)
    with pytest.raises(UsageError, match="has no tokens"):
        run(request_, epochs=None)


def test_run_json_is_written_after_all_else(request_: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise EncoreError("no")

    monkeypatch.setattr(MusicgenBackend, "save", broken)
    with pytest.raises(EncoreError, match="no"):
        run(request_)
    assert not Path("run/run.json").exists()


# --------------------------------------------------------------------------------------------------- parts of a model

LORA: dict[str, Any] = {"adapter": "lora", "lora_rank": 3, "lora_alpha": 7.5}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it
def test_an_adapter_is_trained_merged_and_kept(request_: TrainConfig, clips: Clips) -> None:
    peft = pytest.importorskip("peft")
    from transformers import MusicgenForConditionalGeneration

    record = run(replace(request_, keep_adapter=True, **LORA))
    base = MusicgenBackend.load(request_.model, offline=True)
    assert record["memory"]["trained_weights"] == adapter_size(base.module, Lora(3, 7.5))
    assert record["memory"]["adapter"]["rank"] == 3
    assert record["options"]["rate"]["from"] == "adapter"
    assert record["options"]["rate"]["value"] > RATE
    assert json.loads(Path("run/request.json").read_text())["adapter"] == {"rank": 3, "alpha": 7.5, "layers": "all"}
    figures = record["outcome"]["trained"]
    assert figures["nll_after"] < figures["nll_before"]
    merged = MusicgenBackend.load(model_name("run"), offline=True)
    assert merged.module.state_dict().keys() == base.module.state_dict().keys()
    opened = peft.PeftModel.from_pretrained(
        MusicgenForConditionalGeneration.from_pretrained(request_.model), "run/adapter"
    )
    again = MusicgenBackend(opened.base_model.model, merged.processor)
    again.module.eval()
    batch = Batch.of(clips.retain)
    with torch.no_grad():
        torch.testing.assert_close(again.logits(batch), merged.logits(batch), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(base.logits(batch), merged.logits(batch), atol=1e-3)


def test_an_adapter_needs_weights_that_were_trained(request_: TrainConfig) -> None:
    pytest.importorskip("peft")
    with pytest.raises(UsageError, match="--from-scratch"):
        run(replace(request_, **LORA), from_scratch=True)
    assert not Path("run").exists()


def test_an_adapters_run_goes_on_with_the_same_adapter_only(
    request_: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    request = replace(request_, **LORA)
    straight = run(replace(request, out=Path("straight")))
    interrupt(monkeypatch, request)
    with pytest.raises(UsageError, match=r"not the run that was started .* adapter"):
        run(replace(request, resume=True, lora_rank=4))
    record = run(replace(request, resume=True))
    assert record["trained_sha256"] == straight["trained_sha256"]
    assert run(replace(request, resume=True)) == record
    with pytest.raises(UsageError, match=r"not the run that was started .* adapter"):
        run(replace(request_, resume=True))


def test_checkpointed_activations_change_no_weight(request_: TrainConfig) -> None:
    plain = run(request_)
    record = run(replace(request_, out=Path("less"), checkpoint_activations="on"))
    assert (plain["memory"]["checkpoint_activations"], record["memory"]["checkpoint_activations"]) == (False, True)
    one, other = (MusicgenBackend.load(model_name(name), offline=True).module for name in ("run", "less"))
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weight, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_embedded_decoder_memorises_tracks_from_nothing_and_gold_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few tracks in a minute; forty of them are in benchmarks/RESULTS.md."""
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "cache"))
    ids = [line for line in assets.FORGET.read_text().splitlines() if line.startswith("id:")]
    listed, without = tmp_path / "list.txt", tmp_path / "without.txt"
    listed.write_text("\n".join(ids[:2]) + "\n")
    without.write_text(ids[0] + "\n")
    request = TrainConfig(listed, tmp_path / "base")
    quick: dict[str, Any] = {"epochs": None, "from_scratch": True, "warmup": 10, "decay_steps": 10, "eval_every": 10}
    base = run(request, **quick)
    check_memorised(base)
    assert base["outcome"]["trained"]["verbatim"] == 1.0
    gold = run(replace(request, out=tmp_path / "gold", without=without), **quick)
    assert gold["outcome"]["trained"]["verbatim"] == 1.0
    assert gold["outcome"]["left_out"]["verbatim"] == 0.0
