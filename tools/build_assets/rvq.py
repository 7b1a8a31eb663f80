"""Training of a residual vector quantiser, which transformers' EncodecModel leaves out.

k-means initialisation level by level on the whole corpus, then straight-through gradients with a commitment loss,
codebooks following by exponential moving average, and dead codes restarted (van den Oord et al. 2017, Défossez et al.
2022).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import EncodecModel


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of each row; x [N, D], codebook [V, D] -> [N]."""
    norms = codebook.pow(2).sum(1)[None]
    return torch.cat([(norms - 2 * part @ codebook.t()).argmin(1) for part in x.split(8192)])


def kmeans(x: Tensor, k: int, rounds: int = 15) -> Tensor:
    """Lloyd's algorithm with empty clusters moved onto random points; x [N, D] -> [k, D]."""
    centres = x[torch.randperm(len(x))[:k]].clone()
    for _ in range(rounds):
        index = nearest(x, centres)
        count = torch.bincount(index, minlength=k).float()
        total = torch.zeros_like(centres).index_add_(0, index, x)
        dead = count == 0
        centres = torch.where(dead[:, None], centres, total / count.clamp(min=1)[:, None])
        if dead.any():
            centres[dead] = x[torch.randint(len(x), (int(dead.sum()),))]
    return centres


def _books(model: EncodecModel) -> list[Any]:
    quantizer: Any = model.quantizer
    return [layer.codebook for layer in quantizer.layers]


@torch.no_grad()
def init_codebooks(model: EncodecModel, latents: Tensor, sample: int = 24_000) -> None:
    """Sets every codebook by k-means on the residuals that the levels before leave; latents [N, D]."""
    residual = latents.clone()
    for book in _books(model):
        centres = kmeans(residual[torch.randperm(len(residual))[:sample]], book.codebook_size)
        index = nearest(residual, centres)
        count = torch.bincount(index, minlength=len(centres)).float() * (400 / len(residual))
        book.embed.copy_(centres)
        book.cluster_size.copy_(count)
        book.embed_avg.copy_(centres * count[:, None])
        book.inited.fill_(1.0)
        residual = residual - centres[index]


def quantise(
    model: EncodecModel, latents: Tensor, decay: float = 0.98, dead_below: float = 0.02
) -> tuple[Tensor, Tensor]:
    """Quantised latents with straight-through gradient [B, D, T], and the commitment loss; moves the codebooks."""
    batch, dim, frames = latents.shape
    x = latents.transpose(1, 2).reshape(-1, dim)
    residual, total, commitment = x, torch.zeros_like(x), x.new_zeros(())
    for book in _books(model):
        with torch.no_grad():
            index = nearest(residual, book.embed)
            code = book.embed[index].clone()
            count = torch.bincount(index, minlength=book.codebook_size).float()
            book.cluster_size.mul_(decay).add_(count, alpha=1 - decay)
            book.embed_avg.mul_(decay).add_(
                torch.zeros_like(book.embed).index_add_(0, index, residual), alpha=1 - decay
            )
            mass = book.cluster_size.sum()
            smooth = (book.cluster_size + 1e-5) / (mass + book.codebook_size * 1e-5) * mass
            book.embed.copy_(book.embed_avg / smooth[:, None])
            dead = book.cluster_size < dead_below
            if dead.any():
                fresh = residual[torch.randint(len(residual), (int(dead.sum()),))]
                book.embed[dead], book.embed_avg[dead], book.cluster_size[dead] = fresh, fresh * 0.1, 0.1
        commitment = commitment + F.mse_loss(residual, code)
        total = total + code
        residual = residual - code.detach()
    out = x + (total - x).detach()
    return out.view(batch, frames, dim).transpose(1, 2), commitment
