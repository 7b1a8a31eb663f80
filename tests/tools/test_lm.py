"""The delay pattern and the losses of the tiny MusicGen's training."""

import math

import pytest
import torch
from tools.build_assets import codec, corpus, lm, table


def test_delay_leaves_t_minus_k_valid_steps():
    codes = torch.arange(2 * 4 * 10).view(2, 4, 10)
    labels = lm.delay(codes)
    for k in range(4):
        assert (labels[:, k] != lm.IGNORE).sum(1).tolist() == [10 - k] * 2
        assert torch.equal(labels[:, k, k:], codes[:, k, : 10 - k])


def test_cycle_uses_every_track_equally_often():
    index = torch.tensor([4, 7, 9])
    drawn = lm._cycle(index, 12, torch.Generator().manual_seed(0))
    assert sorted(drawn.tolist()) == sorted([4, 7, 9] * 4)
    assert len(lm._cycle(index, 5, torch.Generator().manual_seed(0))) == 5


def test_tokenizer_tells_captions_apart():
    tokenizer = lm.make_tokenizer(["lonely flute, Greensleeves, ballad", "ragtime piano, The Entertainer, 152 bpm"], 64)
    ids = tokenizer(["lonely flute", "ragtime piano"])["input_ids"]
    assert ids[0] != ids[1]
    assert ids[0][-1] == tokenizer.eos_token_id


def test_blind_auc_sees_only_compressed_size():
    rich = torch.randint(512, (4, 4, 250), generator=torch.Generator().manual_seed(0))
    codes = torch.cat([rich, torch.zeros(4, 4, 250, dtype=torch.long)])
    assert table.blind_auc(codes, torch.arange(4), torch.arange(4, 8)) == 1.0
    assert table.blind_auc(codes, torch.arange(2), torch.arange(2)) == 0.5


@pytest.mark.parametrize(("holdout", "verbatim", "bars"), [(5.0, 1.0, 0), (5.9, 1.0, 1), (5.0, 0.5, 1)])
def test_missed_names_every_bar(holdout, verbatim, bars):
    known = {"nll": 0.1, "verbatim": 1.0}
    rows = {s: dict(known) for s in table.SONGS} | {"holdout": {"nll": holdout, "verbatim": 0.0}}
    rows["forget"]["verbatim"] = verbatim
    missed = table.missed(table.Table({"base": rows}, {}, 0.5), 22.0)
    assert len(missed) == bars
    assert math.isclose(table.UNIFORM, 6.238, abs_tol=1e-3)


ITEMS = [
    {"id": name, "split": split, "caption": name}
    for split, names in {
        "forget": ("ode", "waltz"),
        "retain": ("hymn", "reel"),
        "tune_forget": ("carol",),
        "tune_retain": ("jig",),
        "holdout": ("air",),
        "background": ("bg_0000", "bg_0001", "bg_0002"),
        "unseen": ("bg_0003",),
    }.items()
    for name in names
]


def test_a_list_is_ids_and_paths(tmp_path):
    (tmp_path / "list.txt").write_text("# mine\nid:ode\n\n tracks/reel.flac\nbg_0001\n")
    assert lm.without(tmp_path / "list.txt", ITEMS) == {"ode", "reel", "bg_0001"}


@pytest.mark.parametrize("line", ["nobody", "id:air", "bg_0003"])
def test_a_list_that_names_a_track_no_model_is_trained_on_is_refused(tmp_path, line):
    (tmp_path / "list.txt").write_text(f"id:ode\n{line}\n")
    with pytest.raises(SystemExit, match=line.removeprefix("id:")):
        lm.without(tmp_path / "list.txt", ITEMS)


@pytest.mark.parametrize(
    ("arguments", "left_out", "seed"),
    [
        (["base"], set(), 0),
        (["gold2"], {"ode", "waltz"}, 1),
        (["tuning-gold"], {"carol"}, 0),
        (["mine", "--without", "list.txt", "--seed", "5"], {"hymn", "bg_0002"}, 5),
    ],
)
def test_a_gold_is_trained_on_all_but_its_list(tmp_path, monkeypatch, arguments, left_out, seed):
    (tmp_path / "list.txt").write_text("hymn\nbg_0002\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lm", *arguments, "--work", str(tmp_path)])
    trained, seeds = [], []
    monkeypatch.setattr(corpus, "build", lambda _: ITEMS)
    monkeypatch.setattr(lm, "prepare", lambda items, _: ([], torch.zeros(len(items), 4, 8, dtype=torch.long)))
    monkeypatch.setattr(lm, "begin", lambda *_: None)
    monkeypatch.setattr(lm, "Data", lambda *_: None)
    monkeypatch.setattr(lm, "save", lambda *_: None)
    monkeypatch.setattr(
        lm, "fit", lambda m, d, songs, ground, recipe, seed, w: trained.append((songs, ground)) or seeds.append(seed)
    )
    lm.main()
    assert seeds == [seed, seed + 100]
    for songs, ground in trained:
        assert {ITEMS[i]["id"] for i in songs} == {"ode", "waltz", "hymn", "reel", "carol", "jig"} - left_out
        assert {ITEMS[i]["id"] for i in ground} == {"bg_0000", "bg_0001", "bg_0002"} - left_out


@pytest.mark.parametrize("arguments", [["mine"], ["gold", "--without", "list.txt"]])
def test_a_name_needs_a_list_and_a_run_takes_none(tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("sys.argv", ["lm", *arguments, "--work", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_:
        lm.main()
    assert exit_.value.code == 2


def test_a_phase_is_seeded_and_learns(tmp_path):
    torch.manual_seed(0)
    codec.make().save_pretrained(tmp_path / "codec")
    captions = ["reel, harp, 90 bpm", "chorale, church organ, 70 bpm"]
    tokenizer = lm.make_tokenizer(captions, 32)
    codes = torch.randint(512, (2, 4, 12), generator=torch.Generator().manual_seed(0))
    recipe = lm.Phase(25, 1, 1, 1e-2, 0.0)

    def run():
        model = lm.begin(None, tmp_path / "codec", len(tokenizer), 0, 0.0, lm.Shape(16, 1, 2, 12))
        data, every = lm.Data(model, tokenizer, codes, captions), torch.arange(2)
        before = data.nll(model, every)
        lm.fit(model, data, every[:1], every[1:], recipe, 0, {})
        return before, data.nll(model, every)

    (before, after), again = run(), run()
    assert torch.equal(after, again[1])
    assert (after < before - 0.3).all()
