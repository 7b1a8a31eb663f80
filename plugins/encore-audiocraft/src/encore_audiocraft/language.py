"""audiocraft's language model, built from a checkpoint's configuration, with nothing in it that is not trained.

The model is audiocraft's own. Three things are done to it: conditioners are only their trained projections, since the
text encoder is frozen and not in the checkpoint; padded text is masked in cross attention; and conditions are handed to
it ready-made, so that its dropout of conditions, which is for pretraining, never takes part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from encore.errors import InputError, first_line
from encore_audiocraft.kinds import channels_of, check_unfit, conditioners_of
from encore_audiocraft.library import load
from encore_audiocraft.packages import State

load()
from audiocraft.models import builders  # noqa: E402
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider  # noqa: E402
from audiocraft.modules.transformer import StreamingMultiheadAttention  # noqa: E402

Conditions = dict[
    str, tuple[Tensor, Tensor]
]  # name -> states [N, L, D] and mask [N, L], as audiocraft's fuser takes it
PROVIDER = "condition_provider.conditioners"
BUILD_ERRORS = (OmegaConfBaseException, AttributeError, KeyError, TypeError, ValueError, AssertionError, RuntimeError)


class Projection(nn.Module):
    """What is trained of a conditioner: the map of its frozen encoding to the model's width."""

    def __init__(self, dim: int, output_dim: int) -> None:
        super().__init__()
        self.output_proj = nn.Linear(dim, output_dim)


class MaskedCrossAttention(StreamingMultiheadAttention):  # type: ignore[misc]
    """audiocraft's cross attention, which does not look at the padding of shorter captions.

    audiocraft sets padded states to zero, and then attends to them, so that a clip's likelihood depends on the captions
    beside it. Where `keep` is None it is audiocraft's own, as it is for a caption alone.
    """

    keep: Tensor | None = None  # bool [N, L]: the text positions to look at

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> tuple[Tensor, None]:
        if self.keep is None:
            return super().forward(query, key, value, **rest)  # type: ignore[no-any-return]
        dim, bias = self.embed_dim, self.in_proj_bias
        parts = [slice(0, dim), slice(dim, 2 * dim), slice(2 * dim, 3 * dim)]
        q, k, v = (
            F.linear(states, self.in_proj_weight[part], None if bias is None else bias[part])
            for states, part in zip((query, key, value), parts, strict=True)
        )
        if self.qk_layer_norm:
            q, k = self.q_layer_norm(q), self.k_layer_norm(k)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # [N, heads, ·, D']
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.keep[:, None, None], dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


@dataclass
class Language:
    """A language model and what it takes to give it conditions.

    Args:
        lm: audiocraft's `LMModel`, float32, every parameter trainable.
        cfg: its configuration.
        text: name of the conditioner that reads the caption. text_encoder: name of its T5.
        melody: chroma [1, L, C] that stands for no melody, by conditioner; empty in a text-to-music model.
        delays: d_k of every codebook. channels: of audio.
        aside: weights of the checkpoint that belong to no trained part, kept to be written back.
    """

    lm: Any
    cfg: DictConfig
    text: str
    text_encoder: str
    melody: dict[str, Tensor]
    delays: list[int]
    channels: int
    aside: State

    def parts(self) -> list[nn.Module]:
        """The cross attentions."""
        return [layer.cross_attention for layer in self.lm.transformer.layers if layer.cross_attention is not None]

    @property
    def prefixed(self) -> bool:
        """Whether captions stand before the music in the same sequence: then their length moves the music."""
        return self.text in self.lm.fuser.fuse2cond["prepend"]

    def conditions(self, states: Sequence[Tensor], absent: int = 0) -> tuple[Conditions, Tensor | None]:
        """What the model is given for text states, one [L, D] a caption.

        Args:
            absent: how many rows without a caption follow those of the captions.

        Returns:
            audiocraft's condition tensors, and the mask for `masking_text`, None where all is to be looked at.
        """
        device = states[0].device
        lengths = torch.tensor([len(one) for one in states] + [0] * absent, device=device)
        padded = nn.utils.rnn.pad_sequence(list(states), batch_first=True)
        padded = F.pad(padded, (0, 0, 0, int(padded.shape[1] == 0), 0, absent))  # [N + absent, L, D], L at least 1
        real = torch.arange(padded.shape[1], device=device) < lengths[:, None]
        given = {self.text: (self._project(self.text, padded) * real[..., None], real)}
        for name, chroma in self.melody.items():
            whole = torch.ones(len(padded), chroma.shape[1], dtype=torch.bool, device=device)
            given[name] = (self._project(name, chroma.to(padded)).expand(len(padded), -1, -1), whole)
        if bool((real.all(1) | (lengths == 0)).all()):
            return given, None
        crossed = self.lm.fuser.fuse2cond["cross"]
        looked = [mask | (lengths == 0)[:, None] for name, (_, mask) in given.items() if name in crossed]
        return given, torch.cat(looked, 1) if looked else None

    def _project(self, name: str, states: Tensor) -> Tensor:
        projected: Tensor = self.lm.condition_provider.conditioners[name].output_proj(states)
        return projected

    @contextmanager
    def masking_text(self, keep: Tensor | None) -> Iterator[None]:
        """Mask cross attention in every layer, for as long as the block runs."""
        for part in self.parts():
            part.keep = keep  # type: ignore[assignment]
        try:
            yield
        finally:
            for part in self.parts():
                part.keep = None  # type: ignore[assignment]


def build(state: State, cfg: DictConfig, model: str) -> Language:
    """The language model of a checkpoint, in evaluation mode, on the CPU.

    Args:
        model: what to call it in messages.

    Raises:
        InputError: it is no MusicGen, or of a kind that this backend can't score clip by clip, or its configuration and
            its weights don't belong together.
    """
    try:
        check_unfit(state, cfg, model)
        encoders, null_melody = conditioners_of(cfg, model)
        trained, aside = _split(state, encoders)
        lm = _skeleton(cfg, trained, "meta")
        lm.load_state_dict({name: weight.float() for name, weight in trained.items()}, assign=True)
        delays, channels = list(lm.pattern_provider.delays), channels_of(cfg, model)
    except BUILD_ERRORS as error:
        raise InputError(
            f"can't load {model} as an audiocraft MusicGen: {first_line(error)}",
            "its xp.cfg and its weights must be those of one model, as audiocraft exports it",
        ) from error
    text = next(name for name, kind in encoders.items() if kind)
    return Language(lm.eval(), cfg, text, encoders[text], null_melody, delays, channels, aside)


def fresh_state(language: Language) -> State:
    """Weights as before any training, by audiocraft's own initialisation; draws from torch's global generator."""
    trained = language.lm.state_dict()
    lm = _skeleton(language.cfg, trained, "cpu")
    state: State = lm.state_dict()
    return state


def _split(state: State, encoders: dict[str, str]) -> tuple[State, State]:
    """The weights of trained parts, and the rest: what a conditioner keeps beside its projection."""
    aside = {
        name: value
        for name, value in state.items()
        if name.startswith(f"{PROVIDER}.")
        and not name.startswith(tuple(f"{PROVIDER}.{e}.output_proj." for e in encoders))
    }
    return {name: value for name, value in state.items() if name not in aside}, aside


def _skeleton(cfg: DictConfig, state: State, device: str) -> Any:
    """audiocraft's model with projections for conditioners, its weights drawn afresh (or none, on `meta`)."""
    own = OmegaConf.create(OmegaConf.to_container(cfg))
    own.device, own.dtype, own.conditioners = device, "float32", {}
    own.transformer_lm.checkpointing = "none"
    with torch.device(device):
        lm = builders.get_lm_model(own)
        for name, weight in state.items():
            if name.startswith(f"{PROVIDER}.") and name.endswith(".output_proj.weight"):
                conditioner = name.removeprefix(f"{PROVIDER}.").removesuffix(".output_proj.weight")
                lm.condition_provider.conditioners[conditioner] = Projection(weight.shape[1], weight.shape[0])
    if not isinstance(lm.pattern_provider, DelayedPatternProvider):
        raise TypeError("its codebooks follow no pattern of delays")
    for layer in lm.transformer.layers:
        if layer.cross_attention is not None:
            layer.cross_attention.__class__ = MaskedCrossAttention
    return lm.requires_grad_(True)
