"""The frozen T5 that reads captions. audiocraft keeps its name, not its weights, in a checkpoint.

A folder may hold the text encoder beside the weights, in `t5/`; it is then taken from there, whatever its name is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel, T5Tokenizer

from encore.errors import InputError
from encore.hub import fetchable, pretrained, quiet_transformers

BESIDE = "t5"
LOAD_ERRORS = (  # what transformers raises where a folder or a name is not what it should be
    OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError, StrictDataclassError,
)  # fmt: skip
NAME_OF_BESIDE = "./t5"  # what a checkpoint calls a text encoder that lies beside it and has no other name


class TextEncoder(nn.Module):
    """A frozen T5 and its tokenizer.

    Args:
        beside: whether it came with the model's folder, and so has to be saved with the model.
    """

    def __init__(self, t5: T5EncoderModel, tokenizer: PreTrainedTokenizerBase, beside: bool) -> None:
        super().__init__()
        self.t5 = t5.eval().requires_grad_(False)
        self.tokenizer, self.beside = tokenizer, beside
        self.eval()

    @torch.no_grad()
    def forward(self, caption: str) -> Tensor:
        """One caption's states, [L, D]."""
        tokens = self.tokenizer([caption], return_tensors="pt").to(self.t5.device)
        states: Tensor = self.t5(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return states[0]

    def save(self, folder: Path) -> None:
        """Write it beside the weights in `folder`."""
        with quiet_transformers():
            self.t5.save_pretrained(folder / BESIDE)
            self.tokenizer.save_pretrained(folder / BESIDE)

    @classmethod
    def open(cls, name: str, folder: Path, *, offline: bool = False) -> TextEncoder:
        """Take it from beside the weights, or by name from the hub and its cache, in float32.

        Raises:
            InputError: it is in neither place.
        """
        beside = folder / BESIDE
        if beside.is_dir():
            sources = [str(beside)]
        elif name.startswith("."):
            raise InputError(f"{folder} lacks its text encoder, which lies in {BESIDE}/", "copy the whole folder")
        else:
            sources = [name] if "/" in name else [f"google-t5/{name}", name]  # the hub's name, and audiocraft's
        errors: list[InputError] = []
        texts: dict[str, Any] = {
            "what": ", the text encoder",
            "hint": "a text encoder of the hub must have been downloaded before, or lie "
            f"in {BESIDE}/ beside the weights",
        }
        for source in sources:
            loading = {**texts, "local_files_only": offline or not ("/" in source and fetchable(source))}
            try:
                with quiet_transformers():
                    tokenizer = pretrained(T5Tokenizer, source, **loading)
                    t5 = pretrained(T5EncoderModel, source, dtype=torch.float32, use_safetensors=True, **loading)
                return cls(t5, tokenizer, beside.is_dir())
            except InputError as error:
                errors.append(error)
        raise errors[0]
