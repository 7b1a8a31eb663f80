"""Likelihoods and divergences of tokens, against loops over the tokens; masked ones count nowhere."""

import math

import pytest
import torch

from encore.losses import jensen_shannon, kl_divergence, token_cross_entropy, token_logprobs, unmasked

CLIPS, CODEBOOKS, FRAMES, CODES = 3, 2, 4, 5
PLACES = [(n, k, t) for n in range(CLIPS) for k in range(CODEBOOKS) for t in range(FRAMES)]


@pytest.fixture(params=["all frames", "clips of different lengths", "frames in between"])
def mask(request) -> torch.Tensor:
    mask = torch.ones(CLIPS, CODEBOOKS, FRAMES, dtype=torch.bool)
    if request.param == "clips of different lengths":
        mask[1, :, 1:], mask[2, :, 3:] = False, False
    elif request.param == "frames in between":
        mask[0, 1, 2], mask[2, 0, 0] = False, False
    return mask


@pytest.fixture
def logits() -> torch.Tensor:
    shape = (2, CLIPS, CODEBOOKS, FRAMES, CODES)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def probabilities(logits: torch.Tensor) -> list[float]:
    weights = [math.exp(value) for value in logits.tolist()]
    return [weight / sum(weights) for weight in weights]


def divergence(first: list[float], second: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(first, second, strict=True))


def test_unmasked_values_and_their_gradient(mask, logits):
    values = logits[0].requires_grad_()
    assert torch.equal(unmasked(values, mask), values[mask])
    taken, expected = (
        torch.autograd.grad((rows**3).sum(), values)[0] for rows in (unmasked(values, mask), values[mask])
    )
    assert torch.equal(taken, expected)


def test_values_of_another_length_than_the_mask_are_refused(mask, logits):
    for values in (logits[0, :, :, 1:], logits[0, :, 1:], torch.cat([logits[0], logits[1]], 2)):
        with pytest.raises(IndexError, match="a mask"):
            unmasked(values, mask)


def test_log_probability_of_each_code(mask, logits):
    codes = torch.arange(len(PLACES)).reshape(mask.shape) % CODES
    broken = logits[0].masked_fill(~mask[..., None], math.nan)  # what a backend predicts there does not matter
    found = token_logprobs(broken, codes, mask)
    for place in PLACES:
        expected = math.log(probabilities(logits[0][place])[codes[place]]) if mask[place] else 0.0
        assert float(found[place]) == pytest.approx(expected)


def test_divergences_of_each_token(mask, logits):
    kl, jensen = (measure(*logits, mask) for measure in (kl_divergence, jensen_shannon))
    for place in PLACES:
        first, second = (probabilities(each[place]) for each in logits)
        middle = [(p + q) / 2 for p, q in zip(first, second, strict=True)]
        both = (divergence(first, middle) + divergence(second, middle)) / 2
        assert float(kl[place]) == pytest.approx(divergence(first, second) if mask[place] else 0.0)
        assert float(jensen[place]) == pytest.approx(both if mask[place] else 0.0)


def test_cross_entropy_of_each_clip_with_weights_and_soft_targets(mask, logits):
    targets, weights = logits[1].softmax(-1), torch.rand(mask.shape, dtype=torch.float64)
    found = token_cross_entropy(logits[0], targets, mask, weights)
    for clip in range(CLIPS):
        losses = [
            -float(weights[place])
            * sum(
                t * math.log(p) for t, p in zip(targets[place].tolist(), probabilities(logits[0][place]), strict=True)
            )
            for place in PLACES
            if place[0] == clip and mask[place]
        ]
        assert float(found[clip]) == pytest.approx(sum(losses) / len(losses))


def test_every_precision_but_float64_is_computed_in_float32(mask, logits):
    codes = torch.zeros(mask.shape, dtype=torch.int64)
    for given, computed in [(torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2]:
        assert token_logprobs(logits[0].to(given), codes, mask).dtype == computed
