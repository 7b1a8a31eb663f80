"""The model of `benchmarks/fisher.py`: a MusicGen decoder of any size from its configuration, a batch, its losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CODEBOOKS = 4


@dataclass(frozen=True)
class Setup:
    """Sizes: `samples` N, `frames` T, `text` tokens of the condition."""

    hidden: int = 1024
    layers: int = 2
    vocab: int = 2048
    samples: int = 8
    frames: int = 250
    text: int = 32

    def model(self) -> nn.Module:
        """A fresh `MusicgenForCausalLM`, equal in every process; no dropout, so that `.train()` computes the same.

        Built from a configuration alone: put together from parts, transformers leaves out the causal mask.
        """
        from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

        torch.manual_seed(0)
        config = MusicgenDecoderConfig(
            vocab_size=self.vocab, max_position_embeddings=2048, num_hidden_layers=self.layers,
            hidden_size=self.hidden, ffn_dim=4 * self.hidden, num_attention_heads=max(1, self.hidden // 64),
            num_codebooks=CODEBOOKS, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, layerdrop=0.0,
            pad_token_id=self.vocab, bos_token_id=self.vocab,
        )  # fmt: skip
        return MusicgenForCausalLM(config).eval()

    def batch(self, dtype: torch.dtype = torch.float32) -> Batch:
        """Random codes under the delay pattern, and random text states."""
        drawn = torch.Generator().manual_seed(1)
        codes = torch.randint(self.vocab, (self.samples, CODEBOOKS, self.frames), generator=drawn)
        states = torch.randn(self.samples, self.text, self.hidden, generator=drawn)
        step = torch.arange(self.frames)
        begun = step >= torch.arange(CODEBOOKS)[:, None]  # codebook k starts k steps late
        labels = codes.masked_fill(~begun, -100)
        inputs = F.pad(codes.masked_fill(~begun, self.vocab), (1, -1), value=self.vocab)
        return Batch(inputs, labels, states.to(dtype))


@dataclass(frozen=True)
class Batch:
    """Inputs [N, K, T], labels [N, K, T] (-100 where there is none), text states [N, L, hidden]."""

    inputs: Tensor
    labels: Tensor
    states: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def one(self, n: int) -> Batch:
        return Batch(self.inputs[n : n + 1], self.labels[n : n + 1], self.states[n : n + 1])


def losses(model: Callable[..., Any], batch: Batch) -> Tensor:
    """Mean negative log-likelihood a sample over its valid tokens, [N]."""
    logits = model(
        batch.inputs.flatten(0, 1), encoder_hidden_states=batch.states, use_cache=False, return_dict=True
    ).logits  # [N * K, T, V]
    nll = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="none")
    return nll.view(len(batch), -1).sum(1) / (batch.labels != -100).flatten(1).sum(1)


def zeros(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A Fisher of nothing, by parameter name."""
    return {name: torch.zeros_like(weight, dtype=dtype) for name, weight in trainable(model).items()}


def trainable(model: nn.Module) -> Mapping[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
