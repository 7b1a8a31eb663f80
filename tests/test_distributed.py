"""Real processes, as a launcher starts them: what they compute together is what one process computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import Done
from tests.ranks import launch, passed
from tests.tiny_model import write_tiny_musicgen

from encore import distributed
from encore.launcher import launched


def test_one_process_has_everything_and_talks_to_nobody() -> None:
    assert (distributed.rank(), distributed.size(), launched()) == (0, 1, 1)
    assert distributed.share([1, 2, 3]) == [1, 2, 3]
    assert distributed.batches(range(5), 2) == [range(2), range(2, 4), range(4, 5)]
    assert distributed.rows([3, 1, 2], 2, lambda part: torch.tensor(part) + max(part), size=int).tolist() == [6, 2, 5]
    assert distributed.totals([1.5]) == [1.5]
    assert distributed.first("a") == "a"
    with distributed.processes("auto"), distributed.first_rank_first():
        assert distributed.size() == 1


OPERATIONS = """
from encore.launcher import launched
with distributed.processes("cpu"):
    rank, size = distributed.rank(), distributed.size()
    assert (launched(), size) == (3, 3)
    items = list(range(7))
    assert distributed.share(items) == items[rank::3]
    assert [len(part) for part in distributed.batches(items, 2)] == ([2, 1] if rank == 0 else [2, 0])
    square = lambda part: torch.tensor(part, dtype=torch.float64)[:, None] ** 2 * torch.ones(2)
    assert distributed.rows(items, 2, square).tolist() == [[i * i] * 2 for i in items]
    assert distributed.rows(items, 2, square, size=lambda item: item % 3).tolist() == [[i * i] * 2 for i in items]
    assert distributed.totals([1.0, rank]) == [3.0, 3.0]
    assert distributed.largest([rank == 1, False]) == [1, 0]
    assert distributed.first({"rank": rank}) == {"rank": 0}
    many = [torch.full((1000, 3), float(rank)), torch.full((5,), rank), torch.ones(2) * rank]
    distributed.BUCKET_BYTES = 100
    distributed.add(many)
    assert [each.unique().tolist() for each in many] == [[3], [3], [3]]
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    if rank == 2:
        used.grad = torch.ones(2)
    distributed.add_gradients([used, unused])
    assert used.grad.tolist() == [1, 1] and unused.grad is None
    flags = torch.tensor([rank == 0, True])
    distributed.copy_first([flags])
    assert flags.tolist() == [True, True]
    generator = torch.Generator().manual_seed(rank)
    distributed.synchronise(generator)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())
    with distributed.first_rank_first():
        assert distributed.size() == 1
        file = out / "made"
        assert file.exists() == (rank > 0)
        file.touch()
    assert distributed.size() == 3
    print("shown by rank", rank)
"""


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_rows_are_computed_in_halves_where_memory_runs_out(error):
    calls = []

    def compute(part):
        calls.append(len(part))
        if len(part) > 2:
            raise error
        return torch.tensor(part)

    assert distributed.rows(list(range(11)), 8, compute).tolist() == list(range(11))
    assert calls == [8, 4, 2, 2, 4, 2, 2, 3, 1, 2]


def test_rows_of_one_item_that_does_not_fit_and_other_errors_are_raised():
    def compute(part):
        raise torch.OutOfMemoryError("CUDA out of memory") if len(part) == 1 else RuntimeError("of another kind")

    with pytest.raises(torch.OutOfMemoryError):
        distributed.rows([1], 8, compute)
    with pytest.raises(RuntimeError, match="another kind"):
        distributed.rows([1, 2], 8, compute)


def test_shares_sums_and_turns(tmp_path: Path) -> None:
    passed(launch(OPERATIONS, 3, tmp_path))


LATE = """
import sys, time
from encore import distributed
from encore.errors import EncoreError, UsageError
try:
    with distributed.processes("cpu"):
        if distributed.rank() == 1:
            time.sleep(5)  # a busy machine
        with distributed.first_rank_first():
            pass
        raise UsageError("both refuse", "")
except EncoreError as error:
    sys.exit(error.exit_code)
"""


def test_a_process_that_is_behind_is_still_told_of_a_failure(tmp_path: Path) -> None:
    assert [code for code, _ in launch(LATE, 2, tmp_path)] == [2, 2]


# ---------------------------------------------------------------------------------------------------------- the engine

ENGINE = """
import json
from unittest import mock
from encore.api import Clip
from encore.backends.musicgen import MusicgenBackend
from encore.plugins import methods
from encore.store.run_folder import Checkpoints
from encore.unlearn.adapter import Lora
from encore.unlearn.engine import Clips, Engine
from encore.unlearn.sharding import is_split
from encore.unlearn.training import Training
from encore.unlearn.weight_average import WeightAverage
from tests.tiny_model import CAPTIONS, CODES

cases = json.loads(sys.argv[3])

def clips(backend):
    # Greedy generations are clips that the model has "memorised"; random codes are new to it.
    generator = torch.Generator().manual_seed(0)
    captions = [CAPTIONS[i % 3] for i in range(9)]
    prompt = torch.randint(CODES, (9, 2, 1), generator=generator)
    known = backend.generate(captions, seconds=0.2, prompt=prompt, temperature=0, guidance=1.0)
    made = [Clip(f"k{i}", captions[i], row[:, : 20 - i % 3]) for i, row in enumerate(known)]
    new = [torch.randint(CODES, (2, 12 + i % 5), generator=generator) for i in range(9)]
    made += [Clip(f"n{i}", CAPTIONS[i % 3], codes) for i, codes in enumerate(new)]
    made[1] = Clip("k0", made[1].caption, made[1].codes)  # a track of two clips
    return Clips([*made[:4], made[9]], [*made[4:9], *made[10:14]], made[14:])

def run(case, options):
    backend = loaded.clone()
    name = case.split()[0]
    chosen = Training if name == "train" else methods().resolve(name)
    sharded = options.pop("fsdp", False) and count > 1
    lora = Lora(rank=2) if options.pop("lora", False) else None
    checkpoints = options.pop("checkpoint_activations", False)
    split = set()
    watch = lambda line: split.add(is_split(next(engine.backend.module.parameters())))
    engine = Engine(backend, known_and_new, fsdp=sharded, lora=lora, checkpoint_activations=checkpoints, record=watch)
    few = {"steps": 6, "eval_every": 3, "stop": "never", "select": "last"}
    with mock.patch.object(WeightAverage, "update", autospec=True, side_effect=WeightAverage.update) as averaged:
        outcome = engine.run(chosen(chosen.Options(**{**few, **options})))
    assert split == {sharded}
    assert averaged.called == ("averaged" in case)
    return backend, outcome

loaded = MusicgenBackend.load(str(out / "model"), offline=True)
loaded.model.double()
known_and_new = clips(loaded)
if count == 1:
    torch.save(loaded.module.state_dict(), out / "start")
with distributed.processes("cpu"):
    for case, options in cases.items():
        backend, outcome = run(case, options)
        if distributed.rank() == 0:
            state = {key: value.clone() for key, value in backend.module.state_dict().items()}
            torch.save((state, outcome.best.as_dict()), out / f"{case}.{count}")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    write_tiny_musicgen(made / "model")
    return made


TRAIN = {"dropout": False, "crop_share": 0.5, "caption_dropout": 0.5, "schedule": "constant"}
CASES: dict[str, dict[str, Any]] = {
    "graddiff": {"micro_batch_size": 3},
    "npo": {},
    "encore": {"attack_share": 1.0, "attack_steps": 2, "mix": 0.5},
    "rl": {},
    "salun": {"micro_batch_size": 2},
    "ewc": {"lam": 10.0, "alpha": 1.0, "labels": "sampled"},
    "graddiff clipped": {"per_track_clip": 0.5},
    "npo sam": {"optim": "sam", "robust_to": "int8", "micro_batch_size": 3},
    "npo repselect": {"optim": "repselect", "components": 2, "retain_budget": 0.0},
    "graddiff checkpointed": {"checkpoint_activations": True},
    "encore adapter": {"lora": True, "lr": 0.01},
    "train": {"micro_batch_size": 3, **TRAIN},
    "train adapter": {"lora": True, "lr": 0.01, **TRAIN},
}
# Each way to share out work: micro-batches of which some ranks have fewer, attacks, Fishers, tracks, second gradients.
AMONG_FOUR = ("graddiff", "npo", "encore", "ewc", "graddiff clipped", "npo sam", "encore adapter", "train")


SHARDED: dict[str, dict[str, Any]] = {
    "graddiff split": {"fsdp": True, "micro_batch_size": 2},
    "npo split": {"fsdp": True},
    "npo split checkpointed": {"fsdp": True, "checkpoint_activations": True},
    "encore split": {"fsdp": True, "attack_share": 0.0, "micro_batch_size": 3},
    "encore split averaged": {"fsdp": True, "attack_share": 0.0, "schedule": "adaptive", "decay_steps": 1, "steps": 9},
    "train split": {"fsdp": True, "micro_batch_size": 1, **TRAIN},
}


@pytest.mark.slow
def test_a_split_model_gets_the_weights_of_one_process(folder: Path) -> None:
    check_equal(folder, SHARDED, (2,))


def test_the_weights_are_those_of_one_process(folder: Path) -> None:
    check_equal(folder, {name: CASES[name] for name in ("encore", "train")}, (2,))


@pytest.mark.slow
def test_so_are_those_of_every_method_and_of_more_processes(folder: Path) -> None:
    check_equal(folder, CASES, (2,))
    check_equal(folder, {name: CASES[name] for name in AMONG_FOUR}, (4,))


def check_equal(folder: Path, cases: dict[str, dict[str, Any]], counts: tuple[int, ...]) -> None:
    """Check that several processes end with the weights and the last snapshot of one."""
    for count in (1, *counts):  # what an earlier test has run is not run again
        missing = {name: options for name, options in cases.items() if not (folder / f"{name}.{count}").exists()}
        if missing:
            passed(launch(ENGINE, count, folder, json.dumps(missing)))
    start = torch.load(folder / "start")
    for case in cases:
        alone, best = torch.load(folder / f"{case}.1")
        assert any((value - start[key]).abs().max() > 1e-4 for key, value in alone.items())
        for count in counts:
            together, other = torch.load(folder / f"{case}.{count}")
            rounding = 1e-6 if case in ("ewc", "salun") else 1e-10  # Fishers and mean gradients are float32
            for key, value in alone.items():
                torch.testing.assert_close(together[key], value, rtol=0, atol=rounding)
            for part in ("forget", "memorised", "not_memorised"):
                assert other[part] == pytest.approx(best[part], abs=1e-6)


EVAL = """
from encore.cli import app
sys.argv = ["encore", *json.loads(sys.argv[3])]
app.main()
"""


@pytest.mark.slow
def test_metrics_are_shared_out_among_processes(studio: Path, call: Callable[..., Done]) -> None:
    music = studio / "music"
    subject = ["--model", studio / "model", "--base", studio / "model", "--tracks", music / "forget.txt"]
    subject += ["--retain", music / "retain.txt", "--holdout", music / "holdout.txt", "--no-cache", "--device", "cpu"]
    subject += ["--metrics", "nll,verbatim,relearn"]
    assert call("eval", *subject, "--out", "one").code == 0
    arguments = [str(word) for word in ["eval", *subject, "--out", "two"]]
    results = launch("import json\n" + EVAL, 2, Path.cwd(), json.dumps(arguments))
    passed(results)
    assert results[1][1] == ""
    one, two = (json.loads(Path(name, "metrics.json").read_text())["results"] for name in ("one", "two"))
    assert len(one) > 4
    assert [(row["metric"], row["model"], row["set"]) for row in one] == [
        (row["metric"], row["model"], row["set"]) for row in two
    ]
    values = [(a["value"], b["value"]) for a, b in zip(one, two, strict=True)]
    assert all((a is None) == (b is None) for a, b in values)
    assert [a for a, _ in values if a is not None] == pytest.approx([b for _, b in values if b is not None], rel=1e-4)
