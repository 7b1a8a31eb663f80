"""The Fisher of a backend over clips: real labels, drawn labels against their exact expectation, and kills."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.curvature import slow
from tests.metrics.markov import K, MarkovBackend, V, track
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen
from torch import Tensor, nn

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.curvature import CurvatureWarning, Fisher, backend_fisher, clips_sha256
from encore.errors import InputError, UsageError
from encore.hashing import module_sha256


class Bigram(MarkovBackend):
    """p(code | the one before), the same for every caption, out of one embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.module = nn.ModuleDict({"table": nn.Embedding(K * (V + 1), V)})  # type: ignore[assignment]

    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        before = F.pad(batch.codes[..., :-1], (1, 0), value=V)
        return self.module["table"](before + (V + 1) * torch.arange(K)[:, None])


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> MusicgenBackend:
    folder = write_tiny_musicgen(tmp_path_factory.mktemp("model"), dropout=0.3)
    return MusicgenBackend.load(str(folder), offline=True)


def clips(*lengths: int) -> list[Clip]:
    generator = torch.Generator().manual_seed(0)
    return [
        Clip(str(i), CAPTIONS[i % 3], torch.randint(CODES, (2, t), generator=generator)) for i, t in enumerate(lengths)
    ]


CLIPS = clips(9, 20, 14, 7, 12)


def close(found: Fisher, expected: Fisher) -> None:
    assert (found.samples, found.mode, found.model) == (expected.samples, expected.mode, expected.model)
    for name, value in expected.values.items():
        assert (found.values[name] - value).norm() <= 1e-4 * value.norm(), name


@pytest.mark.parametrize("size", [1, 2, 8])
def test_empirical_equals_one_pass_a_clip(backend: MusicgenBackend, size: int) -> None:
    backend.module.train()
    result = backend_fisher(backend, CLIPS, micro_batch_size=size)
    assert backend.module.training
    backend.module.eval()  # dropout was off
    batch = Batch.of(CLIPS)
    exact = slow.fisher(slow.per_sample(backend.module, lambda: backend.losses(batch)))
    close(result, Fisher(exact, 5, "empirical", module_sha256(backend.module)))


@pytest.mark.parametrize("mode", ["empirical", "sampled"])
def test_shards_add_up_to_the_whole_in_any_batches(backend: MusicgenBackend, mode: str) -> None:
    def over(clips: list[Clip], size: int) -> Fisher:
        return backend_fisher(backend, clips, mode=mode, draws=2, seed=3, micro_batch_size=size)  # type: ignore[arg-type]

    whole = over(CLIPS, 3)
    close(over(CLIPS[:2], 1).merge(over(CLIPS[2:], 2)), whole)
    close(over(CLIPS[::-1], 2), whole)


def test_draws_follow_the_seed(backend: MusicgenBackend) -> None:
    one, again, other = (backend_fisher(backend, CLIPS, mode="sampled", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(value, again.values[name]) for name, value in one.values.items())
    assert any(not torch.allclose(value, other.values[name]) for name, value in one.values.items())


def test_sampled_has_the_expectation_of_all_labels() -> None:
    """Of one frame and K codebooks: the V^K labels are enumerated, each weighed by its probability."""
    model = Bigram()
    (clip,) = (Clip("x", "step 1", torch.zeros(K, 1, dtype=torch.int64)),)
    logprobs = model.logits(Batch.of([clip])).log_softmax(-1)[0, :, 0]  # [K, V]
    weight = model.module["table"].weight
    exact = torch.zeros_like(weight)
    for labels in itertools.product(range(V), repeat=K):
        chosen = torch.stack([logprobs[k, v] for k, v in enumerate(labels)])
        (grad,) = torch.autograd.grad(-chosen.mean(), weight, retain_graph=True)
        exact += float(chosen.sum().exp().detach()) * grad.square()
    many = [Clip("x", f"step {i}", clip.codes) for i in range(3000)]  # noise is a caption's own
    drawn = backend_fisher(model, many, mode="sampled", draws=2, micro_batch_size=1000)
    assert drawn.samples == 3000
    mean = drawn.values["table.weight"] / 3000
    assert (mean[exact == 0] == 0).all()
    assert (mean - exact).norm() <= 0.05 * exact.norm()
    empirical = backend_fisher(model, many, micro_batch_size=1000).values["table.weight"] / 3000
    assert (empirical - exact).norm() > 0.3 * exact.norm(), "the two modes can't be told apart here"


def test_a_backend_whose_weights_are_used_raw_is_looped_over() -> None:
    model = MarkovBackend({3: 2.0}, noise=1.0)
    batch = [track(3), track(5, 8)]
    with pytest.warns(CurvatureWarning, match="table"):
        result = backend_fisher(model, batch)
    exact = slow.fisher(slow.per_sample(model.module, lambda: model.losses(Batch.of(batch))))
    torch.testing.assert_close(result.values, exact)


# ----------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("mode", ["empirical", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_goes_on_after_a_kill_bit_for_bit(
    backend: MusicgenBackend, tmp_path: Path, mode: str, dtype: torch.dtype, killed_after: int
) -> None:
    def over(**more: object) -> Fisher:
        return backend_fisher(backend, CLIPS, mode=mode, dtype=dtype, draws=2, micro_batch_size=2, **more)  # type: ignore[arg-type]

    calls = []

    def killed(done: int, of: int) -> None:
        calls.append((done, of))
        if len(calls) == killed_after:
            raise KeyboardInterrupt

    path = tmp_path / "fisher.safetensors"
    with pytest.raises(KeyboardInterrupt):
        over(checkpoint=path, checkpoint_seconds=0, progress=killed)
    assert Fisher.load(path).samples == calls[-1][0]
    calls.clear()
    result = over(checkpoint=path, progress=lambda done, of: calls.append((done, of)))
    assert len(calls) == 3 - killed_after
    whole = over()
    assert all(torch.equal(value, whole.values[name]) for name, value in result.values.items())
    assert result.samples == whole.samples == 5
    assert torch.equal(*(f.values["decoder.model.decoder.layers.0.fc1.weight"] for f in (Fisher.load(path), whole)))


def test_a_checkpoint_of_something_else_is_refused(backend: MusicgenBackend, tmp_path: Path) -> None:
    path = tmp_path / "fisher.safetensors"
    backend_fisher(backend, CLIPS, checkpoint=path)
    for clips, settings in (
        (CLIPS[:2], {}),
        (CLIPS, {"mode": "sampled"}),
        (CLIPS, {"dtype": torch.float64}),
    ):
        with pytest.raises(InputError, match="another model, other clips or other settings"):
            backend_fisher(backend, clips, checkpoint=path, **settings)  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"fisher\.safetensors"):
        backend_fisher(backend, CLIPS, checkpoint=path)


def test_a_backend_without_tokens_has_nothing_to_draw(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MusicgenBackend, "has_tokens", False)
    with pytest.raises(UsageError, match="no tokens"):
        backend_fisher(backend, CLIPS, mode="sampled")
    with pytest.raises(ValueError, match="nonsense"):
        backend_fisher(backend, CLIPS, mode="nonsense")  # type: ignore[arg-type]


def test_the_hash_of_clips_is_of_captions_and_codes() -> None:
    one, two = clips(5, 6)
    assert clips_sha256([one, two]) != clips_sha256([two, one])
    assert clips_sha256([one]) == clips_sha256([Clip("another name", one.caption, one.codes.clone())])
    assert clips_sha256([one]) != clips_sha256([Clip(one.track, "x", one.codes)])
    assert clips_sha256([one]) != clips_sha256([Clip(one.track, one.caption, one.codes + 1)])
