"""MusicGen's decoder a few steps at a time: what transformers computes at each, without what it does around it.

Of a step of a small model transformers spends a quarter around the products: on masks, on caches that grow, on looking
up arguments (8 to 24 rows, one core). Here keys and values stand in tensors of their final length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MusicgenForCausalLM


class StepDecoder:
    """A `MusicgenForCausalLM` in evaluation mode, as `encore.delay_pattern.LastLogits`: it remembers the steps before.

    Args:
        states: projected text states [R, L, D], zeros where the mask is False. mask: bool [R, L].
        steps: how many there will be in all.
    """

    def __init__(self, decoder: MusicgenForCausalLM, states: Tensor, mask: Tensor, steps: int) -> None:
        self.decoder, self.done = decoder, 0
        layers: Any = decoder.model.decoder.layers
        size = (len(states), decoder.config.num_attention_heads, steps, layers[0].self_attn.head_dim)
        self.keys = [states.new_empty(size) for _ in layers]
        self.values = [states.new_empty(size) for _ in layers]
        self.text = [
            (_heads(layer.encoder_attn, "k", states), _heads(layer.encoder_attn, "v", states)) for layer in layers
        ]
        self.mask = mask[:, None, None]  # of every head and step

    def __call__(self, tokens: Tensor) -> Tensor:
        """Tokens [R, K, S] of the next S steps -> logits [R, K, V] of the last."""
        model: Any = self.decoder.model.decoder
        x = sum(embed(tokens[:, k]) for k, embed in enumerate(model.embed_tokens))  # [R, S, D]
        x = x + model.embed_positions(tokens, self.done)
        for number, layer in enumerate(model.layers):
            x = x + self._self_attention(number, layer.self_attn, layer.self_attn_layer_norm(x))
            x = x + self._text(number, layer.encoder_attn, layer.encoder_attn_layer_norm(x))
            x = x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
        self.done += tokens.shape[-1]
        last = model.layer_norm(x[:, -1])
        return torch.stack([head(last) for head in self.decoder.lm_heads], 1)

    def _self_attention(self, number: int, attention: Any, x: Tensor) -> Tensor:
        """Attention to the steps before and these."""
        until = self.done + x.shape[1]
        keys, values = self.keys[number], self.values[number]  # [R, H, steps, D / H]
        keys[:, :, self.done : until] = _heads(attention, "k", x)
        values[:, :, self.done : until] = _heads(attention, "v", x)
        mask = None
        if x.shape[1] > 1:
            mask = torch.ones(x.shape[1], until, dtype=torch.bool, device=x.device).tril(self.done)
        return _attended(attention, x, keys[:, :, :until], values[:, :, :until], mask)

    def _text(self, number: int, attention: Any, x: Tensor) -> Tensor:
        return _attended(attention, x, *self.text[number], self.mask)


def _heads(attention: Any, which: str, x: Tensor) -> Tensor:
    """A projection of [R, S, D], head by head: [R, H, S, D / H]."""
    projected = getattr(attention, f"{which}_proj")(x)
    return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def _attended(attention: Any, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    found = F.scaled_dot_product_attention(
        _heads(attention, "q", x), keys, values, attn_mask=mask, scale=attention.scaling
    )
    return attention.out_proj(found.transpose(1, 2).flatten(2))
