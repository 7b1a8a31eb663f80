"""The delay pattern of MusicGen (Copet et al., arXiv 2306.05284, section 2.2), and generation with it.

At step s, frame s - d_k of codebook k is predicted. A window of T frames takes T steps, so T - d_k tokens of codebook k
are predicted. Backends of different libraries share this code, so that equal weights generate equal music.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LastLogits = Callable[[Tensor], Tensor]
"""Tokens [R, K, S] of the next S steps -> logits [R, K, V] of the last of them; stateful over earlier steps."""


def predicted(frames: Tensor, length: int, delays: Sequence[int]) -> Tensor:
    """The tokens that are predicted in windows of `frames` [N] frames without padding: bool [N, K, length]."""
    time = torch.arange(length, device=frames.device)
    return time < frames[:, None, None] - torch.tensor(delays, device=frames.device)[:, None]


def inputs_of(codes: Tensor, delays: Sequence[int], start: int) -> Tensor:
    """The inputs of steps 0 … T - 1.

    Args:
        codes: the codes to predict, int64 [N, K, T].
        delays: d_k of each codebook.
        start: the token before a codebook's first frame.

    Returns:
        int64 [N, K, T].
    """
    steps = codes.shape[-1]
    inputs = torch.full_like(codes, start)
    for k, delay in enumerate(delays):
        if steps - 1 - delay > 0:
            inputs[:, k, 1 + delay :] = codes[:, k, : steps - 1 - delay]
    return inputs


def by_frame(by_step: Tensor, delay: int) -> Tensor:
    """Shift a codebook's values from steps to frames, with zeros at the end: [N, T, D] -> [N, T, D]."""
    return F.pad(by_step[:, delay:], (0, 0, 0, min(delay, by_step.shape[1])))


def generate_codes(
    last_logits: LastLogits,
    *,
    count: int,
    frames: int,
    delays: Sequence[int],
    start: int,
    prompt: Tensor | None,
    device: torch.device,
    seed: int,
    guidance: float,
    temperature: float,
    top_k: int,
) -> Tensor:
    """Generate codes.

    Args:
        last_logits: the model; with guidance it receives 2 N rows, the second half without captions.
        count: number of rows N.
        frames: length of each, prompt included.
        delays: d_k of each codebook.
        start: the token before a codebook's first frame.
        prompt: codes [N, K, P] that the rows begin with.
        device: of the result.
        seed: row n uses seed + n, so that the batch size does not change the result.
        guidance: logits are u + guidance · (c - u), c with the caption and u without; 1 leaves u out.
        temperature: of sampling; 0 is greedy decoding.
        top_k: sample among this many likeliest codes.

    Returns:
        int64 [N, K, frames].
    """
    guided, codebooks = guidance != 1.0, len(delays)
    noise = [torch.Generator().manual_seed(seed + row) for row in range(count)]
    codes = torch.full((count, codebooks, frames), -1, device=device)
    given = 0
    if prompt is not None:
        given = min(prompt.shape[-1], frames)
        codes[..., :given] = prompt[..., :given]
    tokens = torch.full((count, codebooks, 1), start, device=device)
    step = 0
    if given > 1:  # inputs of steps 0 … given - 1 hold prompt tokens only: all of them run at once
        tokens = inputs_of(codes[..., :given], delays, start)
        step = given - 1
    while step < frames + delays[-1]:
        logits = last_logits(torch.cat([tokens, tokens]) if guided else tokens).float()
        if guided:
            logits = logits[count:] + guidance * (logits[:count] - logits[count:])
        drawn = sample_tokens(logits, temperature, top_k, noise)  # [N, K]
        tokens = torch.full((count, codebooks, 1), start, device=device)
        for k, delay in enumerate(delays):
            frame = step - delay
            if 0 <= frame < frames:
                if frame >= given:
                    codes[:, k, frame] = drawn[:, k]
                tokens[:, k, 0] = codes[:, k, frame]
        step += 1
    return codes


def sample_tokens(logits: Tensor, temperature: float, top_k: int, noise: Sequence[torch.Generator]) -> Tensor:
    """Sample one token per row and codebook, [N, K, V] -> [N, K], with Gumbel noise from each row's generator.

    Temperature 0 is greedy decoding.
    """
    if temperature == 0:
        return logits.argmax(-1)
    kept = logits.topk(min(top_k, logits.shape[-1]), -1)
    uniform = torch.stack([torch.rand(kept.values.shape[1:], generator=row) for row in noise]).to(logits.device)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
    choice = (kept.values / temperature + gumbel).argmax(-1, keepdim=True)
    return kept.indices.gather(-1, choice)[..., 0]
