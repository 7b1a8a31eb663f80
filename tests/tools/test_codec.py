"""The codec's own training parts, each beside a slow answer."""

import pytest
import torch
from tools.build_assets import codec, mdct, rvq


@pytest.fixture(scope="module")
def model():
    return codec.make()


def test_codec_has_four_codebooks_at_fifty_frames(model):
    assert model.config.num_quantizers == 4
    assert codec.encode(model, torch.randn(1, 16_000)).shape == (1, 4, 50)


def test_mdct_reconstructs_by_overlap_add():
    basis, x = mdct.mdct(8), torch.randn(1, 1, 96)
    bands = torch.nn.functional.conv1d(x, basis[:, None], stride=8)
    back = torch.nn.functional.conv_transpose1d(bands, basis[:, None], stride=8)
    assert torch.allclose(back[..., 8:-8], x[..., 8:-8], atol=1e-5)


def test_init_mdct_refuses_other_shapes(model, monkeypatch):
    monkeypatch.setattr(model.config, "upsampling_ratios", [8, 8, 5])
    with pytest.raises(ValueError, match="two stages"):
        mdct.init_mdct(model, torch.zeros(1, 3200))


def test_nearest_is_brute_force():
    torch.manual_seed(0)
    x, book = torch.randn(70, 5), torch.randn(9, 5)
    assert torch.equal(rvq.nearest(x, book), torch.cdist(x, book).argmin(1))


def test_kmeans_finds_separate_clusters():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = centres.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2)
    found = rvq.kmeans(x, 3, 30)
    assert torch.cdist(centres, found).min(1).values.max() < 0.2


def test_quantise_passes_gradients_straight_through(model):
    torch.manual_seed(0)
    z = torch.randn(2, 96, 10, requires_grad=True)
    rvq.init_codebooks(model, torch.randn(600, 96), sample=600)
    out, commitment = rvq.quantise(model, z)
    out.sum().backward()
    assert torch.allclose(z.grad, torch.ones_like(z))
    assert commitment > 0


def test_si_sdr_ignores_gain():
    x = torch.randn(3, 400)
    assert torch.all(codec.si_sdr(0.3 * x, x) > 60)
    assert abs(float(codec.si_sdr(x + torch.randn(3, 400), x).mean())) < 3


def test_round_to_half_is_idempotent():
    layer = torch.nn.Linear(4, 4)
    codec.round_to_half(layer)
    assert torch.equal(layer.weight, layer.weight.half().float())
