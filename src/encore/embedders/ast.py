"""AST (Gong et al., "AST: Audio Spectrogram Transformer", Interspeech 2021): a tagger of AudioSet's 527 classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ASTForAudioClassification

from encore.embedders.pretrained import Pretrained


class Ast(Pretrained):
    """Its pooled output, the mean of class and distillation token, [N, D]; tags are sigmoids, [N, C].

    A tag distribution of AST is not one of PaSST or PANNs, which published KLs are of: figures don't compare.
    """

    default = "MIT/ast-finetuned-audioset-10-10-0.4593"
    network_class = ASTForAudioClassification

    def __init__(self, network: Any, extractor: Any, identity: str, device: torch.device) -> None:
        super().__init__(network, extractor, identity, device)
        labels = network.config.id2label
        self.tag_names = tuple(labels[i] for i in range(len(labels)))
        self.seconds = extractor.max_length * FRAME_SECONDS

    def embed_windows(self, windows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        audio = [window.numpy() for window in windows]
        inputs = self.extractor(audio, sampling_rate=self.sample_rate, return_tensors="pt").input_values
        vectors = self.network.audio_spectrogram_transformer(inputs.to(self.device)).pooler_output
        return vectors, self.network.classifier(vectors).sigmoid()


FRAME_SECONDS = 0.01  # of the extractor's filter bank, which has no setting for it
