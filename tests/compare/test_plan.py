"""What a bench is, on disk; what it refuses."""

from __future__ import annotations

import json

import pytest

from encore import assets
from encore.compare.plan import (
    Plan,
    Trial,
    changed_measurement,
    check_plan,
    is_measured,
    plan_tracks,
    read_plan,
    runs,
    write_plan,
)
from encore.compare.presets import PRESETS, preset
from encore.data.catalog import Catalog
from encore.data.splits import Tracks
from encore.data.tracks import Track
from encore.errors import InputError, UnknownNameError, UsageError
from encore.evaluate.run import EvalConfig
from encore.plugins import installed, metrics


def test_the_grid_has_every_method_before_the_next_seed():
    trials = Plan(methods={"ga": (), "rl": ()}, seeds=(0, 1), requests=(1, 2)).trials
    assert [trial.name for trial in trials] == [
        "ga/seed-0", "rl/seed-0", "ga/seed-0-requests-2", "rl/seed-0-requests-2",
        "ga/seed-1", "rl/seed-1", "ga/seed-1-requests-2", "rl/seed-1-requests-2",
    ]  # fmt: skip


def test_a_plan_comes_back_from_its_folder(tmp_path):
    plan = Plan(methods={"npo": ("beta=0.5",)}, seeds=(0, 1), metrics=("nll",), golds={"gold": "x"})
    write_plan(plan, tmp_path / "b")
    assert read_plan(tmp_path / "b") == plan


def test_without_a_list_it_is_the_forget_split_of_the_embedded_catalogue(tmp_path):
    tracks = check_plan(Plan(methods={"ga": ()}, seeds=(0,)), tmp_path / "b")
    split = Catalog.open(assets.CATALOG).tracks(split="forget")
    assert [track.id for track in tracks.forget] == [track.id for track in split]
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "golds", [{"golds": {"gold": "./no"}}, {"forget_sizes": (3,), "list_golds": {"3": {"gold": "/no"}}}]
)
def test_a_gold_that_is_not_there_is_refused_before_anything_is_trained(tmp_path, golds):
    with pytest.raises(InputError, match=r"there is no model '\.?/no'"):
        check_plan(Plan(methods={"ga": ()}, seeds=(0,), **golds), tmp_path / "b")


@pytest.mark.parametrize(
    ("golds", "words"),
    [
        ({"golds": {"gold": "tiny"}}, "gold has the same weights as the model"),
        ({"golds": {"gold": "tiny-gold", "gold2": "tiny-gold"}}, "gold2 has the same weights as gold"),
        ({"forget_sizes": (3,), "list_golds": {"3": {"gold": "tiny"}}}, "gold has the same weights as the model"),
    ],
)
def test_a_gold_that_is_another_of_the_models_is_refused_before_anything_is_trained(tmp_path, golds, words):
    with pytest.raises(InputError, match=words):
        check_plan(Plan(methods={"ga": ()}, seeds=(0,), **golds), tmp_path / "b")


def test_methods_seeds_and_measures_may_change_and_what_is_compared_may_not(tmp_path):
    plan = Plan(methods={"ga": ()}, seeds=(0,))
    write_plan(plan, tmp_path)
    write_plan(plan.model_copy(update={"seeds": (0, 1), "methods": {"rl": ()}, "full": True}), tmp_path)
    with pytest.raises(UsageError, match="holds another bench: retain None -> /x"):
        check_plan(plan.model_copy(update={"retain": "/x"}), tmp_path)
    assert read_plan(tmp_path).full


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        check_plan(Plan(methods={"ga": ()}, seeds=(0,)), tmp_path)
    with pytest.raises(InputError, match="there is no bench in"):
        read_plan(tmp_path)
    (tmp_path / "bench.json").write_text('{"schema": 1, "methods": 3}')
    with pytest.raises(InputError, match="is incomplete or was written by another version"):
        read_plan(tmp_path)


def test_a_plan_that_was_lost_can_be_written_anew_beside_what_was_done(tmp_path):
    plan = Plan(methods={"ga": ()}, seeds=(0,))
    write_plan(plan, tmp_path)
    for name in ("leaderboard.md", "leaderboard.csv", "leaderboard.json", "pareto.svg"):
        (tmp_path / name).write_text("")
    (tmp_path / "bench.json").write_text("{")
    with pytest.raises(InputError) as caught:
        check_plan(plan, tmp_path)
    assert "remove it" in str(caught.value.hint)
    (tmp_path / "bench.json").unlink()
    assert check_plan(plan, tmp_path)


def test_what_is_measured_otherwise_is_named():
    plan = Plan(methods={"ga": ()}, seeds=(0,), metrics=("nll",))
    assert changed_measurement(plan, plan) == []
    other = plan.model_copy(update={"metrics": None, "seeds": (0, 1)})
    assert changed_measurement(other, plan) == ["metrics nll -> by default"]


def test_another_model_needs_a_list(tmp_path):
    with pytest.raises(UsageError, match="--tracks is missing"):
        check_plan(Plan(methods={"ga": ()}, seeds=(0,), model="facebook/musicgen-small"), tmp_path / "b")


def test_more_requests_than_tracks_are_refused(tmp_path):
    with pytest.raises(UsageError, match="8 tracks can't be split into 9 requests"):
        check_plan(Plan(methods={"ga": ()}, seeds=(0,), requests=(9,)), tmp_path)


@pytest.mark.parametrize(
    ("retain", "source"), [(None, "the catalogue without the list"), ("/list", "the list"), (None, "")]
)
def test_the_runs_of_several_requests_cover_the_list_in_its_order(tmp_path, retain, source):
    tracks = [Track(f"t{i}", None, "", f"{i:064d}") for i in range(7)]
    whole = Tracks(tuple(tracks[:5]), tuple(tracks[5:]) if source else (), (), retain_source=source)
    for requests in (1, 2, 3, 5):
        plan = Plan(methods={"ga": ()}, seeds=(0,), requests=(requests,), retain=retain)
        made = [own for _, own in runs(plan, plan.trials[0], tmp_path, whole)]
        assert len(made) == requests
        assert [track for part in made for track in part.forget] == tracks[:5]
        assert all(part.forget for part in made)
        for number, part in enumerate(made, 1):
            later = [track for other in made[number:] for track in other.forget]
            asked_for_later = later if source == "the catalogue without the list" else []
            assert list(part.retain) == [*whole.retain, *asked_for_later]


def test_the_embedded_golds_belong_to_the_embedded_tracks(tmp_path):
    plan = Plan(methods={"ga": ()}, seeds=(0,))
    write_plan(plan, tmp_path)
    tracks = plan_tracks(plan, tmp_path)
    assert plan.eval_config(tracks.forget).golds == {"gold": "tiny-gold", "gold2": "tiny-gold2"}
    assert plan.eval_config(tracks.forget[1:]).golds == {}
    assert plan.model_copy(update={"golds": {"gold": "mine"}}).eval_config(tracks.forget).golds == {"gold": "mine"}


def test_figures_of_other_settings_do_not_count_as_measured(tmp_path):
    asked = EvalConfig(metrics=("nll",), embedder="latents", golds={"gold": "tiny-gold"})
    models = {"base": "1" * 64, "gold": "2" * 64}
    assert not is_measured(tmp_path, asked, models)
    told = {
        "metrics": ["nll"], "full": False, "requested_embedder": asked.embedder, "seed": 0, "samples_per_caption": 1,
        "force": False, "golds": {"gold": "tiny-gold"}, "plugins": installed(),
        "models": {**models, "unlearned": "3" * 64},
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text("{}")
    for key, other in (
        ("metrics", None),
        ("seed", 1),
        ("requested_embedder", ""),
        ("models", {**models, "gold": "4" * 64}),
        ("golds", {}),
        ("full", True),
        ("plugins", []),
        ("samples_per_caption", 2),
    ):
        (tmp_path / "evaluation.json").write_text(json.dumps(told | {key: other}))
        assert not is_measured(tmp_path, asked, models), key
    (tmp_path / "evaluation.json").write_text(json.dumps(told))
    assert is_measured(tmp_path, asked, models)


def test_presets_name_what_there_is():
    for name, laid in PRESETS.items():
        plan = Plan(methods=dict.fromkeys(laid.methods, ()), seeds=(0,))
        for method in laid.methods:
            given = [item.removeprefix(f"{method}.") for item in laid.options if item.startswith(f"{method}.")]
            plan.model_copy(update={"methods": {method: tuple(given)}}).method(method)
        for metric in laid.metrics:
            assert metrics().get(metric), name
    with pytest.raises(UnknownNameError, match="no preset 'encore'"):
        preset("encore")


def test_a_method_that_is_not_there_or_has_no_such_option():
    with pytest.raises(UnknownNameError):
        Plan(methods={"gaa": ()}, seeds=(0,)).method("gaa")
    with pytest.raises(UsageError, match="bta"):
        Plan(methods={"npo": ("bta=1",)}, seeds=(0,)).method("npo")
    assert Plan(methods={"npo": ("beta=3",)}, seeds=(0,)).method("npo").options.beta == 3
    assert Trial("npo", 3).name == "npo/seed-3"


def test_case_E3_two_variants_of_a_method_in_one_bench(tmp_path):
    plan = Plan(methods={"ga": ("steps=3",), "ga@long": ("steps=30",)}, seeds=(0,))
    check_plan(plan, tmp_path / "b")
    assert [trial.name for trial in plan.trials] == ["ga/seed-0", "ga@long/seed-0"]
    assert [plan.method(name).options.steps for name in plan.methods] == [3, 30]
    assert plan.method("ga@long").spec.name == "ga"
    for name in ("ga@", "ga@../x", "ga@a.b"):
        with pytest.raises(UsageError, match="can't name a variant"):
            check_plan(Plan(methods={name: ()}, seeds=(0,)), tmp_path / "b")
    with pytest.raises(UnknownNameError, match="gaa"):
        check_plan(Plan(methods={"gaa@x": ()}, seeds=(0,)), tmp_path / "b")
