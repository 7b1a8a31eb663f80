"""Attribution: scores against a float64 loop that stores every gradient, where captions come from, and real tracks."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.conftest import Done
from tests.tiny_model import CAPTIONS, CODES
from torch import Tensor

from encore import assets
from encore.api import Batch, Clip
from encore.attribution import DAMPING, TEMPERATURE, Scores, attribute, find_caption
from encore.backends.musicgen import MusicgenBackend
from encore.data.catalog import Catalog
from encore.data.encode import TrackEncoder
from encore.data.open_files import file_sha256
from encore.data.tracks import Track
from encore.errors import InputError, UsageError
from encore.evaluate.samples import write_wav
from encore.tensor_cache import TensorCache


@pytest.fixture(scope="module")
def catalog() -> list[Clip]:
    """Six tracks, the second of three windows."""
    generator = torch.Generator().manual_seed(2)
    names = ["a", "b", "b", "b", "c", "d", "e", "f"]
    return [
        Clip(name, CAPTIONS[i % 3], torch.randint(CODES, (2, 20 + i % 3), generator=generator))
        for i, name in enumerate(names)
    ]


def slow(backend: MusicgenBackend, catalog: list[Clip], clip: list[Clip], conditioned: bool) -> dict[str, float]:
    """The formula in the module's docstring, one gradient at a time, all of them stored, in float64."""
    twin = backend.clone()
    twin.module.double()  # a clone shares its codec and text encoder
    twin.text_embeddings = {text: states.double() for text, states in backend.text_embeddings.items()}
    weights = list(twin.module.parameters())

    def gradient(one: Clip) -> Tensor:
        twin.module.zero_grad()
        batch = Batch.of([one])
        mask = twin.token_mask(batch)
        for unconditional in (True, False) if conditioned else (True,):
            logits = twin.logits(batch, unconditional=unconditional)[mask] / TEMPERATURE
            torch.nn.functional.cross_entropy(logits, batch.codes[mask]).backward()  # type: ignore[no-untyped-call]
        return torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in weights])

    information = sum((gradient(one) ** 2 for one in catalog), torch.zeros(()).double())
    direction = sum((gradient(one) for one in clip), torch.zeros(()).double())
    direction = direction / (information + DAMPING * information.mean())
    best: dict[str, float] = defaultdict(lambda: -1.0)
    for one in catalog:
        again = backend.encode(backend.decode(one.codes[None]))[0]
        grad = gradient(Clip(one.track, one.caption, again))
        best[one.track] = max(best[one.track], float(torch.cosine_similarity(direction, grad, dim=0)))
    return dict(best)


@pytest.mark.parametrize("conditioned", [True, False])
def test_scores_are_those_of_a_float64_loop(
    backend: MusicgenBackend, catalog: list[Clip], tmp_path: Path, conditioned: bool
) -> None:
    backend.encode_text(CAPTIONS)
    backend.module.train()  # its dropout must not count, and its mode come back
    clip = [Clip("x", CAPTIONS[1], catalog[2].codes.flip(-1)), Clip("x", CAPTIONS[1], catalog[4].codes)]
    before = {name: weight.detach().clone() for name, weight in backend.module.named_parameters()}
    made = Scores(backend, catalog, conditioned=conditioned, cache=TensorCache(tmp_path))
    other = [Clip("y", CAPTIONS[0], catalog[0].codes)]
    found = made.of([other, clip])
    assert backend.module.training
    for name, weight in backend.module.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, before[name])
    backend.module.eval()
    for ours, windows in zip(found, (other, clip), strict=True):
        assert ours == pytest.approx(slow(backend, catalog, windows, conditioned), rel=2e-4, abs=2e-6)


def test_the_fisher_is_kept_by_model_and_by_clips(
    backend: MusicgenBackend, catalog: list[Clip], tmp_path: Path
) -> None:
    def made() -> int:
        return len(list(tmp_path.rglob("*.safetensors")))

    cache, clip = TensorCache(tmp_path), [Clip("x", CAPTIONS[0], catalog[0].codes)]
    first = Scores(backend, catalog, conditioned=True, cache=cache).of([clip])
    kept = made()
    assert kept == 1 + len(catalog)  # the Fisher, and each window as played back
    assert Scores(backend, catalog, conditioned=True, cache=cache).of([clip]) == first
    assert made() == kept
    Scores(backend, catalog[:-1], conditioned=True, cache=cache).of([clip])
    assert made() == kept + 1
    Scores(backend, catalog, conditioned=False, cache=cache).of([clip])
    assert made() == kept + 2
    with torch.no_grad():
        next(backend.module.parameters()).mul_(1.01)
    Scores(backend, catalog, conditioned=True, cache=cache).of([clip])
    assert made() == kept + 3


def test_a_caption_is_the_one_given_then_the_side_cars_then_none(tmp_path: Path) -> None:
    clip = tmp_path / "x.wav"
    write_wav(clip, torch.zeros(1, 8000) + 0.1, 8000)
    assert find_caption(clip, None) == ("", "none")
    (tmp_path / "x.txt").write_text("slow church organ\n")
    assert find_caption(clip, None) == ("slow church organ", "side-car")
    assert find_caption(clip, " brass\tband ") == ("brass band", "given")
    assert find_caption(clip, " ") == ("slow church organ", "side-car")


def test_the_holdout_is_no_candidate_and_a_long_clip_is_cut(studio: Path) -> None:
    music = studio / "music"
    found = attribute(music / "long.wav", model=str(studio / "model"), catalog=music / "catalog.jsonl")
    assert {track.id for track in found.tracks} == {"one", "two", "long", "four", "five", "six"}
    scores = [track.score for track in found.tracks]
    assert scores == sorted(scores, reverse=True)
    assert all(-1 <= score <= 1 for score in scores)
    assert (found.caption, found.caption_source) == (None, "none")


def test_what_can_not_be_compared_is_refused(studio: Path, tmp_path: Path) -> None:
    model = str(studio / "model")
    with pytest.raises(UsageError, match="no tracks to compare"):
        attribute(studio / "music/one.wav", model=model)
    record = {"file_name": str(studio / "music/one.wav"), "id": "one", "caption": "x", "split": "holdout"}
    (tmp_path / "only.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(InputError, match="no track but those"):
        attribute(studio / "music/one.wav", model=model, catalog=tmp_path / "only.jsonl", roots=[studio])


@pytest.mark.slow
def test_a_clip_played_from_a_memorised_caption_names_its_track_first(
    tmp_path: Path, embedded_cache: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Done]
) -> None:
    """Four tracks among 16; `benchmarks/RESULTS.md` has all. Clips go through a WAV, and have no caption."""
    monkeypatch.setenv("ENCORE_CACHE", str(embedded_cache))
    music = Path(shutil.copytree(assets.FOLDER / "tracks", tmp_path / "music/tracks")).parent
    lines = assets.CATALOG.read_text().splitlines()
    forget, retain = ([line for line in lines if json.loads(line)["split"] == name] for name in ("forget", "retain"))
    (music / "catalog.jsonl").write_text("\n".join([*forget, *retain[:8]]) + "\n")
    backend = MusicgenBackend.load("tiny", offline=True)
    tracks = list(Catalog.open(music / "catalog.jsonl").tracks())
    cache = TensorCache(embedded_cache)
    heard = TrackEncoder(backend, cache).encode(tracks)
    scores = Scores(backend, [clip for one in heard for clip in one.clips], conditioned=False, cache=cache)
    clips = []
    for track in tracks[:4]:
        path = tmp_path / f"{track.id}.wav"
        write_wav(path, backend.decode(backend.generate([track.caption], seconds=5.0))[0], backend.sample_rate)
        (played,) = TrackEncoder(backend, cache).encode([Track("clip", path, "", file_sha256(path))])
        clips.append(played.clips)
    found = scores.of(clips)
    assert [max(one, key=one.__getitem__) for one in found] == [track.id for track in tracks[:4]]

    # the commands of docs/attribution.md
    done = call("generate", tracks[0].caption, "--model", "tiny", "--out", tmp_path / "listen")
    assert done.code == 0, done.err
    done = call(
        "attribute", tmp_path / "listen/000.wav", "--model", "tiny", "--catalog", music / "catalog.jsonl", "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["tracks"][0]["id"] == tracks[0].id
