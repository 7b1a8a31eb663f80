"""`encore eval`: a run, or models and tracks by flags; the table, the JSON, the files it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from tests.conftest import Done, no_evaluation_is_read

from encore.store.run_folder import locked

Call = Callable[..., Done]
ROLES = {"base", "unlearned", "gold", "gold2", "control", "none"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, _studio: Path) -> Path:
    """A folder with music, a base model and a complete run in it; don't write into it."""
    from encore.cli import app

    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(_studio, folder, dirs_exist_ok=True)
    music = folder / "music"
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("ENCORE_CACHE", str(_studio / "cache"))
    code = app.run([
        "forget", "--tracks", f"{music}/forget.txt", "--retain", f"{music}/retain.txt", "--holdout",
        f"{music}/holdout.txt", "--model", str(folder / "model"), "--method", "graddiff", "--steps", "2", "--out",
        str(folder / "runs" / "a"),
    ])  # fmt: skip
    monkeypatch.undo()
    assert code == 0
    return folder


@pytest.fixture(scope="module")
def golds(project: Path) -> tuple[Path, Path]:
    """Two models of the base's shape with random weights of their own."""
    from encore.backends.musicgen import MusicgenBackend

    for seed in (1, 2):
        model = MusicgenBackend.load(str(project / "model"))
        model.reinitialise(seed)
        model.save(project / f"gold-{seed}")
    return project / "gold-1", project / "gold-2"


@pytest.fixture
def mine(project: Path, studio: Path, tmp_path: Path) -> Path:
    """A copy of the project, under another name: as after a move."""
    shutil.copytree(project, tmp_path / "moved")
    return tmp_path / "moved"


def flags(project: Path, *more: object) -> list[object]:
    music = project / "music"
    return [
        "eval", "--model", project / "runs/a", "--tracks", music / "forget.txt", "--retain", music / "retain.txt",
        "--holdout", music / "holdout.txt", *more,
    ]  # fmt: skip


def rows(done: Done) -> dict[tuple[str, str, str], Any]:
    return {(row["metric"], row["model"], row["set"]): row for row in json.loads(done.out)["results"]}


def test_everything_that_is_measured_of_a_run(project: Path, studio: Path, call: Call) -> None:
    done = call("eval", project / "runs/a", "--json", "--out", "out")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told == json.loads(Path("out/metrics.json").read_text())
    assert told["schema"] == 1
    found = rows(done)
    assert {name for name, _, _ in found} >= {"nll", "membership_auc", "extraction_strength", "relearn"}
    assert {model for _, model, _ in found} <= ROLES
    assert found["nll", "base", "forget"]["n"] == 3
    assert set(found["nll", "unlearned", "forget"]["per_track"]) == {"one.wav", "two.wav", "long.wav"}
    unmeasured = [row for row in told["results"] if row["value"] is None]
    assert all(row["why"] for row in unmeasured)
    assert any("no gold" in row["why"] for row in unmeasured)
    samples = json.loads(Path("out/samples/index.json").read_text())
    assert {sample["track"] for sample in samples} >= {"one.wav", "two.wav", "long.wav"}
    for sample in samples:
        audio, rate = soundfile.read(Path("out/samples") / sample["file"])
        assert rate == 8000
        assert len(audio)


def test_more_generations_a_caption_make_fad_measurable(project: Path, studio: Path, call: Call) -> None:
    dim = 2 * 8  # mean and spread of the tiny codec's latents
    one, many = (
        rows(
            call(
                "eval", project / "runs/a", "--json", "--out", f"out{n}", "--metrics", "fad", "--samples-per-caption", n
            )
        )
        for n in (1, dim)
    )
    assert "mostly bias" in one["fad", "unlearned", "retain"]["why"]
    assert many["fad", "unlearned", "retain"]["n"] == 3 * dim
    assert many["fad", "unlearned", "retain"]["value"] >= 0
    assert json.loads(Path(f"out{dim}/evaluation.json").read_text())["samples_per_caption"] == dim


@pytest.mark.slow
def test_the_full_set_of_a_run_twice(project: Path, golds: tuple[Path, Path], studio: Path, call: Call) -> None:
    """Every metric runs from the command line, and two evaluations write the same file."""
    for name in ("one", "two"):
        done = call("eval", project / "runs/a", "--full", "--json", "--gold", golds[0], "--out", name)
        assert done.code == 0, done.err
    assert Path("one/metrics.json").read_bytes() == Path("two/metrics.json").read_bytes()
    found = {row["metric"] for row in json.loads(done.out)["results"] if row["value"] is not None}
    assert found >= {
        "membership_p", "gold_ks", "relearn_holdout", "relearn_one", "quantised_4bit_nll", "paraphrased_nll",
        "prompt_reencoded_nll", "prompt_time_stretched_nll", "prompt_pitch_shifted_nll", "similarity_chroma",
        "similarity_melody", "similarity_onset", "similarity_bleu", "similarity_edit", "similarity_embedding",
        "verbatim_caption_exact",
    }  # fmt: skip


def test_a_second_evaluation_is_served_and_one_without_a_cache_is_not(
    project: Path, studio: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "cache"))
    again = ["eval", project / "runs/a", "--metrics", "nll,relearn", "--json"]
    cold = call(*again, "--out", "cold", "--no-cache")
    assert cold.code == 0, cold.err
    assert not (tmp_path / "cache/evaluations").exists()
    call(*again, "--out", "kept")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/evaluations").rglob("*") if path.is_file()}
    assert kept
    assert call(*again, "--out", "warm").out == cold.out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    no_evaluation_is_read(monkeypatch)
    assert call(*again, "--out", "anew", "--no-cache").out == cold.out
    assert call(*again, "--out", "asked").code != 0
    assert len({Path(out, "metrics.json").read_bytes() for out in ("cold", "kept", "warm", "anew")}) == 1


def test_nll_of_a_run_is_that_in_its_record(project: Path, studio: Path, call: Call) -> None:
    done = call("eval", project / "runs/a", "--metrics", "nll", "--json", "--out", "out")
    run = json.loads((project / "runs/a/run.json").read_text())
    for role, moment in (("base", "before"), ("unlearned", "after")):
        measured = rows(done)["nll", role, "forget"]["per_track"]
        assert measured == pytest.approx(run["outcome"][moment]["forget"], rel=1e-4)


def test_the_table_and_where_the_files_are(project: Path, studio: Path, call: Call) -> None:
    done = call("eval", project / "runs/a", "--metrics", "nll,relearn", "--out", "out")
    assert done.code == 0, done.err
    assert "NLL, forget" in done.out
    assert "measure: 2/2" in done.err
    assert str(Path("out/metrics.json")) in done.err


def test_case_D17_metrics_that_lack_an_embedder_say_so_in_a_sentence_each(
    project: Path, studio: Path, call: Call
) -> None:
    done = call("eval", project / "runs/a", "--metrics", "fad,clap_score,tag_kl", "--out", "out")
    assert done.code == 0, done.err
    assert "tag_kl, retain" not in done.out  # no table of blank rows
    fad, clap, tags = (line for line in done.out.splitlines() if line.startswith("info:"))
    assert fad.startswith("info: fad (retain) not measured: 3 generations")
    assert "at least" in fad
    assert clap.endswith("none of the embedders (latents) embeds text: give --embedder clap")
    assert tags.endswith("none of the embedders (latents) has tags: give --embedder clap, ast or passt")
    assert "no samples are written if --metrics is given" in done.err


def test_case_D19_a_metric_that_raises_leaves_the_others_written(
    project: Path, studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object, evaluation: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("encore.metrics.privacy.membership.Membership.measure", fails)
    done = call("eval", project / "runs/a", "--metrics", "membership_auc,nll", "--json", "--out", "out")
    assert done.code == 1
    assert "the metric 'membership_auc' failed: ZeroDivisionError: oh" in done.err
    assert "not expected" not in done.err
    found = rows(done)
    assert json.loads(done.out) == json.loads(Path("out/metrics.json").read_text())
    assert found["nll", "unlearned", "forget"]["value"] > 0
    assert "failed: ZeroDivisionError: oh" in found["membership_auc", "unlearned", "forget"]["why"]
    assert Path("out/evaluation.json").exists()
    assert Path("out/report.html").exists()


def test_by_flags_it_says_the_same_as_by_run(project: Path, studio: Path, call: Call) -> None:
    by_run = call("eval", project / "runs/a", "--metrics", "nll", "--json", "--out", "x")
    done = call(*flags(project, "--base", project / "model", "--metrics", "nll", "--json"))
    assert done.code == 0, done.err
    assert rows(done) == rows(by_run)
    assert not Path("metrics.json").exists()


def test_golds_can_be_named(project: Path, golds: tuple[Path, Path], studio: Path, call: Call) -> None:
    named = ["--gold", golds[0], "--gold2", golds[1], "--metrics", "kl_gold", "--json"]
    by_run, by_flags = call("eval", project / "runs/a", *named, "--out", "x"), call(*flags(project, *named))
    for done in (by_run, by_flags):
        assert done.code == 0, done.err
        for role in ("gold2", "unlearned"):
            assert rows(done)["kl_gold", role, "forget"]["value"] > 0


def test_a_destroyed_model_is_a_failure_and_its_tracks_are_named_plainly(
    project: Path, mine: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encore.backends.musicgen import MusicgenBackend

    model = MusicgenBackend.load(str(mine / "model"))
    for weights in model.module.parameters():
        weights.data.fill_(float("nan"))
    model.save(mine / "broken")
    given = [str(mine / "broken") if str(word) == str(project / "runs/a") else word for word in flags(project)]
    for metrics in ("nll", "verbatim_caption,paraphrased_once"):
        done = call(*given, "--base", project / "model", "--metrics", metrics)
        assert done.code == 0, done.err
        failure = next(line for line in done.out.splitlines() if line.startswith("fail: "))
        assert "likelihoods of the unlearned model are not finite" in failure
        assert "\x1f" not in done.out
        assert "\\x1f" not in done.out


def test_a_track_in_both_lists_is_measured_as_forgotten_and_told(project: Path, studio: Path, call: Call) -> None:
    music = project / "music"
    Path("keep.txt").write_text(f"{music}/one.wav\ta\n{music}/four.wav\tb\n")
    done = call(
        "eval", "--model", project / "runs/a", "--tracks", music / "forget.txt", "--retain", "keep.txt", "--root",
        music, "--metrics", "nll", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert set(rows(done)["nll", "unlearned", "retain"]["per_track"]) == {"four.wav"}
    assert "left out" in done.err


def test_a_moved_project_is_found_again(project: Path, mine: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    request = mine / "runs/a/request.json"
    elsewhere = request.read_text().replace(str(project), "/nowhere/at/all")  # the old place is gone
    request.write_text(elsewhere)
    monkeypatch.chdir("/")
    done = call("eval", mine / "runs/a", "--metrics", "nll", "--json")
    assert done.code == 0, done.err
    assert (mine / "runs/a/metrics.json").exists()


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ([], 2, "either a run folder, or --model"),
        (["RUN", "--model", "x"], 2, "either a run folder, or --model"),
        (["--model", "x"], 2, "--model needs --tracks"),
        (["RUN", "--base", "x", "--retain", "y"], 2, "--base, --retain can't be set for a run"),
        (["RUN", "--gold2", "x"], 2, "--gold2 is compared with --gold"),
        (["RUN", "--metrics", "nll,fadd"], 2, "did you mean fad"),
        (["RUN", "--metrics", ","], 2, "names no metric"),
        (["RUN", "--metrics", "nll", "--full"], 2, "--full means all metrics"),
        (["RUN", "--embedder", "latent"], 2, "did you mean latents"),
        (["RUN", "--device", "abacus"], 2, "abacus"),
        (["nowhere"], 3, "is not the folder of a run"),
        (["RUN", "--gold", "nowhere"], 3, "no model 'nowhere'"),
        (["RUN", "--gold", "MODEL"], 3, "gold has the same weights as base"),
        (["--model", "RUN", "--tracks", "x", "--gold", "RUN"], 3, "gold has the same weights as unlearned"),
        (["RUN", "--gold", "RUN"], 3, "gold has the same weights as unlearned"),
    ],
)
def test_what_can_not_work(project: Path, studio: Path, call: Call, given: list[str], code: int, words: str) -> None:
    places = {"RUN": project / "runs/a", "MODEL": project / "model"}
    done = call("eval", *[places.get(word, word) for word in given])
    assert (done.code, words in done.err) == (code, True), done.err
    assert done.out == ""
    assert not list(Path.cwd().iterdir())


def test_a_file_or_weight_that_is_not_what_it_was(mine: Path, call: Call) -> None:
    run, music = mine / "runs/a", mine / "music"
    request = json.loads((run / "request.json").read_text())
    for name in ("forget", "retain", "holdout"):
        for track in request[name]:
            track["file"] = str(music / Path(track["file"]).name)
    request["model"]["name"] = str(mine / "model")
    (run / "request.json").write_text(json.dumps(request))

    def refused(words: str) -> None:
        done = call("eval", run, "--metrics", "nll")
        assert (done.code, words in done.err) == (3, True), done.err
        assert not (run / "metrics.json").exists()

    def flipped(path: Path, words: str) -> None:
        kept = path.read_bytes()
        path.write_bytes(kept[:-9] + bytes([kept[-9] ^ 1]) + kept[-8:])
        refused(words)
        path.write_bytes(kept)

    flipped(music / "two.wav", "two.wav is not the file that the run read")
    flipped(run / "model/model.safetensors", "are not those the run wrote")
    flipped(mine / "model/model.safetensors", "is not the one the run was made from")
    (run / "request.json").write_text('{"seed": 0}')
    refused("not written by this version")
    request = (run / "request.json").read_bytes()
    (run / "request.json").write_text("{")
    refused("can't be read as JSON")
    (run / "request.json").write_bytes(request)
    (run / "run.json").unlink()
    refused("did not finish")


def test_a_metric_named_twice_is_measured_once(project: Path, studio: Path, call: Call) -> None:
    done = call("eval", project / "runs/a", "--metrics", "nll, nll,nll", "--json", "--out", "x")
    assert done.code == 0, done.err
    results = json.loads(done.out)["results"]
    assert len(results) == len(rows(done))
    assert json.loads(Path("x/evaluation.json").read_text())["metrics"] == ["nll"]


def test_an_embedder_that_was_chosen_is_told_from_the_default(project: Path, studio: Path, call: Call) -> None:
    told = []
    for more in ([], ["--embedder", "latents"]):
        assert call("eval", project / "runs/a", "--metrics", "nll", "--out", "x", *more).code == 0
        how = json.loads(Path("x/evaluation.json").read_text())
        told.append((how["requested_embedder"], how["embedder"]))
    assert told == [("", "latents"), ("latents", "latents")]


def test_a_folder_in_use_or_closed_is_told_before_anything_is_measured(
    project: Path, studio: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*given: object, **named: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr("encore.evaluate.run.measure", measured)
    given = ("eval", project / "runs/a", "--metrics", "nll", "--out", "x")
    with locked(Path("x")):
        done = call(*given)
        assert (done.code, "is in use by process" in done.err) == (1, True), done.err
    Path("y").write_text("a file")
    done = call(*given[:-1], "y")
    assert (done.code, "can't write y" in done.err) == (1, True), done.err


def test_samples_of_other_models_than_the_figures_do_not_stay(
    project: Path, golds: tuple[Path, Path], studio: Path, call: Call
) -> None:
    def files(*more: object) -> set[str]:
        done = call("eval", project / "runs/a", "--out", "x", *more)
        assert done.code == 0, done.err
        return {path.name.split(".")[1] for path in Path("x/samples").glob("forget/*.wav")}

    assert files() == {"before", "after"}
    assert files("--metrics", "nll") == {"before", "after"}  # of the same models
    assert files("--metrics", "nll", "--gold", golds[0]) == set()
    assert not Path("x/samples").exists()


LOUDNESS = """
from encore.api import Metric, MetricSpec, Result, hookimpl


class Loudness(Metric):
    def measure(self, evaluation):
        for role in evaluation.models:
            yield Result("loudness", role, "forget", -14.0, unit="LUFS")


@hookimpl
def encore_register_metrics():
    return [MetricSpec("loudness", "how loud it is", "encore_loudness:Loudness")]
"""


def test_case_E2_a_plugins_metric_is_in_the_table_and_in_the_json(
    project: Path, studio: Path, call: Call, installed: Any
) -> None:
    installed.add("encore-loudness", LOUDNESS)
    done = call("eval", project / "runs/a", "--metrics", "nll,loudness", "--out", "x")
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("loudness, forget")]
    assert line.split()[2:] == ["-14", "-14"]
    assert "`encore eval` measures retain on all 3 tracks kept" in done.err  # E7
    assert rows(call("eval", project / "runs/a", "--metrics", "loudness", "--out", "x", "--json")).keys() == {
        ("loudness", "base", "forget"), ("loudness", "unlearned", "forget")
    }  # fmt: skip


def test_an_evaluation_that_measures_less_than_the_earlier_one_says_so(mine: Path, call: Call) -> None:
    run = mine / "runs/a"
    assert call("eval", run, "--metrics", "nll,extraction_strength").code == 0
    found = json.loads((run / "metrics.json").read_text())["results"]
    lost = sum(row["metric"].startswith("extraction_strength") and row["value"] is not None for row in found)
    assert lost
    done = call("eval", run, "--metrics", "nll")
    assert f"{lost} figures of the earlier evaluation in {run} are replaced" in done.err
    assert "another --out keeps both" in done.err
    for more in ([], ["--out", mine / "other"], ["--metrics", "nll,extraction_strength"]):
        assert "are replaced" not in call("eval", run, "--metrics", "nll", *more).err
