"""The delay pattern, against loops over its definition, and playing with a model that is a table."""

from __future__ import annotations

import pytest
import torch

from encore.delay_pattern import by_frame, generate_codes, inputs_of, predicted, sample_tokens

START = 99
DELAYS = [0, 1, 1, 3]


@pytest.mark.parametrize("frames", [1, 2, 4, 9])
def test_inputs_are_the_frames_before_each_step(frames: int) -> None:
    codes = torch.arange(2 * 4 * frames).reshape(2, 4, frames)
    inputs = inputs_of(codes, DELAYS, START)
    for k, delay in enumerate(DELAYS):
        for step in range(frames):
            before = step - 1 - delay  # the frame of codebook k that was predicted last
            expected = codes[:, k, before] if before >= 0 else torch.full((2,), START)
            assert torch.equal(inputs[:, k, step], expected)


@pytest.mark.parametrize("delay", [0, 1, 3, 7])
def test_frames_are_predicted_as_many_steps_later(delay: int) -> None:
    by_step = torch.arange(1.0, 6.0).reshape(1, 5, 1)
    moved = by_frame(by_step, delay)
    assert moved.flatten().tolist() == [step + 1.0 if step < 5 else 0.0 for step in range(delay, delay + 5)]


def test_of_t_frames_t_less_the_delay_are_predicted() -> None:
    mask = predicted(torch.tensor([9, 4, 2]), 9, DELAYS)
    assert mask.shape == (3, 4, 9)
    assert mask.sum(-1).tolist() == [[9, 8, 8, 6], [4, 3, 3, 1], [2, 1, 1, 0]]
    assert not (mask[..., 1:] & ~mask[..., :-1]).any(), "they are the first ones"


class Table:
    """Says after each token which one follows, and keeps what it was asked."""

    def __init__(self, size: int = 8) -> None:
        self.size, self.seen = size, torch.empty(0, dtype=torch.int64)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.seen = torch.cat([self.seen, tokens], -1) if self.seen.numel() else tokens
        following = torch.where(tokens[..., -1] == START, 0, tokens[..., -1] + 1) % self.size
        return torch.nn.functional.one_hot(following, self.size).float()


SETTINGS = {
    "count": 2, "frames": 6, "delays": DELAYS, "start": START, "device": torch.device("cpu"), "seed": 3,
    "guidance": 1.0, "temperature": 0.0, "top_k": 250,
}  # fmt: skip


@pytest.mark.parametrize("given", [0, 1, 2, 5, 6, 8])
def test_playing_goes_on_from_the_prompt(given: int) -> None:
    table, prompt = Table(), torch.randint(0, 8, (2, 4, given), generator=torch.Generator().manual_seed(0))
    codes = generate_codes(table, prompt=prompt if given else None, **SETTINGS)
    assert torch.equal(codes[..., :given], prompt[..., :6])
    for t in range(given, 6):
        expected = (codes[..., t - 1] + 1) % 8 if t else torch.zeros(2, 4, dtype=torch.int64)
        assert torch.equal(codes[..., t], expected)
    padded = torch.nn.functional.pad(codes, (0, DELAYS[-1]), value=0)
    asked = inputs_of(padded, DELAYS, START)
    for k, delay in enumerate(DELAYS):  # what follows a codebook's last frame predicts nothing
        assert torch.equal(table.seen[:, k, : 6 + delay], asked[:, k, : 6 + delay])


def test_guidance_moves_away_from_the_rows_without_a_caption() -> None:
    def model(tokens: torch.Tensor) -> torch.Tensor:
        captioned = torch.tensor([1.0, 1.1, 0.0]).expand(2, 4, 3)
        plain = torch.tensor([0.0, 0.9, 0.0]).expand(2, 4, 3)
        return torch.cat([captioned, plain])

    assert (generate_codes(model, prompt=None, **SETTINGS | {"guidance": 3.0}) == 0).all()
    assert (generate_codes(lambda tokens: model(tokens)[:2], prompt=None, **SETTINGS) == 1).all()


def test_draws_follow_the_distribution_and_the_rows_seed() -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log().expand(2, 4000, 3)
    noise = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    drawn = sample_tokens(logits, 1.0, 250, noise)
    assert torch.bincount(drawn.flatten(), minlength=3).div(8000).sub(torch.tensor([0.6, 0.3, 0.1])).abs().max() < 0.02
    assert torch.equal(drawn[1:], sample_tokens(logits[1:], 1.0, 250, [torch.Generator().manual_seed(1)]))
    assert set(sample_tokens(logits, 1.0, 2, noise).unique().tolist()) == {0, 1}
    assert (sample_tokens(logits, 0.0, 250, noise) == 0).all()
