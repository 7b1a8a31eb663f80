"""One full evaluation of the embedded models, which takes minutes, for every test that looks at it.

Gold itself stands for the method: a perfect one.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections import defaultdict

import soundfile
import torch

from encore import assets
from encore.api import Backend, Clip, ClipSet, Result, Role
from encore.backends.musicgen import MusicgenBackend
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.tensor_cache import TensorCache

KEPT = tempfile.TemporaryDirectory(prefix="encore-embedded-")  # gold stands twice: the second time it is known
FRAMES = 160  # of each clip: a prompt, and a little more than the passage of 2 s that has to follow it
RETAIN = slice(8, 20)  # half of them, among which are artists of several
NAMES: dict[Role, str] = {"base": "tiny", "gold": "tiny-gold", "gold2": "tiny-gold2"}


@functools.cache
def evaluation() -> SharedEvaluation:
    """Models, clips, and what is computed of them once. Do not change them."""
    models: dict[Role, Backend] = {role: MusicgenBackend.load(name) for role, name in NAMES.items()}
    models["unlearned"] = models["gold"].clone()
    clips: dict[ClipSet, list[Clip]] = defaultdict(list)
    about = {}
    for line in assets.CATALOG.read_text().splitlines():
        track = json.loads(line)
        if track["split"] in ("forget", "retain", "holdout"):
            samples, _ = soundfile.read(assets.FOLDER / track["file_name"], dtype="float32")
            codes = models["base"].encode(torch.from_numpy(samples)[None, None])[0]
            clips[track["split"]].append(Clip(track["id"], track["caption"], codes[:, :FRAMES].contiguous()))
            about[track["id"]] = {"artist": track["artist"], "genre": track["genre"]}
    clips["retain"] = clips["retain"][RETAIN]
    return SharedEvaluation(
        models, dict(clips), track_metadata=about, embedder="latents,clap-tiny", cache=TensorCache(KEPT.name)
    )  # fmt: skip


@functools.cache
def rows() -> list[Result]:
    """Of all metrics, also those of the full set alone."""
    return measure(evaluation(), full=True)
