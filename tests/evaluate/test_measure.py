from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from tests.metrics.markov import MarkovBackend, clips, models, track
from tests.metrics.utility.test_fad import Loudness
from tests.tiny_model import CAPTIONS, write_tiny_musicgen

from encore.api import Batch, Clip, Metric, MetricSpec, Result
from encore.backends.musicgen import MusicgenBackend
from encore.errors import EncoreError, InputError, Interrupted, PluginError, UnknownNameError
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import check_failures, evaluate, measure
from encore.plugins import OWN
from encore.results.findings import findings
from encore.store.metrics_json import metrics_json

METRICS = [
    "nll", "kl_gold", "verbatim", "verbatim_caption", "extraction_strength", "membership_auc",
    "membership_auc_baseline", "fad", "mmd", "relearn",
]  # fmt: skip


def all_rows(roles=None, sets=None, **options) -> list[Result]:
    options = {"metrics": METRICS, "embedder": Loudness()} | options
    return evaluate(roles or models(1.0), sets or clips(), **options)


def figures(rows: list[Result]) -> dict[tuple[str, str, str], float]:
    """Figures of rows that have one."""
    return {(row.metric, row.model, row.set): row.value for row in rows if row.value is not None}


# ------------------------------------------------------------------------------------------------------ evaluation


def test_two_runs_give_identical_results():
    first, second = metrics_json(all_rows()), metrics_json(all_rows())
    assert json.dumps(first, allow_nan=False) == json.dumps(second, allow_nan=False)


def test_order_of_models_and_clips_changes_nothing():
    roles, sets = models(1.0), clips()
    turned = {name: chosen[::-1] for name, chosen in reversed(sets.items())}
    there, back = all_rows(roles, sets), all_rows(dict(reversed(roles.items())), turned)
    assert figures(there) == pytest.approx(figures(back), rel=1e-5, abs=1e-6)
    lows = [{(r.metric, r.model, r.set): r.low for r in rows if r.low is not None} for rows in (there, back)]
    assert lows[0] == pytest.approx(lows[1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_batch_size_changes_nothing(size):
    sets = clips() | {"forget": [track(1, 9), track(2, 12), track(3, 10)]}
    small = SharedEvaluation(models(1.0), sets, embedder=Loudness(), batch=size, generate_batch=size)
    large = SharedEvaluation(models(1.0), sets, embedder=Loudness())
    assert figures(measure(small, METRICS)) == pytest.approx(figures(measure(large, METRICS)), rel=1e-5, abs=1e-6)


def test_each_batch_goes_through_each_model_once():
    roles, calls = models(1.0), []
    for role, backend in roles.items():
        backend.logits = lambda batch, unconditional=False, role=role, own=backend.logits: (
            calls.append((role, batch.clips)) or own(batch, unconditional=unconditional)
        )
    evaluate(roles, clips(), metrics=METRICS[:7], embedder=None)
    assert len(calls) == len(set(calls)) == 4 * 3


def test_logits_are_bounded_in_memory():
    evaluation = SharedEvaluation({"base": MarkovBackend()}, {"forget": [track(1)]}, embedder=None)
    long = [Clip(str(i), "step 1", torch.zeros(4, 2**20, dtype=torch.long)) for i in range(3)]
    assert [len(piece) for piece in evaluation.batches(long)] == [1, 1, 1]
    assert [len(piece) for piece in evaluation.batches([track(1)] * 20)] == [16, 4]


def test_generations_are_one_a_track_and_draw_with_the_same_noise_for_all():
    base = MarkovBackend({1: 1.0}, noise=1.0)
    windows = [track(2, 8), track(1, 8), track(1, 5)]
    shared = SharedEvaluation(
        {"base": base, "unlearned": base.clone()}, {"forget": windows}, embedder=None, samples_per_caption=2
    )
    played = shared.generations("base", "forget")
    assert [codes.shape[-1] for codes in played] == [8, 8, 8, 8]
    assert not torch.equal(played[0], played[1])
    for mine, other in zip(played, shared.generations("unlearned", "forget"), strict=True):
        assert torch.equal(mine, other)
    again = SharedEvaluation({"base": base}, {"forget": windows}, embedder=None, seed=1)
    assert not torch.equal(played[0], again.generations("base", "forget")[0])


def test_embeddings_of_the_clips_themselves():
    shared = SharedEvaluation({"base": MarkovBackend()}, clips(), embedder=Loudness())
    audio = shared.embeddings("audio", "holdout")
    codes = clips()["holdout"][1].codes[0] / 11
    assert audio[1, 0] == pytest.approx(float(codes.mean()))


def test_unconditional_likelihoods_are_a_pass_of_their_own():
    shared = SharedEvaluation({"base": MarkovBackend({1: 6.0})}, clips(), embedder=None)
    with_caption, without = (
        shared.token_logprobs("base", "forget", unconditional=unconditional)[0] for unconditional in (False, True)
    )
    assert float(without.mean()) == pytest.approx(-math.log(11))
    assert float(with_caption.mean()) > float(without.mean())


def test_models_are_put_in_evaluation_mode():
    roles = models()
    roles["base"].module.train()
    SharedEvaluation(roles, clips(), embedder=None)
    assert not roles["base"].module.training


def test_a_metric_under_inference_mode_leaves_the_models_fit_for_relearning(tmp_path):
    model = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path)))
    clip = Clip("t", CAPTIONS[0], torch.zeros(2, 12, dtype=torch.long))
    shared = SharedEvaluation({"unlearned": model}, {"forget": [clip]}, embedder=None)
    with torch.inference_mode():
        model.logits(Batch.of([clip]))
    assert figures(measure(shared, ["relearn"]))["relearn", "unlearned", "forget"] > 0


# ---------------------------------------------------------------------------------------------------------- guards


def test_what_can_not_be_measured_is_a_row_that_says_why():
    rows = all_rows({"unlearned": models()["unlearned"]}, {"forget": [track(1)]}, embedder=None)
    whys = {row.metric: row.why for row in rows if row.value is None}
    assert whys["kl_gold"] == "not measured: no gold model was given (--gold)"
    assert whys["membership_auc"] == "not measured: there are no holdout tracks"
    assert whys["fad"] == whys["mmd"] == "not measured: no base model was given (--base)"
    assert [row.set for row in rows if row.metric in ("fad", "mmd")] == ["retain", "retain"]
    assert set(METRICS) <= {row.metric for row in rows}
    assert all((row.value is None) == (row.why is not None) for row in rows)


def test_a_figure_that_is_not_finite_is_none_and_says_why():
    roles = models()
    with torch.no_grad():
        roles["unlearned"].module["table"][1] = math.nan
    rows = all_rows(roles)
    json.dumps(metrics_json(rows), allow_nan=False)
    row = next(row for row in rows if (row.metric, row.model, row.set) == ("nll", "unlearned", "forget"))
    assert (row.value, row.low, row.high) == (None, None, None)
    assert row.why == "not measured: the value is nan"
    assert row.per_track["track01"] is None
    assert row.per_track["track02"] is not None
    found = figures(rows)
    assert ("nll", "base", "forget") in found
    for metric in (
        "verbatim",
        "extraction_strength",
        "membership_auc",
        "membership_tpr_at_1_fpr",
        "relearn",
        "kl_gold",
    ):
        assert (metric, "unlearned", "forget") not in found
        assert metric == "kl_gold" or (metric, "gold", "forget") in found


def test_nothing_to_measure_is_refused():
    with pytest.raises(InputError, match="no forget tracks"):
        SharedEvaluation(models(), {"forget": []}, embedder=None)
    with pytest.raises(InputError, match="no model"):
        SharedEvaluation({}, clips(), embedder=None)


def test_models_of_different_codecs_do_not_compare():
    roles = models()
    for seed, role in enumerate(("base", "gold")):
        torch.manual_seed(seed)
        codec = torch.nn.Linear(2, 2)
        roles[role].frozen = lambda codec=codec: {"codec": codec}
    with pytest.raises(InputError, match="gold model has another codec than the base model"):
        SharedEvaluation({role: roles[role] for role in ("base", "gold")}, clips(), embedder=None)


def test_an_unknown_metric_is_named():
    with pytest.raises(UnknownNameError, match="nlll"):
        evaluate(models(), clips(), metrics=["nlll"], embedder=None)


class Breaking(Metric):
    """Gives a row, and then raises what it is made with."""

    error: BaseException = ZeroDivisionError("oh")

    def measure(self, evaluation):
        yield Result("breaking", "base", "forget", 1.0, n=1)
        raise self.error


class Fine(Metric):
    def measure(self, evaluation):
        yield Result("fine", "base", "forget", 2.0, n=1)


class Registered:
    """Metrics by name, as `plugins.metrics()` has them."""

    def __init__(self, **metrics):
        self.metrics = metrics
        for name, metric in metrics.items():
            metric.spec = MetricSpec(name, "", "")

    def __iter__(self):
        own = SimpleNamespace(distribution=OWN)
        return iter(SimpleNamespace(spec=metric.spec, source=own) for metric in self.metrics.values())

    def resolve(self, name):
        return self.metrics[name]


@pytest.mark.parametrize("two_processes", [False, True])
@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), SystemExit(0), SystemExit("gone"), MemoryError()])
def test_case_D19_a_metric_that_raises_costs_its_own_rows_only(monkeypatch, error, two_processes):
    monkeypatch.setattr(Breaking, "error", error)
    monkeypatch.setattr("encore.plugins.metrics", lambda: Registered(breaking=Breaking, fine=Fine))
    shared = SharedEvaluation(models(), clips(), embedder=None)
    first, failed, fine = measure(shared, two_processes=two_processes)
    assert (first.value, fine.value) == (1.0, 2.0)
    text = f": {error}" if str(error) else ""
    assert failed.value is None
    assert failed.why.startswith(
        f"not measured: the metric 'breaking' failed: {type(error).__name__}{text} (test_measure.py, line "
    )
    json.dumps(metrics_json([first, failed, fine]), allow_nan=False)
    (told,) = [finding for finding in findings([first, failed, fine]) if "failed" in finding.text]
    assert told.level == "warn"
    with pytest.raises(PluginError, match=f"the metric 'breaking' failed: {type(error).__name__}"):
        check_failures([first, failed, fine])
    check_failures([first, fine])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted(15)])
def test_case_D19_an_interrupt_is_not_the_metrics_failure(monkeypatch, error):
    monkeypatch.setattr(Breaking, "error", error)
    monkeypatch.setattr("encore.plugins.metrics", lambda: Registered(breaking=Breaking, fine=Fine))
    with pytest.raises(type(error)):
        measure(SharedEvaluation(models(), clips(), embedder=None))


def test_a_metric_of_the_full_set_is_measured_with_full_or_by_name(monkeypatch):
    class Slow(Metric):
        def measure(self, evaluation):
            yield Result("slow", "unlearned", "forget", 1.0)

    class Registry:
        def __init__(self, specs):
            self.entries = [SimpleNamespace(spec=spec, source=SimpleNamespace(distribution=OWN)) for spec in specs]

        def __iter__(self):
            return iter(self.entries)

        def resolve(self, name):
            Slow.spec = next(entry.spec for entry in self.entries if entry.spec.name == name)
            return Slow

    specs = [MetricSpec("quick", "", ""), MetricSpec("slow", "", "", full=True)]
    monkeypatch.setattr("encore.plugins.metrics", lambda: Registry(specs))
    shared, seen = SharedEvaluation(models(), clips(), embedder=None), []
    for options in ({}, {"full": True}, {"metrics": ["slow"]}):
        seen.append([])
        measure(shared, progress=lambda name, done, of: seen[-1].append(name), **options)
    assert seen == [["quick", ""], ["quick", "slow", ""], ["slow", ""]]


def test_what_a_metric_shares_is_made_once():
    shared, made = SharedEvaluation(models(), clips(), embedder=Loudness()), []
    for _ in range(2):
        assert shared.cached(("mine", "base"), lambda: made.append(1) or "made") == "made"
    assert made == [1]
    codes = shared.generations("base", "retain")
    assert shared.embed(codes).tolist() == shared.embeddings("base", "retain").tolist()
    with pytest.raises(EncoreError, match="no embedder was chosen"):
        SharedEvaluation(models(), clips(), embedder=None).embed(codes)


def test_progress_counts_metrics():
    seen = []
    all_rows(metrics=["nll", "kl_gold"], progress=lambda *args: seen.append(args))
    assert seen == [("nll", 0, 2), ("kl_gold", 1, 2), ("", 2, 2)]


def test_a_model_without_tokens_has_a_likelihood_and_nothing_that_takes_tokens():
    backend = MarkovBackend({1: 6.0})
    backend.has_tokens = False
    rows = evaluate({"unlearned": backend}, clips(), metrics=["nll", "membership_auc"], embedder=None)
    found = figures(rows)
    assert found["nll", "unlearned", "forget"] > 0
    assert found["membership_auc", "unlearned", "forget"] > 0
    assert ("membership_auc_mink", "unlearned", "forget") not in found
    assert ("nll_codebook_0", "unlearned", "forget") not in found
