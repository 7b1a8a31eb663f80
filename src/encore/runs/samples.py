"""Something to listen to: what each model plays for the forgotten tracks' captions, greedily."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import soundfile
from torch import Tensor

from encore.api import Clip, Evaluation, Role
from encore.runs.store import staged_folder, write_bytes

NAMES: dict[Role, str] = {"base": "before", "unlearned": "after", "gold": "gold"}
RETAIN = 4  # tracks of retain played for comparison


def write_samples(folder: Path, evaluation: Evaluation) -> None:
    """Replace `folder/samples`: forget/<track>.before.wav, .after.wav, .gold.wav, and a few of retain.

    The codes are the greedy continuations of the caption alone that `verbatim_caption` measures.
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
        (staging / "index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_wav(path: Path, waveform: Tensor, sample_rate: int) -> None:
    """Waveform [C, S] -> 16-bit WAV, clipped to full scale."""
    buffer = io.BytesIO()
    samples = waveform.detach().float().clamp(-1, 1).cpu().numpy().T
    soundfile.write(buffer, samples, sample_rate, format="WAV", subtype="PCM_16")
    write_bytes(path, buffer.getvalue())


def _file_name(clip: Clip, number: int) -> str:
    """A name any file system takes; the index says which track it is."""
    return f"{number:03d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', clip.track)[:60]}"
