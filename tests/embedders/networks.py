"""Small random networks in the hub's format, as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PreTrainedTokenizerFast,
)

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "this", "is", "sound", "of", "flute", "drums", "loud", "and", ".", "the"]


def save_clap(folder: Path, *, fusion: bool = False) -> Path:
    """Hears two seconds at 8 kHz and reads fourteen words, in a space of six dimensions."""
    torch.manual_seed(0)
    text = {
        "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 20,
    }  # fmt: skip
    sound = {
        "num_mel_bins": 16, "spec_size": 32, "patch_size": 4, "patch_stride": [4, 4], "patch_embeds_hidden_size": 8,
        "hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2], "window_size": 4,
        "enable_fusion": fusion, "fusion_type": "channel_map" if fusion else None,
    }  # fmt: skip
    model = ClapModel(ClapConfig(text_config=text, audio_config=sound, projection_dim=6))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10 if weight.dim() > 1 else 1)  # as they are drawn, sounds hardly differ
    model.save_pretrained(folder)
    extractor = ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=260, max_length_s=2, fft_window_size=512, frequency_max=4000,
        truncation="rand_trunc",
    )  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    reader = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    ClapProcessor(extractor, reader).save_pretrained(folder)
    return folder


def save_ast(folder: Path) -> Path:
    """Hears .64 s at 16 kHz, five tags."""
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=64,
        num_mel_bins=32, id2label=dict(enumerate(["Music", "Flute", "Drum", "Speech", "Silence"])),
    )  # fmt: skip
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(folder)
    return folder
