"""`encore check`: which tracks a model has memorised or was trained on, as far as tests show."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from encore import __version__, plugins
from encore.api import Backend, Role
from encore.check.config import CheckConfig
from encore.check.evidence import SAMPLES, Evidence
from encore.check.music import select_music
from encore.errors import EncoreError
from encore.report.check_page import write_check_page
from encore.reporter import Reporter
from encore.store.dates import utc_now
from encore.store.environment import hardware, pick_device, versions
from encore.store.model_name import check_golds, model_name, model_sha256
from encore.store.run_folder import preflight, write_json, writing

JSON = "check.json"
SAMPLE = re.compile(r"\d{3}\.wav")  # name of a file in the folder of samples


def check_tracks(config: CheckConfig, out: Path, reporter: Reporter | None = None) -> dict[str, Any]:
    """Check tracks, and write `check.json`, `check.html` and WAV files of generations that reproduce a track.

    Args:
        config: the settings.
        out: folder for the files, made where it is missing; files of an earlier check are replaced.
        reporter: receives progress.

    Returns:
        The content of `check.json`.

    Raises:
        InputError: a list, folder or model can't be used, or no track of the list, or gold is the model itself.
        EncoreError: `out` can't be written or has a folder of samples that no check made, or a model's likelihood is
            not finite.
    """
    reporter, started = reporter or Reporter(), time.monotonic()
    _require_replaceable(out)
    device = pick_device(config.device)
    music = select_music(
        config.tracks, model=config.model, catalog=config.catalog, holdout=config.holdout, roots=config.roots,
        seed=config.seed, reporter=reporter,
    )  # fmt: skip
    with writing(out):  # before the work, not after it
        out.mkdir(parents=True, exist_ok=True)
    preflight(out, 0)
    family = plugins.backends().resolve(config.backend)
    models: dict[Role, Backend] = {
        "base": family.load(
            model_name(config.model), revision=config.revision, offline=config.offline, device=device
        )
    }  # fmt: skip
    if config.gold:
        models["gold"] = family.load(model_name(config.gold), offline=config.offline, device=device)
        check_golds({"the model": model_sha256(models["base"]), "gold": model_sha256(models["gold"])})
    check = Evidence(config, music, models, reporter)
    result = check.result()
    result |= {
        "encore": __version__, "checked": utc_now(), "seconds": round(time.monotonic() - started, 1),
        "versions": versions(), "hardware": hardware(device),
    }  # fmt: skip
    check.write_samples(out / SAMPLES, result)
    write_json(out / JSON, result)
    write_check_page(result, out)
    return result


def _require_replaceable(out: Path) -> None:
    """Refuse a folder of samples that an earlier check has not made: it would be replaced."""
    samples = out / SAMPLES
    if not os.path.lexists(samples):
        return
    made = (out / JSON).is_file() and samples.is_dir() and not samples.is_symlink()
    if not made or not all(SAMPLE.fullmatch(file.name) for file in samples.iterdir()):
        raise EncoreError(f"{samples} would be replaced, and is not the samples of a check", "choose another --out")
