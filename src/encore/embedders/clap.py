"""CLAP: sounds and texts in one space (Wu et al., "Large-Scale Contrastive Language-Audio Pretraining", 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import ClapModel, ClapProcessor

from encore import assets
from encore.api import Backend
from encore.embedders.pretrained import Pretrained
from encore.errors import InputError
from encore.hub import pretrained


class Clap(Pretrained):
    """Unit vectors of transformers' `ClapModel`, [N, D], their cosine with a text's being the CLAP score.

    Tags are zero-shot, as in the paper's section 4.2: the softmax over the model's scaled cosines to one caption per
    tag. They are not those of a trained tagger.
    """

    default = "laion/clap-htsat-unfused"  # the text tower of larger_clap_music gives nearly the same vector to any text
    network_class = ClapModel
    tag_caption = "This is a sound of {}."
    tag_names: Sequence[str] = (
        "acoustic guitar", "electric guitar", "distorted guitar", "bass guitar", "banjo", "mandolin", "harp", "piano",
        "electric piano", "harpsichord", "organ", "accordion", "harmonica", "synthesizer", "violin", "cello", "strings",
        "orchestra", "flute", "clarinet", "oboe", "saxophone", "trumpet", "brass band", "bells", "glockenspiel",
        "marimba", "music box", "drum kit", "drum machine", "percussion", "hand claps", "female singing",
        "male singing", "choir", "rap", "whistling", "speech", "classical music", "jazz", "blues", "rock",
        "heavy metal", "punk", "country", "folk", "reggae", "hip hop", "soul", "electronic music", "techno",
        "ambient music", "noise", "silence",
    )  # fmt: skip

    def __init__(self, network: Any, processor: Any, identity: str, device: torch.device) -> None:
        super().__init__(network, processor.feature_extractor, identity, device)
        if network.config.audio_config.enable_fusion:
            raise InputError(
                f"{identity.split()[1]} is a CLAP with fusion, whose features of one sound are drawn at random",
                "take one without, such as laion/clap-htsat-unfused",
            )
        self.tokenizer = processor.tokenizer
        self.seconds = float(self.extractor.max_length_s)

    @classmethod
    def read_processor(cls, source: str, where: dict[str, Any]) -> Any:
        return pretrained(ClapProcessor, source, **where)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        longest = self.network.config.text_config.max_position_embeddings - 2  # RoBERTa counts from its padding's id
        vectors = []
        for text in texts:
            tokens = self.tokenizer([text], truncation=True, max_length=longest, return_tensors="pt").to(self.device)
            inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
            vectors.append(self.network.get_text_features(**inputs).pooler_output.float().cpu())
        return torch.cat(vectors) if vectors else torch.empty(0, self.network.config.projection_dim)

    @cached_property
    def _captions(self) -> Tensor:
        """[C, D]"""
        return self.embed_text([self.tag_caption.format(name) for name in self.tag_names]).to(self.device)

    def embed_windows(self, windows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        audio = [window.numpy() for window in windows]
        inputs = self.extractor(audio, sampling_rate=self.sample_rate, return_tensors="pt").input_features
        vectors = self.network.get_audio_features(input_features=inputs.to(self.device)).pooler_output
        return vectors, (self.network.logit_scale_a.exp() * vectors @ self._captions.T).softmax(-1)

    def pooled(self, vectors: Tensor) -> Tensor:
        return torch.nn.functional.normalize(vectors.mean(0), dim=-1)


class ClapTiny(Clap):
    """The embedded CLAP, trained on the embedded models' kind of music alone (tools/build_assets/clap.py)."""

    default = str(assets.FOLDER / assets.CLAP)
    tag_caption = "{}"
    tag_names = (
        "guitar", "harp", "lute", "mandolin", "dulcimer", "pizzicato", "banjo", "koto", "harpsichord", "piano",
        "electric piano", "bells", "glockenspiel", "celesta", "music box", "organ", "flute", "fife", "oboe", "horn",
        "accordion", "clarinet", "harmonica", "strings", "violins", "fiddle", "violin", "brass", "trumpet", "pad",
        "bass", "drums", "snare drum", "stomping", "arpeggios", "stabs", "alone",
    )  # fmt: skip

    @classmethod
    def open_weights(cls, backend: Backend, model: str = "", *, offline: bool = False) -> ClapTiny:
        if model:
            super(Pretrained, cls).open_weights(backend, model)  # which refuses
        opened = super().open_weights(backend, cls.default, offline=True)
        assert isinstance(opened, ClapTiny)
        return opened
