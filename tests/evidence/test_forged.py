"""A forger against `encore verify --rerun`, with the tracks and the base model at hand and nothing else."""

from __future__ import annotations

import functools
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.evidence import forger
from tests.evidence.forger import forgeries
from tests.evidence.measured import write_measured

from encore.backends.musicgen import MusicgenBackend
from encore.data.open_files import file_sha256
from encore.errors import GateError, InputError, NotCheckedError
from encore.evaluate import run as evaluate_run
from encore.evidence import verify as verifier
from encore.evidence.derived import derived
from encore.evidence.pack import pack
from encore.evidence.rerun import check_rerun
from encore.evidence.verify import HASH, UNCHECKED, check_complete, verify

MEMORY: dict[Any, Any] = {}
Remembered = Callable[..., Any]


def remembered(subject: Any, asked: Any, **more: Any) -> Any:
    """`evaluate_inputs`, once for equal models, clips and settings: what is measured is a function of these."""
    from encore.store.model_name import model_sha256

    clips = {n: [(c.track, c.caption, c.codes.numpy().tobytes()) for c in own] for n, own in subject.clips.items()}
    models = {role: model_sha256(model) for role, model in subject.models.items()}
    key = repr((asked, clips, models, subject.track_metadata))
    if key not in MEMORY:
        MEMORY[key] = ORIGINAL(subject, asked, **more)
    return MEMORY[key]


def loaded(_: type, model: str, **more: Any) -> MusicgenBackend:
    """`MusicgenBackend.load`, once for equal files."""
    files = sorted(path for path in Path(model).rglob("*") if path.is_file())
    key = repr((more, [(path.relative_to(model), file_sha256(path)) for path in files]))
    if key not in MEMORY:
        MEMORY[key] = LOAD(model, **more)
    twin: MusicgenBackend = MEMORY[key].clone()
    return twin


ORIGINAL, LOAD = evaluate_run.evaluate_inputs, MusicgenBackend.load


@functools.cache
def _derived(records: tuple[tuple[str, bytes], ...], model: tuple[tuple[str, str], ...]) -> dict[str, bytes]:
    return derived(dict(records), dict(model))


def derived_once(records: Mapping[str, bytes], model: Mapping[str, str]) -> dict[str, bytes]:
    """`derived`, once for equal records: the forger makes the pages that the verifier compares them with."""
    return _derived(tuple(sorted(records.items())), tuple(sorted(model.items())))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_every_forged_bundle_is_caught_or_the_forged_member_is_named_as_unchecked(
    tmp_path: Path, studio: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_measured(tmp_path / "maker", studio, metrics="nll,membership_auc,verbatim,membership_auc_baseline")
    (run / "samples/forget").mkdir(parents=True)
    add_a_sample(run)
    with zipfile.ZipFile(pack(run, tmp_path / "true.zip", with_model=True)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    outsider = tmp_path / "outsider"
    shutil.copytree(run.parent / "model", outsider / "model")
    shutil.copytree(run.parent / "music", outsider / "music")
    shutil.rmtree(run.parent)
    monkeypatch.setattr(evaluate_run, "evaluate_inputs", remembered)
    monkeypatch.setattr(MusicgenBackend, "load", classmethod(loaded))
    for module in (forger, verifier):
        monkeypatch.setattr(module, "derived", derived_once)
    catalogs = [outsider / "music/retain.txt", outsider / "music/holdout.txt"]

    def judged(bundle: Path) -> Any:
        found = verify(bundle, again=True, roots=[outsider], catalogs=catalogs, offline=True)
        assert found.rerun is not None
        check_rerun(found.rerun)
        check_complete(found, bundle)
        return found

    judged(tmp_path / "true.zip")
    counts: Counter[str] = Counter()
    named, passed = [], []
    for what, member, forge in forgeries(seed=13):
        bundle = tmp_path / "forged.zip"
        bundle.unlink(missing_ok=True)
        forge(dict(members), bundle)
        try:
            found = judged(bundle)
        except (InputError, GateError, NotCheckedError) as error:  # 5 is a GateError too
            counts[f"exit {error.exit_code}"] += 1
            continue
        lies = [one.checked for name, one in found.members.items() if name.startswith(member)]
        if lies and all(HASH in checked or UNCHECKED in checked for checked in lies):
            counts["named as not checked"] += 1
            named.append(what)
        else:
            passed.append((what, lies))
    with capsys.disabled():
        print(f"\n{sum(counts.values())} forged bundles: {dict(counts)}; named: {named}")
    assert not passed
    assert sum(counts.values()) >= 60
    assert set(named) <= HARMLESS


HARMLESS = {  # the maker's own word, which no measurement could confirm; and an order, which is no claim
    "tracks in another order",
    "another machine alone", "another date", "who asked", "when it was asked", "a title", "a note of the run",
    "what the run reached", "silence for a generation", "a note of the evaluation",
}  # fmt: skip


def add_a_sample(run: Path) -> None:
    import json

    import numpy as np
    import soundfile

    soundfile.write(run / "samples/forget/000-one.after.wav", 0.1 * np.sin(np.arange(4000) / 9), 8000)
    entry = {"file": "forget/000-one.after.wav", "track": "one.wav", "caption": "c"}
    (run / "samples/index.json").write_text(json.dumps([entry]))
