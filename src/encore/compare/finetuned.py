"""The preset `finetuned`: a bench on models of its own, which it trains with the recipe of `encore train`.

TOFU (Maini et al., arXiv 2401.06121) and MUSE (Shi et al., arXiv 2407.06460) test real models so: a pretrained model is
fine-tuned on forget and retain tracks (base), and by the same recipe on the retain tracks alone (gold, and gold2 with
another seed). Each model is a run folder of the bench, beside those of the methods: `base/seed-0`, `gold/seed-0` and
`gold/seed-1`. With lists (`--forget-sizes`, `--list`) there is one base, and each list has golds under its name, which
are trained on all of base's tracks but the list's; lists of the same tracks share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from encore import assets
from encore.compare.plan import Plan, Pretrained, Trial, check_same_tracks, list_tracks
from encore.data.splits import SELF, Tracks
from encore.errors import GateError, UsageError
from encore.reporter import Reporter
from encore.settings import resolve_options
from encore.store import schemas
from encore.store.run_folder import read_json
from encore.unlearn.config import TrainConfig
from encore.unlearn.records import check_other_run
from encore.unlearn.train import Chosen, check_memorised, prepare, train
from encore.unlearn.training import NAME, RESOLVED, Training

BASE, GOLD = "base", "gold"  # in place of a method's name
GOLD_SEEDS = {"gold": 0, "gold2": 1}


def finetuned(plan: Plan, out: Path, options: Sequence[str] = ()) -> Plan:
    """The plan on a base that the bench trains from the plan's model; `with_golds` adds the golds.

    Args:
        plan: its model is the pretrained one.
        out: folder of the bench.
        options: of the recipe (`encore.unlearn.training`), as "key=value".

    Raises:
        UsageError: the plan has golds, retain that nothing can be trained on, a method or list of a reserved name, or
            the recipe has no such option.
    """
    if plan.golds or plan.list_golds:
        raise UsageError("the preset finetuned trains its own golds", "leave --gold and --gold2 out")
    if plan.retain == SELF:
        raise UsageError("the preset finetuned trains on the tracks to keep", "give --retain LIST or --catalog FILE")
    if reserved := {BASE, GOLD} & (plan.methods.keys() | plan.lists.keys()):
        raise UsageError(f"with the preset finetuned, {min(reserved)} is a folder of the bench", "choose another name")
    embedded = assets.model_folder(plan.model) is not None
    laid = plan.model_copy(
        update={
            "pretrained": Pretrained(model=plan.model, revision=plan.revision, options=tuple(options)),
            "model": str(out / Trial(BASE, 0).name), "revision": None,
            "tracks": plan.tracks or (str(assets.FORGET) if embedded else None),
            "catalog": plan.catalog or (str(assets.CATALOG) if embedded else None),
        }
    )  # fmt: skip
    _recipe(laid)
    return laid


def with_golds(plan: Plan, out: Path, whole: Tracks) -> Plan:
    """The plan with the golds of its lists.

    Lists of the same tracks have the same golds: those that one of them has in the bench's folder, else of the first,
    where all of `tracks` come before the lists.

    Args:
        plan: as `finetuned` returns it.
        out: folder of the bench.
        whole: all tracks, see `encore.compare.plan.plan_tracks`.

    Raises:
        UsageError: a list leaves no track that its gold could be trained on.
    """
    tracks = {name: list_tracks(plan, out, name, whole) for name in ("", *plan.list_names)}
    if everything := [name for name, own in tracks.items() if not own.retain]:
        raise UsageError(
            f"the list {everything[0]} has all tracks, and its gold is trained on the others",
            "name fewer, or keep more",
        )
    contents = {name: frozenset(track.sha256 for track in own.forget) for name, own in tracks.items()}
    owners: dict[frozenset[str], str] = {}
    for name in sorted(contents, key=lambda name: not (out / Trial(GOLD, 0, list=name).name).exists()):
        owners.setdefault(contents[name], name)
    golds = {
        name: {role: str(out / Trial(GOLD, seed, list=owners[own]).name) for role, seed in GOLD_SEEDS.items()}
        for name, own in contents.items()
    }
    needed = {trial.list for trial in plan.trials}
    return plan.model_copy(
        update={
            "golds": golds[""] if "" in needed else {}, "list_golds": {name: golds[name] for name in plan.list_names}
        }
    )  # fmt: skip


def model_trials(plan: Plan) -> list[Trial]:
    """The models that a bench trains, base first; none without the preset."""
    if plan.pretrained is None:
        return []
    out = Path(plan.model).parents[1]
    folders = {folder for golds in (plan.golds, *plan.list_golds.values()) for folder in golds.values()}
    trials = (Trial(GOLD, seed, list=name) for name in ("", *plan.list_names) for seed in GOLD_SEEDS.values())
    return [Trial(BASE, 0), *(trial for trial in trials if str(out / trial.name) in folders)]


def train_model(plan: Plan, trial: Trial, out: Path, whole: Tracks, reporter: Reporter) -> None:
    """Train one of `model_trials`, or go on with it.

    Args:
        plan: of the bench in `out`.
        trial: the model.
        out: folder of the bench.
        whole: all tracks, see `encore.compare.plan.plan_tracks`.
        reporter: receives progress.

    Raises:
        UsageError: the folder has another run.
        EncoreError: see `encore.unlearn.train.train`.
    """
    assert plan.pretrained is not None  # else there is no such trial
    folder, pretrained = out / trial.name, plan.pretrained
    request = TrainConfig(
        tracks=Path(str(plan.tracks)), out=folder, model=pretrained.model, revision=pretrained.revision,
        offline=plan.offline, backend=plan.backend, catalog=Path(plan.catalog) if plan.catalog else None,
        roots=tuple(map(Path, plan.roots)), seed=trial.seed, device=plan.device, precision=plan.precision,
        resume=(folder / "request.json").exists(),
    )  # fmt: skip
    given = dict.fromkeys(item.partition("=")[0] for item in pretrained.options)
    prepared = prepare(request, _recipe(plan), _tracks(plan, trial, out, whole), reporter)
    train(prepared, dict.fromkeys(given, "cli"), reporter)


def untrained(plan: Plan, out: Path, whole: Tracks) -> list[Trial]:
    """The models that are not complete.

    Raises:
        UsageError: a complete one was trained by another recipe or on other tracks.
    """
    left = []
    for trial in model_trials(plan):
        if not (out / trial.name / "run.json").exists():
            left.append(trial)
            continue
        request = out / trial.name / "request.json"
        options = {name: value for name, value in _options(_recipe(plan)).items() if name not in RESOLVED}
        before = read_json(request, schemas.Request)
        settings: dict[str, Any] = {"method": NAME, "seed": trial.seed}
        if plan.precision != "auto":  # what auto chose follows from the model, which is not loaded
            settings["precision"] = plan.precision
        check_other_run(request, settings)
        if {name: before["options"].get(name) for name in options} != options:
            raise UsageError(f"{out / trial.name} was trained by another recipe", "choose another --out")
        chosen = _tracks(plan, trial, out, whole)
        check_same_tracks(out / trial.name, before, {"retain": chosen.trained, "left_out": chosen.left_out})
    return left


def check_models(plan: Plan, out: Path) -> list[str]:
    """Check that the models are what the bench needs.

    Returns:
        A sentence on each gold that generates tracks verbatim that it was not trained on.

    Raises:
        GateError: a model has not memorised its tracks.
    """
    notes = []
    for trial in model_trials(plan):
        run: Any = read_json(out / trial.name / "run.json", schemas.Run)
        try:
            check_memorised(run)
        except GateError as error:
            raise GateError(
                f"{trial.name}: {error.message}", "choose another --out, and allow more: -o train.steps=N"
            ) from error
        known = run["outcome"].get("left_out", {}).get("memorised", 0)
        if known:
            notes.append(
                f"{trial.name} has memorised {known} of the tracks that it was not trained on, so the pretrained model "
                "knew them; -o train.from_scratch=true trains from new weights"
            )
    return notes


def _recipe(plan: Plan) -> Training:
    assert plan.pretrained is not None
    return Training(resolve_options(Training.Options, environ={}, assignments=plan.pretrained.options).options)


def _options(method: Training) -> dict[str, Any]:
    return method.options.model_dump(mode="json")


def _tracks(plan: Plan, trial: Trial, out: Path, whole: Tracks) -> Chosen:
    tracks = list_tracks(plan, out, trial.list, whole)
    if trial.method == BASE:
        return Chosen((*tracks.forget, *tracks.retain))
    return Chosen(tuple(tracks.retain), tracks.forget)
