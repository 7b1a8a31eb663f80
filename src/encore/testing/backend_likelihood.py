"""Of a backend: losses, masks, logits, and what they may depend on."""

from __future__ import annotations

import torch
from torch import Tensor

from encore.api import Batch, Clip
from encore.errors import UsageError
from encore.testing.backend_subject import BackendSubject
from encore.testing.core import ContractViolation, Skip, Suite, need, raised
from encore.testing.global_state import Globals, apart, close, disturb

suite: Suite[BackendSubject] = Suite("backend")
CLIP_TOLERANCE = 2e-5  # of a loss, which is a mean over a clip's tokens: text that is padded and read moves it little
MOST_CODEBOOKS = 8  # whose causality is looked at


@suite.check("losses", "losses gives one finite float loss a clip, [N], with a gradient")
def losses(subject: BackendSubject) -> None:
    backend, batch = subject.backend, subject.batch()
    found = backend.losses(batch)
    need(found.shape == (len(batch),), f"losses returns shape {list(found.shape)} for {len(batch)} clips")
    need(found.is_floating_point(), f"losses returns {found.dtype}")
    need(found.isfinite().all(), f"losses that are not finite: {_figures(found)}")
    need(found.requires_grad, "losses have no gradient")
    need(not backend.has_tokens or bool((found >= 0).all()), f"a negative log-likelihood below 0: {_figures(found)}")


@suite.check("token_mask", "token_mask gives bool [N, K, T], False on padding, a clip's the same in any batch")
def token_mask(subject: BackendSubject) -> None:
    backend, batch = subject.with_tokens(), subject.batch()
    mask = backend.token_mask(batch)
    need(mask.dtype == torch.bool, f"token_mask returns {mask.dtype}")
    need(
        mask.shape == batch.codes.shape,
        f"token_mask returns shape {list(mask.shape)} for codes {list(batch.codes.shape)}",
    )
    for row, clip in zip(mask, batch.clips, strict=True):
        frames = clip.codes.shape[-1]
        need(not row[:, frames:].any(), f"token_mask is True on the padding of a clip of {frames} frames")
        need(row.any(), f"token_mask is False all over a clip of {frames} frames")
        alone = backend.token_mask(subject.batch([clip]))[0]
        need(torch.equal(alone, row[:, :frames]), "a clip's token_mask depends on the clips beside it")


@suite.check("logits", "logits gives [N, K, T, V], finite where token_mask is True")
def logits(subject: BackendSubject) -> None:
    backend, batch = subject.with_tokens(), subject.batch()
    found = backend.logits(batch)
    wanted = (*batch.codes.shape, backend.codebook_size)
    need(found.shape == wanted, f"logits returns shape {list(found.shape)}, and must return {list(wanted)}")
    need(found.is_floating_point(), f"logits returns {found.dtype}")
    need(found[backend.token_mask(batch)].isfinite().all(), "logits that are not finite where token_mask is True")


@suite.check(
    "token_logprobs", "token_logprobs is log softmax of logits at the codes, 0 where masked; its mean is losses"
)
def token_logprobs(subject: BackendSubject) -> None:
    backend, batch = subject.with_tokens(), subject.batch()
    mask = backend.token_mask(batch)
    found = backend.token_logprobs(batch)
    need(found.shape == batch.codes.shape, f"token_logprobs returns shape {list(found.shape)}")
    need(not found[~mask].any(), "token_logprobs is not 0 where token_mask is False")
    need(bool((found <= 0).all()), f"a log-probability above 0: {float(found.max()):.3g}")
    expected = backend.logits(batch).float().log_softmax(-1).gather(-1, batch.codes[..., None])[..., 0]
    need(
        close(found[mask], expected[mask]),
        f"token_logprobs differ by {apart(found[mask], expected[mask]):.2g} from log softmax of logits",
    )
    mean = -found.sum((1, 2)) / mask.sum((1, 2))
    own = backend.losses(batch)
    need(close(own, mean), f"losses are {_figures(own)}, but logits say {_figures(mean)}: a mean over unmasked tokens")


@suite.check("determinism", "two calls give the same to the last bit, without touching the shared random generators")
def determinism(subject: BackendSubject) -> None:
    backend, batch = subject.backend, subject.batch()
    disturb(1)
    before = Globals()
    first = backend.losses(batch)
    moved = before.moved()
    need(not moved, f"losses draws from, or seeds, {moved} shared random generator")
    disturb(2)
    second = backend.losses(batch)
    need(torch.equal(first, second), f"two calls of losses differ by {apart(first, second):.2g}")
    same = [Clip(clip.track, clip.caption, clip.codes.clone()) for clip in batch.clips]
    third = backend.losses(subject.batch(same))
    need(
        torch.equal(first, third),
        "losses of equal clips differ: they depend on more than caption, codes and noise index",
    )
    if backend.has_tokens:
        need(torch.equal(backend.logits(batch), backend.logits(batch)), "two calls of logits differ")


@suite.check("batch invariance", "a clip's loss depends on the clip alone, not on the clips or captions beside it")
def batch_invariance(subject: BackendSubject) -> None:
    backend, clips = subject.backend, subject.clips
    for noise_index in (0,) if backend.has_tokens else (0, 3):
        alone = torch.cat([backend.losses(subject.batch([clip], noise_index=noise_index)) for clip in clips]).detach()
        together = backend.losses(subject.batch(noise_index=noise_index)).detach()
        backwards = backend.losses(subject.batch(clips[::-1], noise_index=noise_index)).detach().flip(0)
        for other, how in ((together, "beside others"), (backwards, "beside the same in reverse order")):
            if not close(other, alone, CLIP_TOLERANCE):
                worst = int((other - alone).abs().argmax())
                raise ContractViolation(
                    f"the loss of a clip of {clips[worst].codes.shape[-1]} frames is {alone[worst]:.5f} alone and "
                    f"{other[worst]:.5f} {how}, padded to {max(clip.codes.shape[-1] for clip in clips)} frames"
                )


@suite.check("causality", "a token changes no prediction of its own or of an earlier token")
def causality(subject: BackendSubject) -> None:
    """With r[k][j] how far before frame f a change of codebook j from f on is felt in codebook k, any order in which
    tokens can be played has r[k][j] + r[j][k] < 0; of a codebook with itself, r[k][k] < 0."""
    backend = subject.with_tokens()
    clip = subject.clips[0]
    frame = clip.codes.shape[-1] // 2
    used = min(backend.codebooks, MOST_CODEBOOKS)
    with torch.no_grad():
        mask = backend.token_mask(subject.batch([clip]))[0]
        before = backend.logits(subject.batch([clip]))[0]
        reach = [[_felt(subject, clip, j, frame, before, mask)[k] for j in range(used)] for k in range(used)]
    for k in range(used):
        early = reach[k][k]
        if early is not None and early >= 0:
            raise ContractViolation(
                f"changing codebook {k} from frame {frame} on changes what is predicted for its frame {frame - early}: "
                "later tokens leak"
            )
    for k in range(used):
        for j in range(k):
            there, back = reach[k][j], reach[j][k]
            if there is not None and back is not None and there + back >= 0:
                raise ContractViolation(
                    f"codebooks {j} and {k} each look at tokens of the other that come later: they leak"
                )
    if all(value is None for row in reach for value in row):
        raise ContractViolation("no token changes any prediction: the model does not look at its past")


def _felt(
    subject: BackendSubject, clip: Clip, codebook: int, frame: int, before: Tensor, mask: Tensor
) -> list[int | None]:
    """How many frames before `frame` each codebook's predictions change, [K]; None where they don't."""
    codes = clip.codes.clone()
    codes[codebook, frame:] = (codes[codebook, frame:] + 1) % subject.backend.codebook_size
    after = subject.backend.logits(subject.batch([Clip(clip.track, clip.caption, codes)]))[0]
    changed = ((after - before).abs() > 1e-4 * (1 + before.abs())).any(-1) & mask  # [K, T]
    return [frame - int(row.nonzero()[0]) if row.any() else None for row in changed]


@suite.check("caption", "a caption changes the loss; without it (unconditional) none does")
def caption(subject: BackendSubject) -> None:
    backend, clip = subject.backend, subject.clips[0]
    other = Clip(clip.track, subject.clips[1].caption, clip.codes)
    with torch.no_grad():
        own, another = (backend.losses(subject.batch([one])) for one in (clip, other))
        need(not torch.equal(own, another), "the loss is the same under any caption: the model does not read it")
        if backend.has_tokens:
            mask = backend.token_mask(subject.batch([clip]))
            first, second = (backend.logits(subject.batch([one]), unconditional=True)[mask] for one in (clip, other))
            need(
                close(first, second),
                f"unconditional logits change by {apart(first, second):.2g} with the caption, which they must ignore",
            )
            conditional = backend.logits(subject.batch([clip]))[mask]
            need(not torch.equal(first, conditional), "unconditional logits are those with the caption")


# ---------------------------------------------------------------------------------------------------- without tokens


@suite.check("noise_index", "without tokens, the noise of losses depends on the clip and on batch.noise_index")
def noise_index(subject: BackendSubject) -> None:
    backend = subject.without_tokens()
    zero, one, again = (backend.losses(subject.batch(noise_index=number)).detach() for number in (0, 1, 1))
    need(torch.equal(one, again), f"two calls at noise_index 1 differ by {apart(one, again):.2g}")
    need(not torch.equal(zero, one), "losses are the same at noise_index 0 and 1: training would hear one noise alone")


@suite.check("no tokens", "without tokens, logits and token_mask raise UsageError")
def no_tokens(subject: BackendSubject) -> None:
    backend, batch = subject.without_tokens(), subject.batch()
    for name in ("logits", "token_mask", "token_logprobs"):
        try:
            getattr(backend, name)(batch)
        except UsageError as error:
            need(error.message, f"{name} raises a UsageError that says nothing")
        except Exception as error:
            raise ContractViolation(f"{name} {raised(error)}, and must raise UsageError") from error
        else:
            raise ContractViolation(f"{name} returns something, and must raise UsageError")


@suite.check("random_losses", "without tokens, random_losses gives [N], its target drawn from the generator alone")
def random_losses(subject: BackendSubject) -> None:
    backend, batch = subject.without_tokens(), subject.batch()

    def drawn(seed: int, given: Batch = batch) -> Tensor:
        return backend.random_losses(given, torch.Generator().manual_seed(seed))

    try:
        first = drawn(1)
    except UsageError as error:
        raise Skip(error.message) from error
    need(first.shape == (len(batch),), f"random_losses returns shape {list(first.shape)} for {len(batch)} clips")
    need(first.requires_grad and bool(first.isfinite().all()), "random_losses are not finite, or have no gradient")
    disturb(5)
    shared = Globals()
    need(torch.equal(first, drawn(1)), "two calls of random_losses with one generator's seed differ")
    need(not shared.moved(), f"random_losses draws from {shared.moved()} shared random generator")
    need(
        not torch.equal(first, drawn(2)), "random_losses are the same whatever the generator: nothing is drawn from it"
    )


def _figures(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.detach().flatten().tolist()[:4])
