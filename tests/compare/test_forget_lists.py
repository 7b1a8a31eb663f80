"""Lists of several sizes out of one, and lists by name."""

from __future__ import annotations

import json

import pytest

from encore import assets
from encore.compare.forget_lists import draw, list_names
from encore.compare.plan import Plan, check_plan, gold_note, list_tracks, plan_tracks, read_plan, write_plan
from encore.data.catalog import Catalog
from encore.data.duplicates import Pair
from encore.data.splits import Tracks
from encore.data.tracks import Track
from encore.errors import UsageError


def tracks(name: str, count: int, split: str) -> tuple[Track, ...]:
    return tuple(Track(f"{name}{i}", None, "", f"{name}{i:060d}", meta={"split": split}) for i in range(count))


WHOLE = Tracks(
    tracks("f", 8, "forget"), (*tracks("r", 20, "retain"), *tracks("b", 9, "background")), tracks("h", 2, "holdout")
)


def ids(chosen: tuple[Track, ...]) -> set[str]:
    return {track.id for track in chosen}


def test_size_one_is_three_lists_and_every_other_size_one():
    assert list_names((1, 3, 8, 3)) == ("1a", "1b", "1c", "3", "8")


def test_the_lists_are_nested_and_all_that_is_not_drawn_is_kept():
    lists = {name: draw(WHOLE, name) for name in list_names((1, 2, 3, 8, 24))}
    sizes = {name: len(drawn.forget) for name, drawn in lists.items()}
    assert sizes == {"1a": 1, "1b": 1, "1c": 1, "2": 2, "3": 3, "8": 8, "24": 24}
    assert set.union(*(ids(lists[name].forget) for name in ("1a", "1b", "1c"))) == ids(lists["3"].forget)
    assert ids(lists["2"].forget) < ids(lists["3"].forget) < ids(lists["8"].forget) < ids(lists["24"].forget)
    assert ids(lists["8"].forget) == ids(WHOLE.forget)
    assert not any(track.meta["split"] == "background" for track in lists["24"].forget)
    everything = ids(WHOLE.forget) | ids(WHOLE.retain)
    for drawn in lists.values():
        assert ids(drawn.forget) | ids(drawn.retain) == everything
        assert not ids(drawn.forget) & ids(drawn.retain)
        assert drawn.holdout == WHOLE.holdout


def test_another_order_of_the_list_draws_the_same():
    turned = Tracks(WHOLE.forget[::-1], WHOLE.retain[::-1], WHOLE.holdout)
    assert [track.id for track in draw(turned, "24").forget] == [track.id for track in draw(WHOLE, "24").forget]


def test_without_a_split_retain_any_track_to_keep_serves_and_nothing_is_kept_where_nothing_was():
    plain = Tracks(tracks("f", 2, ""), tracks("k", 3, ""), ())
    assert len(draw(plain, "5").forget) == 5
    with pytest.raises(UsageError, match="the list 6 can't be sampled from 5 tracks"):
        draw(plain, "6")
    of_itself = Tracks(tracks("f", 2, ""), (), ())
    assert draw(of_itself, "1b").retain == ()
    with pytest.raises(UsageError, match="the list 1c can't be sampled from 2 tracks"):
        draw(of_itself, "1c")


def test_each_list_has_cells_and_several_requests_are_of_all_tracks():
    plan = Plan(methods={"ga": ()}, seeds=(0, 1), requests=(1, 2), forget_sizes=(1, 3), lists={"heard": "/x"})
    of_seed = ["1a/ga", "1b/ga", "1c/ga", "3/ga", "heard/ga"]
    assert [trial.name for trial in plan.trials] == [
        *(f"{name}/seed-0" for name in of_seed), "ga/seed-0-requests-2",
        *(f"{name}/seed-1" for name in of_seed), "ga/seed-1-requests-2",
    ]  # fmt: skip


def test_a_bench_that_was_made_without_lists_is_read_and_takes_them(tmp_path):
    write_plan(Plan(methods={"ga": ()}, seeds=(0,)), tmp_path)
    told = json.loads((tmp_path / "bench.json").read_text())
    for name in ("forget_sizes", "lists", "list_golds"):
        del told[name]
    (tmp_path / "bench.json").write_text(json.dumps(told))
    before = read_plan(tmp_path)
    assert [trial.name for trial in before.trials] == ["ga/seed-0"]
    check_plan(before.model_copy(update={"forget_sizes": (3,)}), tmp_path)


def test_golds_are_a_lists_own_or_lack_all_of_its_tracks(tmp_path):
    names = [track.id for track in Catalog.open(assets.CATALOG).tracks(split="background")[:2]]
    (tmp_path / "heard.txt").write_text("".join(f"id:{name}\n" for name in names))
    plan = Plan(methods={"ga": ()}, seeds=(0,), forget_sizes=(3, 8, 9), lists={"heard": str(tmp_path / "heard.txt")})
    whole = check_plan(plan, tmp_path / "b")

    def golds(plan: Plan, name: str) -> tuple[dict[str, str], str]:
        forget = list_tracks(plan, tmp_path, name, whole).forget
        return plan.eval_config(forget, name, whole.forget).golds, gold_note(plan, forget, name, whole.forget)

    embedded = {"gold": "tiny-gold", "gold2": "tiny-gold2"}
    assert golds(plan, "3") == (embedded, "its gold was trained without 5 more tracks")
    assert golds(plan, "8") == (embedded, "")
    note = "no gold, which most rows need: give one with --gold NAME=FOLDER"
    assert golds(plan, "9") == golds(plan, "heard") == ({}, note)
    given = plan.model_copy(update={"golds": {"gold": "g"}, "list_golds": {"heard": {"gold": "h"}, "3": {"gold": "t"}}})
    assert golds(given, "3") == ({"gold": "t"}, "")
    assert golds(given, "8") == ({"gold": "g"}, "")
    assert golds(given, "heard") == ({"gold": "h"}, "")
    taken = plan.model_copy(update={"lists": {**plan.lists, "3": plan.lists["heard"]}})  # the drawn one's place
    assert taken.list_names == plan.list_names
    assert [track.id for track in list_tracks(taken, tmp_path, "3", whole).forget] == names
    heard = list_tracks(plan, tmp_path, "heard", whole)
    assert [track.id for track in heard.forget] == names
    assert ids(whole.forget) < ids(heard.retain)


def test_duplicates_of_a_list_are_searched_once(tmp_path, monkeypatch):
    searched: list[int] = []

    def find_duplicates(forget, retain, **_):
        searched.append(len(forget))
        return [Pair(forget[0], retain[0], ("forget", "retain"), "samples", 1.0)]

    monkeypatch.setattr("encore.compare.plan.find_duplicates", find_duplicates)
    monkeypatch.setattr("encore.compare.plan._DUPLICATES", {})
    plan = Plan(methods={"ga": ()}, seeds=(0,), forget_sizes=(2, 3))
    first, again = (list_tracks(plan, tmp_path, "3", WHOLE) for _ in range(2))
    assert first == again
    assert len(first.retain) == len(WHOLE.retain) + 5 - 1
    list_tracks(plan, tmp_path, "2", WHOLE)
    assert searched == [3, 2]
    list_tracks(plan, tmp_path, "3", Tracks(WHOLE.forget, WHOLE.retain[:-1], WHOLE.holdout))
    assert searched == [3, 2, 3]


def test_names_of_lists_that_can_not_be(tmp_path):
    plan = Plan(methods={"ga": ()}, seeds=(0,), forget_sizes=(3,))
    for lists, golds, told in (
        ({"../x": "/x"}, {}, "can't name a list"),
        ({"ga": "/x"}, {}, "can't name a list"),
        ({}, {"heard": {"gold": "tiny-gold"}}, "which is not a list of this bench"),
    ):
        with pytest.raises(UsageError, match=told):
            check_plan(plan.model_copy(update={"lists": lists, "list_golds": golds}), tmp_path / "b")
    assert plan_tracks(plan, tmp_path).forget
