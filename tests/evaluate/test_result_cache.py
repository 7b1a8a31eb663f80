"""What evaluations keep on disk: it is the same to the last bit, and of nothing else than what was asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.metrics.markov import MarkovBackend, clips, models
from tests.metrics.utility.test_fad import Loudness

from encore.api import Clip
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.evaluate.result_cache import ResultCache, listed, named
from encore.metrics.privacy.membership_attacks import gradient_norm, min_k_plus
from encore.metrics.robustness.relearn import relearning_curve
from encore.store.metrics_json import metrics_json
from encore.tensor_cache import TensorCache

METRICS = ["verbatim", "membership_attacks", "similarity_codes", "similarity_embedding", "relearn_one", "quantised"]


class Silent(MarkovBackend):
    """Fails whatever it is asked: all there is to know of it has been kept."""

    def logits(self, *arguments, **options):
        raise AssertionError("computed again")

    generate = losses = logits


def figures(cache, roles=None, sets=None, **options) -> list[object]:
    """All that is costly in an evaluation, a way to compute it each."""
    sets = sets or clips()
    shared = SharedEvaluation(roles or models(1.0), sets, embedder=Loudness(), cache=cache, **options)
    tensors = [
        *shared.token_logprobs("unlearned", "forget"), *shared.kl("gold", "unlearned", "holdout"),
        *shared.kl("base", "unlearned", "forget"), *shared.token_logprobs("base", "forget", unconditional=True),
        *shared.continuations("unlearned", "forget", 4), *shared.continuations("unlearned", "holdout", 0),
        *shared.generations("unlearned", "holdout"), torch.from_numpy(shared.embeddings("unlearned", "forget")),
    ]  # fmt: skip
    trained = relearning_curve(shared, "unlearned", sets["retain"], sets["forget"])
    norms = [gradient_norm(shared, "unlearned", "forget"), min_k_plus(shared, "unlearned", "forget")]
    return [*(tensor.tolist() for tensor in tensors), trained, norms]


def rows(cache) -> str:
    shared = SharedEvaluation(models(1.0), clips(20), embedder=Loudness(), cache=cache)
    return json.dumps(metrics_json(measure(shared, METRICS)))


@pytest.fixture
def cache(tmp_path: Path) -> TensorCache:
    return TensorCache(tmp_path / "kept")


def files(cache: TensorCache) -> list[Path]:
    return sorted(cache.folder.rglob("*.safetensors"))


def test_cold_warm_and_without_a_cache_the_figures_are_the_same_bytes(cache: TensorCache) -> None:
    cold = rows(cache)
    count = len(files(cache))
    warm = rows(cache)
    assert cold == warm == rows(None)
    assert len(files(cache)) == count > 20


def test_what_is_kept_is_not_computed_again(cache: TensorCache) -> None:
    computed, roles = figures(cache), models(1.0)
    for role, model in roles.items():
        roles[role] = Silent()
        roles[role].module = model.module
    assert figures(cache, roles) == computed


def test_base_and_gold_are_served_to_the_evaluation_of_another_unlearned_model(cache: TensorCache) -> None:
    figures(cache)
    roles = models(2.0)
    assert figures(cache, roles) == figures(None, roles)


def changed(model: MarkovBackend) -> None:
    with torch.no_grad():
        model.module["table"][1, 0, 3, 4] += 0.5


CHANGES = {
    "a weight": lambda roles, sets: changed(roles["unlearned"]),
    "a weight of gold": lambda roles, sets: changed(roles["gold"]),
    "a caption": lambda roles, sets: sets["forget"].__setitem__(
        0, Clip("track01", "step 4", sets["forget"][0].codes)
    ),
    "a code": lambda roles, sets: sets["holdout"].__setitem__(
        1, Clip("track08", "step 8", (sets["holdout"][1].codes + 1) % 11)
    ),
    "a track's id": lambda roles, sets: sets["forget"].__setitem__(
        2, Clip("track00", "step 3", sets["forget"][2].codes)
    ),
    "the order": lambda roles, sets: sets["forget"].reverse(),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stale_is_served(cache: TensorCache, change: str) -> None:
    figures(cache)
    roles, sets = models(1.0), clips(30)
    CHANGES[change](roles, sets)
    assert figures(cache, roles, sets) == figures(None, roles, sets)


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"samples_per_caption": 2}, {"batch": 2}, {"generate_batch": 1}], ids=str
)
def test_a_setting_makes_another_entry(cache: TensorCache, options: dict[str, int]) -> None:
    figures(cache)
    assert figures(cache, **options) == figures(None, **options)


@pytest.mark.parametrize(
    "setting", ["frozen weights", "settings", "name", "trained", "version", "plugin", "threads", "kernel"]
)
def test_whatever_else_a_figure_depends_on_is_in_its_key(
    setting: str, cache: TensorCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, chosen = MarkovBackend(), clips()["forget"]
    before = ResultCache(cache).key("x", 0, [model], chosen)
    assert before == ResultCache(cache).key("x", 0, [MarkovBackend()], clips()["forget"])
    where = "encore.evaluate.result_cache."
    threads = torch.get_num_threads()
    if setting == "frozen weights":
        model.frozen = lambda: {"codec": torch.nn.Linear(2, 2)}  # type: ignore[method-assign]
    elif setting == "settings":
        monkeypatch.setattr(MarkovBackend, "settings", "other")
    elif setting == "name":
        model.name = "other"
    elif setting == "trained":
        model.module.requires_grad_(False)
    elif setting == "version":
        monkeypatch.setattr(where + "versions", lambda: {"torch": "0"})
    elif setting == "plugin":
        monkeypatch.setattr(where + "installed", lambda: [{"name": "mine", "sha256": "0"}])
    elif setting == "threads":
        torch.set_num_threads(threads + 1)
    else:
        monkeypatch.setenv("ENCORE_CPU_ISA", "portable")
    try:
        assert ResultCache(cache).key("x", 0, [model], chosen) != before
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_damaged_entries_are_computed_anew(cache: TensorCache, damage: str) -> None:
    cold = figures(cache)
    sizes = {path: path.stat().st_size for path in files(cache)}
    for path in sizes:
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes({"flipped": data, "cut": data[: len(data) // 2], "empty": b""}[damage])
    assert figures(cache) == cold
    assert {path: path.stat().st_size for path in files(cache)} == sizes


def test_lists_come_back_in_their_order() -> None:
    lists = {"a.b": [torch.tensor(i) for i in range(12)], "c": [torch.zeros(0)]}
    back = listed(named(lists | {"empty": []}))
    assert {name: len(items) for name, items in back.items()} == {"a.b": 12, "c": 1}
    assert [int(item) for item in back["a.b"]] == list(range(12))
