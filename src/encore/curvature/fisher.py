"""The Fisher diagonal of a backend over clips: on their real codes, or on codes drawn from the model itself."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip
from encore.curvature.fisher_file import Fisher, read_about
from encore.curvature.fisher_stream import FisherAccumulator, evaluating
from encore.errors import InputError, UsageError
from encore.hashing import module_sha256
from encore.losses import token_logprobs

Labels = Literal["empirical", "sampled"]


def backend_fisher(
    backend: Backend,
    clips: Sequence[Clip],
    *,
    mode: Labels = "empirical",
    draws: int = 1,
    micro_batch_size: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    checkpoint: Path | str | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Fisher:
    """F = Σ_n g_n∘g_n over clips, g_n the gradient of the clip's mean NLL per token.

    With mode "sampled" every token's label is drawn from the model's own distribution given the clip's true past: a
    Monte Carlo estimate of the true Fisher (Kunstner et al., arXiv 1905.12558), averaged over `draws` draws per clip.
    The draws of a clip depend on the seed and the clip alone, so that shards of a list add up to the whole.

    Args:
        backend: its `module` is in evaluation mode meanwhile and stays as it is.
        clips: one sample each.
        micro_batch_size: clips per pass; changes nothing but rounding.
        dtype: what is summed in, float32 or float64.
        checkpoint: file of the partial Fisher diagonal. One of the same model, clips and settings is resumed, bit for
            bit; at the end it holds the complete one.
        checkpoint_seconds: interval between writes.
        progress: called after each batch with the number of finished clips, and of all clips.

    Raises:
        UsageError: "sampled" was asked of a backend without tokens.
        InputError: the checkpoint is of something else, or damaged.
    """
    if mode not in ("empirical", "sampled") or draws < 1 or micro_batch_size < 1:
        raise ValueError(f"mode {mode!r}, draws {draws}, micro_batch_size {micro_batch_size}")
    if mode == "sampled" and not backend.has_tokens:
        raise UsageError(f"the backend {backend.name} has no tokens to draw", "use the empirical Fisher")
    model = module_sha256(backend.module)
    about: dict[str, Any] = {"clips": clips_sha256(clips), "dtype": str(dtype)}
    about |= {"draws": draws, "seed": seed} if mode == "sampled" else {}
    stream = FisherAccumulator(backend.module, dtype)
    if checkpoint is not None and Path(checkpoint).exists():
        _resume(stream, Path(checkpoint), model, mode, about)
    written = time.monotonic()
    with evaluating(backend.module):
        while stream.samples < len(clips):
            start = stream.samples
            batch = Batch.of(clips[start : start + micro_batch_size], backend.device)
            if mode == "empirical":
                stream.add(lambda batch=batch: backend.losses(batch))  # type: ignore[misc]
            else:
                for draw in range(draws):
                    stream.add(lambda batch=batch, draw=draw: _sampled_losses(backend, batch, seed, draw, draws))  # type: ignore[misc]
            stream.samples = start + len(batch)  # a clip that is drawn for several times is one sample
            done = stream.samples == len(clips)
            if checkpoint is not None and (done or time.monotonic() - written >= checkpoint_seconds):
                Fisher(stream.values, stream.samples, mode, model).save(checkpoint, about=about)
                written = time.monotonic()
            progress(stream.samples, len(clips))
    return Fisher(stream.values, stream.samples, mode, model)


def clips_sha256(clips: Sequence[Clip]) -> str:
    """SHA-256 over clips in order: captions and codes, what their losses depend on."""
    total = hashlib.sha256()
    for clip in clips:
        total.update(_clip_sha256(clip))
    return total.hexdigest()


def _resume(stream: FisherAccumulator, path: Path, model: str, mode: str, about: dict[str, Any]) -> None:
    """Bring back what a checkpoint holds."""
    partial = Fisher.load(path)
    if (partial.model, partial.mode, read_about(path)) != (model, mode, about):
        raise InputError(
            f"{path} is a Fisher diagonal of another model, other clips or other settings", "delete or rename it"
        )
    if partial.values.keys() != stream.values.keys():
        raise InputError(
            f"{path} is a Fisher diagonal of other parameters than those that are trainable", "delete or rename it"
        )
    for name, value in partial.values.items():
        stream.values[name].copy_(value)
    stream.samples = partial.samples


def _sampled_losses(backend: Backend, batch: Batch, seed: int, draw: int, draws: int) -> Tensor:
    """Mean NLL a token of drawn codes, [N], scaled so that squares of its gradients sum to their mean over draws."""
    logits, mask = backend.logits(batch), backend.token_mask(batch)
    codes = torch.stack(
        [_drawn(rows, clip, seed, draw) for rows, clip in zip(logits.detach(), batch.clips, strict=True)]
    )
    nll = -token_logprobs(logits, codes, mask).sum((1, 2)) / mask.sum((1, 2))
    return nll / math.sqrt(draws)


def _drawn(logits: Tensor, clip: Clip, seed: int, draw: int) -> Tensor:
    """One code a token, by inversion: logits [K, T, V] -> [K, T]. The padding of a batch does not shift the noise."""
    key = hashlib.sha256(f"{seed} {draw} ".encode() + _clip_sha256(clip)).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") % 2**63)
    uniform = torch.rand(clip.codes.shape, generator=generator).to(logits.device)  # [K, T of the clip]
    steps = uniform.shape[-1]
    cumulated = logits[:, :steps].float().softmax(-1).cumsum(-1)
    below = (uniform[..., None] * cumulated[..., -1:]).contiguous()
    codes = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
    codes[:, :steps] = torch.searchsorted(cumulated, below, right=True)[..., 0].clamp_(max=logits.shape[-1] - 1)
    return codes


def _clip_sha256(clip: Clip) -> bytes:
    codes = clip.codes.cpu().contiguous()
    head = f"{clip.caption}\0{codes.dtype} {tuple(codes.shape)}\n".encode()
    return hashlib.sha256(head + codes.view(torch.uint8).numpy().tobytes()).digest()
