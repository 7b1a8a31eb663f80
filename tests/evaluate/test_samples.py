"""Samples: names that stay inside the folder, sound that can be heard."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from encore.api import Clip, Result
from encore.backends.musicgen import MusicgenBackend
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.samples import write_samples, write_wav
from encore.metrics.memorization.generations import caption_generations


def test_before_and_after_of_every_forgotten_window_and_a_few_kept_ones(
    backend: MusicgenBackend, tmp_path: Path
) -> None:
    codes = torch.randint(32, (2, 20), generator=torch.Generator().manual_seed(0))
    names = ["../../evil", "/etc/passwd", "a/b\x1b[2J", "", "é" * 300]
    clips = {
        "forget": [Clip(name, "slow church organ", codes) for name in names],
        "retain": [Clip(f"kept {i}", "lute", codes) for i in range(6)],
        "holdout": [Clip("never", "lute", codes)],
    }
    evaluation = SharedEvaluation({"base": backend, "unlearned": backend.clone()}, clips, embedder=None)  # type: ignore[arg-type]
    (tmp_path / "out").mkdir()
    write_samples(tmp_path / "out", evaluation)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    index = json.loads((tmp_path / "out/samples/index.json").read_text())
    assert len(index) == 2 * (5 + 4)
    assert [item["track"] for item in index[::2]][:5] == names
    for item in index:
        path = (tmp_path / "out/samples" / item["file"]).resolve()
        assert path.is_relative_to(tmp_path / "out/samples")
        audio, rate = soundfile.read(path)
        assert (rate, len(audio)) == (8000, 20 * 80)
    assert {Path(item["file"]).suffixes[-2] for item in index} == {".before", ".after"}


def test_what_is_most_like_a_track_is_kept_once_a_play(backend: MusicgenBackend, tmp_path: Path) -> None:
    codes = torch.randint(32, (2, 20), generator=torch.Generator().manual_seed(0))
    clips = {"forget": [Clip(name, "slow church organ", codes) for name in ("a", "b")], "holdout": []}
    evaluation = SharedEvaluation({"base": backend, "unlearned": backend.clone()}, clips, embedder=None)  # type: ignore[arg-type]
    best = {
        "chroma": {"a": "sample 2", "b": "greedy"},
        "melody": {"a": "sample 2", "b": "sample 1"},
        "bleu": {"a": "sample 3"},
    }
    rows = [
        Result(f"similarity_{kind}", model, "forget", 0.5, details={"best": tracks})
        for kind, tracks in best.items() for model in ("base", "unlearned")
    ]  # fmt: skip
    write_samples(tmp_path, evaluation, rows)
    index = json.loads((tmp_path / "samples/index.json").read_text())
    told = {(item["track"], item["variant"]): item for item in index if item["file"].startswith("similar/")}
    assert {key: item["kinds"] for key, item in told.items()} == {
        ("a", "sample 2"): ["chroma", "melody"], ("b", "greedy"): ["chroma"], ("b", "sample 1"): ["melody"],
    }  # fmt: skip
    for generation in caption_generations(evaluation, "unlearned", "forget"):
        if (generation.track, generation.variant) in told:
            audio, _ = soundfile.read(tmp_path / "samples" / told[generation.track, generation.variant]["file"])
            sound = evaluation.models["unlearned"].decode(generation.codes[None])[0, 0].numpy()
            assert np.allclose(audio, sound.clip(-1, 1), atol=1e-4)


def test_of_several_plays_of_one_name_each_is_numbered(backend: MusicgenBackend, tmp_path: Path) -> None:
    codes = torch.randint(32, (2, 20), generator=torch.Generator().manual_seed(0))
    clips = {"forget": [Clip("a", "slow church organ", codes)], "holdout": []}
    evaluation = SharedEvaluation({"unlearned": backend}, clips, embedder=None, samples_per_caption=2)  # type: ignore[arg-type]
    rows = [Result("similarity_melody", "unlearned", "forget", 0.5, details={"best": {"a": "sample 2"}})]
    write_samples(tmp_path, evaluation, rows)
    index = json.loads((tmp_path / "samples/index.json").read_text())
    told = [item["variant"] for item in index if item["file"].startswith("similar/")]
    assert told == ["sample 2, 1 of 2", "sample 2, 2 of 2"]


def test_a_wav_is_clipped_not_wrapped(tmp_path: Path) -> None:
    write_wav(tmp_path / "x.wav", torch.tensor([[0.0, 0.5, 3.0, -3.0]]), 8000)
    audio, _ = soundfile.read(tmp_path / "x.wav")
    assert np.allclose(audio, [0, 0.5, 1, -1], atol=1e-3)
