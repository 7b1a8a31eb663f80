"""Two processes share a list: each item once, in its order, whatever happens to the other process."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from tests.metrics.markov import clips, models
from tests.tiny_model import write_tiny_musicgen

from encore.backends.musicgen import MusicgenBackend
from encore.errors import InputError, PluginError
from encore.evaluate import parallel
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import check_failures, measure

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system can't fork")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_each_is_made_once_by_one_of_two_processes_and_comes_in_order():
    def make(number: int) -> tuple[int, int]:
        time.sleep(0.05)
        return number, os.getpid()

    told: list[tuple[int, int]] = []
    made = parallel.map_in_two_processes(make, 9, lambda number, done: told.append((number, done)))
    assert [number for number, _ in made] == list(range(9))
    assert len({process for _, process in made}) == 2
    assert [number for number, _ in told] == [number for number, process in made if process == os.getpid()]
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert parallel.map_in_two_processes(make, 1, lambda *_: None)[0][0] == 0


@pytest.mark.parametrize("here", [True, False])
def test_an_error_of_either_is_raised_here(here):
    own = os.getpid()

    def make(number: int) -> int:
        time.sleep(0.05)
        if (os.getpid() == own) is here:
            raise InputError("what is wrong", "what to do")
        return number

    with pytest.raises(InputError, match="what is wrong") as raised:
        parallel.map_in_two_processes(make, 6, lambda *_: None)
    assert raised.value.hint == "what to do"


def test_what_a_killed_process_left_is_made_here():
    own = os.getpid()

    def make(number: int) -> int:
        time.sleep(0.05)
        if os.getpid() != own and number < 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    assert parallel.map_in_two_processes(make, 9, lambda *_: None) == [number * number for number in range(9)]


def test_figures_are_those_of_one_process(threads, tmp_path):
    model = MusicgenBackend.load(str(write_tiny_musicgen(tmp_path / "model")))
    torch.manual_seed(0)
    codes = torch.randint(0, model.codebook_size, (6, model.codebooks, 12))
    made = [type(clips()["forget"][0])(f"t{i}", "quiet piano", one) for i, one in enumerate(codes)]
    sets = {"forget": made[:2], "retain": made[2:4], "holdout": made[4:]}
    names = ["nll", "verbatim", "extraction_strength", "membership_auc", "quantised", "relearn"]

    def rows(two_processes):
        evaluation = SharedEvaluation({"base": model, "unlearned": model.clone()}, sets, embedder=None)
        return measure(evaluation, names, two_processes=two_processes)

    with parallel.threads_for_two([model]) as two:
        assert two
        assert torch.get_num_threads() == 1
        assert rows(True) == rows(False)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    with parallel.threads_for_two([model]) as two:
        assert not two


def test_a_metric_that_breaks_in_the_other_process_costs_its_own_rows(monkeypatch):
    from encore.metrics.robustness.relearn import Relearn

    def breaks(self, evaluation):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(Relearn, "measure", breaks)
    rows = measure(SharedEvaluation(models(), clips(30), embedder=None), ["nll", "relearn"], two_processes=True)
    assert any(row.metric == "nll" and row.value for row in rows)
    with pytest.raises(PluginError, match="the metric 'relearn' failed: ZeroDivisionError: by nothing"):
        check_failures(rows)
