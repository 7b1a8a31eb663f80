"""Audio samples: each model's generations for the forget tracks' captions, and those most similar to the tracks."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
from torch import Tensor

from encore.api import Clip, Evaluation, Result, Role
from encore.metrics.memorization.generations import caption_generations
from encore.store.run_folder import staged_folder, write_bytes

NAMES: dict[Role, str] = {"base": "before", "unlearned": "after", "gold": "gold"}
RETAIN = 4  # retain tracks, for comparison
SIMILAR = "similar"
KINDS = ("chroma", "melody", "onset")  # of similarity: harmony, melody, rhythm


def write_samples(folder: Path, evaluation: Evaluation, results: Sequence[Result] = ()) -> None:
    """Replace `folder/samples`: forget/<track>.before.wav, .after.wav, .gold.wav, and a few of retain.

    These are the greedy generations for the caption alone that `verbatim_caption` measures. The generations that
    `results` name as most similar to a track (`similarity_chroma`, `_melody`, `_onset`) are written as
    similar/<number>-<track>.after.wav.
    """
    index = []
    with staged_folder(folder / "samples") as staging:
        for name, members in evaluation.clips.items():
            if name == "holdout" or not members:
                continue
            (staging / name).mkdir()
            for number, clip in list(enumerate(members))[: RETAIN if name == "retain" else None]:
                for role in (role for role in NAMES if role in evaluation.models):
                    backend = evaluation.models[role]
                    codes = evaluation.continuations(role, name, 0)[number]
                    path = staging / name / f"{_file_name(clip, number)}.{NAMES[role]}.wav"
                    write_wav(path, backend.decode(codes[None].to(backend.device))[0], backend.sample_rate)
                    index.append({"file": f"{name}/{path.name}", "track": clip.track, "caption": clip.caption})
        index += _most_similar(staging / SIMILAR, evaluation, results)
        (staging / "index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _most_similar(folder: Path, evaluation: Evaluation, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Write the unlearned model's generations that are most similar to their track; yields their index entries.

    With several generations per caption, all that share the named variant are written, numbered.
    """
    named: dict[tuple[str, str], list[str]] = {}  # (track, variant) -> kinds of similarity
    for row in results:
        kind, best = row.metric.removeprefix("similarity_"), row.details.get("best")
        if (row.model, row.set) == ("unlearned", "forget") and kind in KINDS and isinstance(best, Mapping):
            for track, variant in best.items():
                named.setdefault((track, variant), []).append(kind)
    if not named:
        return
    folder.mkdir()
    backend = evaluation.models["unlearned"]
    generations = caption_generations(evaluation, "unlearned", "forget")
    totals, seen = Counter((item.track, item.variant) for item in generations), Counter[tuple[str, str]]()
    for number, generation in enumerate(generations):
        key = generation.track, generation.variant
        seen[key] += 1
        if kinds := named.get(key):
            clip = next(clip for clip in evaluation.clips["forget"] if clip.track == generation.track)
            path = folder / f"{_file_name(clip, number)}.{NAMES['unlearned']}.wav"
            write_wav(path, backend.decode(generation.codes[None].to(backend.device))[0], backend.sample_rate)
            several = f", {seen[key]} of {totals[key]}" if totals[key] > 1 else ""
            yield {
                "file": f"{SIMILAR}/{path.name}", "track": generation.track, "caption": clip.caption,
                "variant": generation.variant + several, "kinds": kinds,
            }  # fmt: skip


def write_wav(path: Path, waveform: Tensor, sample_rate: int) -> None:
    """Waveform [C, S] -> 16-bit WAV, clipped to full scale."""
    buffer = io.BytesIO()
    samples = waveform.detach().float().clamp(-1, 1).cpu().numpy().T
    soundfile.write(buffer, samples, sample_rate, format="WAV", subtype="PCM_16")
    write_bytes(path, buffer.getvalue())


def _file_name(clip: Clip, number: int) -> str:
    """A portable file name; the index has the track's id."""
    return f"{number:03d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', clip.track)[:60]}"
