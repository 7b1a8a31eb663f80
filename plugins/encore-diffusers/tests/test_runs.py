"""The command line on models of every family: forget, evaluate, play; and what is said where that can't be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from encore import plugins
from encore.hashing import module_sha256
from encore.metrics.robustness import relearn
from encore.store.environment import peak_bytes

TRAINED = ["ga", "rl", "ft", "graddiff", "npo", "simnpo", "task-vector", "ewc", "salun", "retrain"]
EDITS = ["ssd", "fisher-noise", "newton"]


def asked(family: str, folders: dict[str, Path], music: Path, out: Path) -> list[object]:
    return [
        "--backend", family, "--model", folders[family], "--tracks", music / "forget.txt", "--retain",
        music / "retain.txt", "--holdout", music / "holdout.txt", "--out", out,
    ]  # fmt: skip


def few_steps(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the sampler, whatever the model asks for."""
    two = property(lambda _: 2, lambda *_: None)
    monkeypatch.setattr(plugins.backends().resolve(family), "inference_steps", two, raising=False)


@pytest.mark.parametrize("method", TRAINED + EDITS)
def test_every_method_without_logits_runs(method, folders, music, call, tmp_path):
    family, out = "stable-audio", tmp_path / "run"
    few = ["--steps", 2, "-o", "micro_batch_size=2"] if method in TRAINED else []
    done = call("forget", "--method", method, *asked(family, folders, music, out), *few)
    assert done.code in (0, 4), done.err  # a model that was never trained may lose anything
    run = json.loads((out / "run.json").read_text())
    assert run["unit"] == "loss"
    load = plugins.backends().resolve(family).load
    base, unlearned = load(str(folders[family])), load(str(out / "model"))
    assert module_sha256(*base.frozen().values()) == module_sha256(*unlearned.frozen().values())
    if method not in ("ssd", "newton"):  # which may find nothing to change
        assert module_sha256(base.module) != module_sha256(unlearned.module)
    assert "library_name: diffusers" in (out / "model" / "README.md").read_text()


@pytest.mark.parametrize("method", ["encore", "wga", "ga-kl"])
def test_methods_of_token_models_refuse(method, family, folders, music, call, tmp_path):
    done = call("forget", "--method", method, *asked(family, folders, music, tmp_path / "run"))
    assert done.code == 2
    assert f"method '{method}' needs a token model, and {family} is not one" in done.err
    assert not (tmp_path / "run").exists()


def test_marginal_labels_need_tokens(folders, music, call, tmp_path):
    done = call(
        "forget", "--method", "rl", "-o", "labels=marginal", *asked("stable-audio", folders, music, tmp_path / "run")
    )
    assert done.code == 2
    assert "labels=marginal counts codes, and stable-audio has none" in done.err


def by_name(done):
    return {(row["metric"], row["model"], row["set"]): row for row in json.loads(done.out)["results"]}


def test_forget_and_evaluate(family, folders, music, call, tmp_path, monkeypatch):
    """Through the command line, with the samples and every metric."""
    out = tmp_path / "run"
    done = call("forget", "--method", "npo", *asked(family, folders, music, out), "--steps", 2)
    assert done.code in (0, 4), done.err  # two steps may miss the targets
    few_steps(family, monkeypatch)
    monkeypatch.setattr(relearn, "STEPS", 2)
    done = call("eval", out, "--json")
    assert done.code == 0, done.err
    rows = by_name(done)
    look = json.loads((out / "run.json").read_text())["outcome"]["after"]
    nll = rows["nll", "unlearned", "forget"]
    assert nll["unit"] == "loss"
    assert nll["per_track"] == pytest.approx(look["forget"], rel=1e-4)
    assert rows["membership_auc", "base", "forget"]["value"] is not None
    assert rows["relearn", "unlearned", "forget"]["unit"] == "loss"
    heard = by_name(call("eval", out, "--json", "--metrics", "fad,mmd", "--out", tmp_path / "heard"))
    assert heard["mmd", "unlearned", "retain"]["value"] is not None
    assert "mostly bias" in heard["fad", "unlearned", "retain"]["why"]
    for metric in ("verbatim", "verbatim_caption", "extraction_strength", "membership_auc_mink"):
        whys = {row["why"] for row in rows.values() if row["metric"] == metric}
        assert whys == {"not measured: the model has no tokens"}
    samples = json.loads((out / "samples" / "index.json").read_text())
    forget = 4 if family == "stable-audio" else 3  # whose windows are so short that one track makes two
    assert len(samples) == 2 * (forget + 3)  # before and after


def test_a_dry_run_tells_time_and_memory(family, folders, music, call, tmp_path):
    done = call("forget", "--method", "npo", *asked(family, folders, music, tmp_path / "run"), "--dry-run", "--json")
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    backend = plugins.backends().resolve(family).load(str(folders[family]))
    weights = 4 * sum(weight.numel() for weight in backend.module.parameters())
    assert 6 * weights < plan["expected_bytes"] <= peak_bytes("cpu")  # of the whole process, as run.json has it
    assert plan["expected_seconds"] > 0
    assert not (tmp_path / "run").exists()


def test_retain_self_is_what_the_model_plays(folders, music, call, tmp_path, monkeypatch):
    few_steps("stable-audio", monkeypatch)
    out = tmp_path / "run"
    arguments = asked("stable-audio", folders, music, out)
    arguments[arguments.index("--retain") + 1] = "self"
    done = call("forget", "--method", "npo", *arguments, "--steps", 2)
    assert done.code in (0, 4), done.err  # two steps may miss the targets
    assert len(json.loads((out / "retain-self" / "captions.json").read_text())) == 48
    assert json.loads((out / "run.json").read_text())["outcome"]["before"]["not_memorised"]


def test_generate(family, folders, music, call, tmp_path, monkeypatch):
    few_steps(family, monkeypatch)
    model = ["--backend", family, "--model", folders[family], "--out", tmp_path / "played", "--seconds", 0.4]
    done = call("generate", "slow church organ", *model)
    assert done.code == 0, done.err
    assert (tmp_path / "played" / "000.wav").stat().st_size > 0.4 * 2 * 8000
    prompt = ["--prompt", music / "one.wav", "--prompt-seconds", 0.2]
    done = call("generate", "slow church organ", *model, "--overwrite", *prompt)
    assert done.code == 2
    assert "can't continue a prompt" in done.err


def test_a_run_goes_on_where_it_was(folders, music, call, tmp_path):
    """A run that was cut short ends as one that was not."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    method = ["--method", "npo", "--steps", 4, "-o", "eval_every=1", "-o", "checkpoint_seconds=0", "-o", "stop=never"]
    assert call("forget", *method, *asked("stable-audio", folders, music, whole)).code == 0
    backend = plugins.backends().resolve("stable-audio")
    losses, asked_for = backend.losses, []

    def dying(self, batch):
        asked_for.append(batch.noise_index)
        if batch.noise_index == 3:
            raise KeyboardInterrupt
        return losses(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "losses", dying)
        call("forget", *method, *asked("stable-audio", folders, music, cut))
    assert 3 in asked_for
    assert not (cut / "run.json").exists()
    done = call("forget", *method, *asked("stable-audio", folders, music, cut), "--resume")
    assert done.code == 0, done.err
    first, second = (json.loads((run / "run.json").read_text())["unlearned_sha256"] for run in (whole, cut))
    assert first == second
