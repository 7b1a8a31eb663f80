from __future__ import annotations

import pytest
import torch
from tests.metrics.markov import MarkovBackend
from tests.tiny_model import write_tiny_musicgen

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.embedders.latents import Latents
from encore.errors import InputError


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def backend(request, tmp_path_factory):
    return MusicgenBackend.load(str(write_tiny_musicgen(tmp_path_factory.mktemp("tiny"), channels=request.param)))


@pytest.fixture
def codes(backend):
    return torch.randint(0, 32, (3, backend.codebooks, 20), generator=torch.Generator().manual_seed(0))


def test_embedding_is_the_mean_and_spread_of_the_summed_code_vectors(backend, codes):
    tables = [layer.codebook.embed for layer in backend.frozen()["codec"].quantizer.layers]
    for row, embedded in zip(codes, Latents.open(backend).embed_codes(codes), strict=True):
        latents = torch.zeros(backend.channels, 8, 20)
        for k, frames in enumerate(row):  # left and right alternate
            latents[k % backend.channels] += tables[k // backend.channels][frames].T
        mean = latents.mean(0)
        torch.testing.assert_close(embedded, torch.cat([mean.mean(1), mean.std(1, unbiased=False)]))


def test_a_clip_embeds_alike_from_its_codes_and_from_its_waveform(backend):
    waveform = torch.rand(2, 1600, generator=torch.Generator().manual_seed(0)) - 0.5
    codes = backend.encode(waveform[:, None].expand(-1, backend.channels, -1))
    embedder = Latents.open(backend)
    assert embedder.sample_rate == backend.sample_rate
    torch.testing.assert_close(embedder.embed(waveform), embedder.embed_codes(codes))
    assert embedder.embed(waveform).shape == (2, 16)


def test_identity_is_that_of_the_codec_and_not_of_the_decoder(backend):
    before = Latents.open(backend).identity
    other = backend.clone()
    other.reinitialise(5)
    assert Latents.open(other).identity == before
    clip = Clip("t", "slow church organ", torch.zeros(backend.codebooks, 9, dtype=torch.long))
    assert not torch.equal(backend.losses(Batch.of([clip])), other.losses(Batch.of([clip])))


def test_identity_changes_with_the_codecs_weights(tmp_path):
    names = [str(write_tiny_musicgen(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    first, second = (Latents.open(MusicgenBackend.load(name)).identity for name in names)
    assert first != second
    assert first.startswith("codec-latents-mean-std/1 sha256:")


def test_another_codec_is_refused():
    with pytest.raises(InputError, match="needs a codec"):
        Latents.open(MarkovBackend())
