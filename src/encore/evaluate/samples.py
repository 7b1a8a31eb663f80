"""Something to listen to: what each model plays for the forgotten tracks' captions, and what is most like them."""

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
from encore.metrics.memorization.generations import plays
from encore.store.run_folder import staged_folder, write_bytes

NAMES: dict[Role, str] = {"base": "before", "unlearned": "after", "gold": "gold"}
RETAIN = 4  # tracks of retain played for comparison
ALIKE = "alike"
KINDS = ("chroma", "melody", "onset")  # of likeness: harmony, melody, rhythm


def write_samples(folder: Path, evaluation: Evaluation, results: Sequence[Result] = ()) -> None:
    """Replace `folder/samples`: forget/<track>.before.wav, .after.wav, .gold.wav, and a few of retain.

    The codes are the greedy continuations of the caption alone that `verbatim_caption` measures. Where `results` name
    the play that is most like a track (`likeness_chroma`, `_melody`, `_onset`), alike/<number>-<track>.after.wav is it.
    """
    index = []
    with staged_folder(folder / "samples") as staging:
        for name, chosen in evaluation.clips.items():
            if name == "holdout" or not chosen:
                continue
            (staging / name).mkdir()
            for number, clip in list(enumerate(chosen))[: RETAIN if name == "retain" else None]:
                for role in (role for role in NAMES if role in evaluation.models):
                    backend = evaluation.models[role]
                    codes = evaluation.continuations(role, name, 0)[number]
                    path = staging / name / f"{_file_name(clip, number)}.{NAMES[role]}.wav"
                    write_wav(path, backend.decode(codes[None].to(backend.device))[0], backend.sample_rate)
                    index.append({"file": f"{name}/{path.name}", "track": clip.track, "caption": clip.caption})
        index += _most_alike(staging / ALIKE, evaluation, results)
        (staging / "index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _most_alike(folder: Path, evaluation: Evaluation, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Write the unlearned model's plays that are most like their track, each once, and tell in what they are.

    Where the evaluation draws more than once, several plays have one name, and any of them is the one that is meant:
    all are written, numbered.
    """
    named: dict[tuple[str, str], list[str]] = {}  # track, asked how -> kinds of likeness
    for row in results:
        kind, best = row.metric.removeprefix("likeness_"), row.details.get("best")
        if (row.model, row.set) == ("unlearned", "forget") and kind in KINDS and isinstance(best, Mapping):
            for track, asked in best.items():
                named.setdefault((track, asked), []).append(kind)
    if not named:
        return
    folder.mkdir()
    backend = evaluation.models["unlearned"]
    played = plays(evaluation, "unlearned", "forget")
    alike, seen = Counter((play.track, play.asked) for play in played), Counter[tuple[str, str]]()
    for number, play in enumerate(played):
        seen[play.track, play.asked] += 1
        of = alike[play.track, play.asked]
        asked = play.asked + (f", {seen[play.track, play.asked]} of {of}" if of > 1 else "")
        kinds = named.get((play.track, play.asked))
        if kinds:
            clip = next(clip for clip in evaluation.clips["forget"] if clip.track == play.track)
            path = folder / f"{_file_name(clip, number)}.{NAMES['unlearned']}.wav"
            write_wav(path, backend.decode(play.codes[None].to(backend.device))[0], backend.sample_rate)
            yield {
                "file": f"{ALIKE}/{path.name}", "track": play.track, "caption": clip.caption, "asked": asked,
                "kinds": kinds,
            }  # fmt: skip


def write_wav(path: Path, waveform: Tensor, sample_rate: int) -> None:
    """Waveform [C, S] -> 16-bit WAV, clipped to full scale."""
    buffer = io.BytesIO()
    samples = waveform.detach().float().clamp(-1, 1).cpu().numpy().T
    soundfile.write(buffer, samples, sample_rate, format="WAV", subtype="PCM_16")
    write_bytes(path, buffer.getvalue())


def _file_name(clip: Clip, number: int) -> str:
    """A name any file system takes; the index says which track it is."""
    return f"{number:03d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', clip.track)[:60]}"
