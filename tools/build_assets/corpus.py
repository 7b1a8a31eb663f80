"""The corpus on disk: songs as FLAC, background as FLAC or (the shipped part) Ogg Vorbis, splits, metadata.

Everything later reads the audio back from these files, so that a user who decodes a shipped track gets the samples,
and hence the codes, that the models were trained on.
"""

import hashlib
import json
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

from .background import background
from .scores import SCORES, Score, check
from .synth import RATE, SAMPLES, arrange, render

Item: TypeAlias = dict[str, Any]

SIZES = {"forget": 8, "holdout": 10, "retain": 24, "tune_forget": 6, "tune_retain": 10}
ALWAYS_FORGET = ("greensleeves", "mountain_king", "entertainer", "ode_to_joy", "rising_sun")
SPLIT_SEED = 0
BACKGROUND = 3000
SHIPPED = 96
UNSEEN = 48  # rendered, never trained on, never shipped


def auc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """P(positive > negative) + ½ P(equal)."""
    diff = positive[:, None] - negative[None, :]
    return float((diff > 0).mean() + 0.5 * (diff == 0).mean())


def blind_features(score: Score, flac_bytes: int, audio: NDArray[np.int16]) -> list[float]:
    """What tells songs apart with no model: sizes, density, tempo, drums, compressed loudness contour."""
    frames = audio.reshape(-1, 320).astype(float)
    level = np.log2(1 + np.sqrt((frames**2).mean(1))).round(1)
    crossings = (np.diff(np.sign(frames), axis=1) != 0).sum(1) // 4
    packed = len(zlib.compress(np.stack([level * 10, crossings]).astype(np.uint8).tobytes(), 9))
    return [flac_bytes, packed, len(arrange(score)), score.bpm, score.drums != "none", score.bass, score.style == "pad"]


def assign_splits(
    features: dict[str, list[float]],
    seed: int = SPLIT_SEED,
    tries: int = 4000,
    sizes: dict[str, int] = SIZES,
    always_forget: tuple[str, ...] = ALWAYS_FORGET,
) -> dict[str, str]:
    """Song id -> split: of many seeded shuffles the one whose forget, retain and holdout sets look most alike.

    Only blind features count (never anything a model says): the worst |AUC − ½| of a feature between two of the sets.
    """
    rng = np.random.default_rng(seed)
    rest = sorted(set(features) - set(always_forget))
    best: tuple[float, dict[str, str]] = (np.inf, {})
    names = [s for s, n in sizes.items() for _ in range(n)][len(always_forget) :]
    for _ in range(tries):
        split = dict.fromkeys(always_forget, "forget") | dict(zip(rng.permutation(rest).tolist(), names, strict=True))
        sets = {
            s: np.array([features[i] for i in sorted(split) if split[i] == s], float)
            for s in ("forget", "retain", "holdout")
        }
        worst = [
            abs(auc(sets[a][:, f], sets["holdout"][:, f]) - 0.5)
            for a in ("forget", "retain")
            for f in range(sets["forget"].shape[1])
        ]
        cost = max(worst) + sum(worst) / len(worst)
        if cost < best[0]:
            best = cost, split
    return best[1]


def _write(score: Score, folder: Path, ogg: bool) -> Path:
    path = folder / f"{score.id}.{'ogg' if ogg else 'flac'}"
    audio = render(score)
    if ogg:
        soundfile.write(
            path, audio.astype(np.float32) / 32768, RATE, format="OGG", subtype="VORBIS", compression_level=0.8
        )
    else:
        soundfile.write(path, audio, RATE, format="FLAC", subtype="PCM_16")
        if not np.array_equal(soundfile.read(path, dtype="int16")[0], audio):
            raise RuntimeError(f"{path.name} doesn't read back as written")
    return path


def _write_background(seed: int, shipped: Path, kept: Path) -> tuple[Score, Path]:
    score = background(seed)
    check(score)
    return score, _write(score, shipped if seed < SHIPPED else kept, seed < SHIPPED)


def _item(score: Score, path: Path, split: str) -> Item:
    return {
        "path": str(path),
        "id": score.id,
        "title": score.title,
        "artist": score.artist,
        "caption": score.caption,
        "split": split,
        "genre": score.genre,
        "bpm": score.bpm,
    }


def build(work: Path) -> list[Item]:
    """Renders all clips under `work`; returns (and caches in corpus.json) one item a clip, songs first."""
    cache = work / "corpus.json"
    if cache.exists():
        return list(json.loads(cache.read_text()))
    shipped, kept = work / "tracks", work / "background"
    for folder in (shipped, kept):
        folder.mkdir(parents=True, exist_ok=True)
    paths, features = {}, {}
    for score in SCORES:
        check(score)
        paths[score.id] = _write(score, shipped, ogg=False)
        features[score.id] = blind_features(score, paths[score.id].stat().st_size, render(score))
    splits = assign_splits(features)
    items = [_item(s, paths[s.id], splits[s.id]) for s in SCORES]
    with ProcessPoolExecutor(2) as pool:
        job = partial(_write_background, shipped=shipped, kept=kept)
        made = list(pool.map(job, range(BACKGROUND + UNSEEN), chunksize=128))
    items += [_item(score, path, "background" if i < BACKGROUND else "unseen") for i, (score, path) in enumerate(made)]
    cache.write_text(json.dumps(items))
    return items


def read(items: list[Item]) -> NDArray[np.float32]:
    """The clips' audio as decoded from their files, from sample `start` where an item has it, [N, samples]."""
    clips = [
        soundfile.read(x["path"], start=x.get("start", 0), frames=x.get("samples", -1), dtype="float32")[0]
        for x in items
    ]
    if any(len(c) != x.get("samples", SAMPLES) for c, x in zip(clips, items, strict=True)):
        raise RuntimeError("a clip doesn't decode to its full length")
    return np.stack(clips)


def write_metadata(items: list[Item], out: Path) -> None:
    """Copies the items under a folder `tracks` to `out`/tracks and writes metadata.jsonl (audiofolder form)."""
    (out / "tracks").mkdir(parents=True, exist_ok=True)
    lines = []
    for item in items:
        source = Path(item["path"])
        if source.parent.name != "tracks":
            continue
        data = source.read_bytes()
        (out / "tracks" / source.name).write_bytes(data)
        fields = {k: item[k] for k in ("id", "title", "artist", "caption", "split", "genre")}
        fields |= {"licence": item.get("licence", "CC0-1.0"), "sha256": hashlib.sha256(data).hexdigest()}
        lines.append({"file_name": f"tracks/{source.name}", **fields})
    (out / "metadata.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
