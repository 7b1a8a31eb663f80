"""The checks of a backend."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encore.api import Backend, Clip
from encore.errors import EncoreError, InputError, UsageError
from encore.testing import backend_changes
from encore.testing.backend_subject import CAPTIONS, BackendSubject, storage
from encore.testing.core import CheckResult, ContractViolation, Skip, Unusable, during, listed, need, run_checks
from encore.testing.state import apart, close, need_tensor, repeated, seed_shared

CLIP_TOLERANCE = 2e-5  # of a loss, which is a mean over tokens: padded text that is attended to moves it little
CODEBOOKS = 8  # whose causality is checked, at most


def run(target: type[Backend], model: str, *, offline: bool = False, **how: Any) -> tuple[CheckResult, ...]:
    """Check a backend on one model, a small one, for it is loaded often; see `run_checks`.

    Raises:
        Unusable: the backend refuses the model with an InputError.
    """
    return run_checks(CHECKS, BackendSubject(target, model, offline), first=check_load, **how)


def check_load(subject: BackendSubject) -> None:
    """load opens a model: an instance of its class, with a torch module."""
    try:
        backend = subject.backend
    except InputError as error:
        raise Unusable(error.message, error.hint) from error
    except EncoreError as error:
        raise ContractViolation(f"{subject.model} could not be loaded: {error.message}") from error
    need(isinstance(backend, subject.target), f"load returned a {type(backend).__name__}")
    need(isinstance(backend.module, nn.Module), f"module is a {type(backend.module).__name__}, not a torch module")


def check_parts(subject: BackendSubject) -> None:
    """module and the frozen parts are torch modules that share no parameter."""
    weights, frozen = dict(subject.backend.module.named_parameters()), subject.backend.frozen()
    for name, part in frozen.items():
        need(isinstance(part, nn.Module), f"the frozen {name} is a {type(part).__name__}, not a torch module")
    parts = {storage(weight): f"{part}.{name}" for part, m in frozen.items() for name, weight in m.named_parameters()}
    both = [f"{name} (also {parts[storage(w)]})" for name, w in weights.items() if storage(w) in parts]
    need(not both, f"{listed(both)} is in both module and a frozen part")


def check_mode(subject: BackendSubject) -> str | None:
    """A loaded model is in evaluation mode, its module trainable and float32, its frozen parts not trainable."""
    backend = subject.backend  # as it was loaded: what a check changes is undone
    weights, frozen = dict(backend.module.named_parameters()), backend.frozen()
    modes = {"module": backend.module, **frozen}
    training = [name for name, module in modes.items() if any(part.training for part in module.modules())]
    need(not training, f"after loading, {listed(training)} is in training mode")
    fixed = [name for name, weight in weights.items() if not weight.requires_grad]
    need(len(fixed) < len(weights), "no parameter of module requires a gradient")
    odd = [name for name, weight in weights.items() if weight.dtype != torch.float32]
    need(not odd, f"{listed(odd)} of module is not float32")
    for name, module in frozen.items():
        count = sum(weight.requires_grad for weight in module.parameters())
        need(not count, f"the frozen {name} has {count} parameters that require a gradient")
    return f"{listed(fixed)} of module requires no gradient, and is not trained" if fixed else None


def check_spec(subject: BackendSubject) -> None:
    """name is the spec's, and rates, channels, codebooks and frames are positive numbers."""
    backend, name = subject.backend, subject.target.spec.name
    need(backend.name == name, f"name is {backend.name!r}, the spec's is {name!r}")
    for field in ("sample_rate", "channels", "codebooks", "max_frames"):
        value = getattr(backend, field)
        need(isinstance(value, int) and value > 0, f"{field} is {value!r}")
    need(backend.frame_rate > 0 and math.isfinite(backend.frame_rate), f"frame_rate is {backend.frame_rate!r}")
    size, wanted = backend.codebook_size, "2 or more" if backend.has_tokens else "0 without tokens"
    need(size >= 2 if backend.has_tokens else size == 0, f"codebook_size is {size!r}, and must be {wanted}")
    need(isinstance(backend.device, torch.device), f"device is {backend.device!r}, not a torch.device")
    need(isinstance(backend.text_embeddings, dict), "text_embeddings is not a dict")
    need(backend.unit, f"unit is {backend.unit!r}, and must be the unit of losses")


def check_refusals(subject: BackendSubject) -> None:
    """A folder without a model of this family is refused with an InputError: a sentence, and a hint."""
    for what, config in (("an empty folder", ""), ("a folder of something else", '{"model_type": "none of ours"}')):
        with tempfile.TemporaryDirectory() as folder, during(f"given {what}, load"):
            if config:
                Path(folder, "config.json").write_text(config)
                Path(folder, "model.safetensors").write_bytes(b"no weights")
            try:
                subject.target.load(folder, offline=True)
            except InputError as error:
                need(error.message and "\n" not in error.message, f"{what} is refused in {error.message!r}")
                need(error.hint, f"{what} is refused without a hint: {error.message}")
            else:
                raise ContractViolation(f"given {what}, load returns a model")


def check_encode(subject: BackendSubject) -> None:
    """encode gives codes int64 [N, K, T] below codebook_size, or latents float32 [N, K, T]."""
    backend, frames = subject.backend, subject.clips[0].codes.shape[-1]
    samples, generator = round(frames / backend.frame_rate * backend.sample_rate), torch.Generator().manual_seed(7)
    angles = 2 * torch.pi * torch.arange(samples) / backend.sample_rate * torch.tensor([220.0, 440.0])[:, None]
    waveforms = 0.3 * angles.sin()[:, None] + 0.02 * torch.randn(2, backend.channels, samples, generator=generator)
    codes = backend.encode(waveforms)
    subject.need_codes("encode", codes, len(waveforms))
    near = abs(codes.shape[-1] - frames) <= max(2.0, 0.02 * frames)
    need(near, f"encode returns {codes.shape[-1]} frames for a waveform of {frames}")
    need(torch.equal(codes, backend.encode(waveforms)), "two calls of encode give different codes")
    alone = torch.cat([backend.encode(waveform[None]) for waveform in waveforms])
    changed = float((alone != codes).float().mean())
    same = changed < 0.02 if backend.has_tokens else close(alone, codes, 1e-3)
    need(same, f"{changed:.0%} of a waveform's codes change with the waveforms encoded beside it")


def check_decode(subject: BackendSubject) -> None:
    """decode gives finite waveforms [N, C, S] as long as the codes, the same every time."""
    backend, codes = subject.backend, subject.batch(subject.clips[:1]).codes
    audio = backend.decode(codes)
    need_tensor("decode", audio, (1, backend.channels, None))
    need(audio.is_floating_point(), f"decode returns {audio.dtype}")
    frames = audio.shape[-1] / backend.sample_rate * backend.frame_rate
    near = abs(frames - codes.shape[-1]) <= max(2.0, 0.02 * frames)
    need(near, f"{codes.shape[-1]} frames are decoded to {frames:.1f}")
    need(torch.equal(audio, backend.decode(codes)), "two calls of decode give different waveforms")


def check_latents(subject: BackendSubject) -> str | None:
    """latents gives float [N, D, T] for codes [N, K, T], or raises UsageError."""
    codes = subject.batch(subject.clips[:2]).codes
    try:
        latents = subject.backend.latents(codes)
    except UsageError as error:
        need(subject.backend.has_tokens, f"a backend without tokens has latents by definition: {error.message}")
        return f"refused: {error.message}"
    need_tensor("latents", latents, (len(codes), None, codes.shape[-1]))
    need(latents.is_floating_point(), f"latents returns {latents.dtype}")
    return None


def check_encode_text(subject: BackendSubject) -> None:
    """encode_text gives one frozen [L, D] per caption, whatever captions are beside it."""
    backend = subject.fresh  # without cached encodings
    encodings = backend.encode_text([*CAPTIONS, CAPTIONS[0]])
    need(len(encodings) == len(CAPTIONS) + 1, f"encode_text returns {len(encodings)} encodings for 5 captions")
    for encoding in encodings:
        need_tensor("encode_text", encoding, (None, encodings[0].shape[-1]), gradient=False)
    need(torch.equal(encodings[0], encodings[-1]), "one caption has two encodings")
    cached = set(CAPTIONS) <= set(backend.text_embeddings)
    need(cached, "encodings are not kept in text_embeddings, so that each is computed again in every step")
    another = subject.backend if CAPTIONS[0] not in subject.backend.text_embeddings else subject.load()
    beside, alone = encodings[0], another.encode_text(CAPTIONS[:1])[0]
    shapes = f"shape {list(beside.shape)} beside longer captions and {list(alone.shape)} alone"
    need(alone.shape == beside.shape, f"an encoding has {shapes}")
    need(close(alone, beside), f"an encoding changes by {apart(alone, beside):.2g} with those beside it")


def check_losses(subject: BackendSubject) -> None:
    """losses gives one finite loss per clip, [N], with a gradient; of tokens it is an NLL, 0 or more."""
    losses = subject.backend.losses(subject.batch())
    need_tensor("losses", losses, (len(subject.clips),), gradient=True)
    positive = not subject.backend.has_tokens or bool((losses >= 0).all())
    need(positive, f"a negative log-likelihood is below 0: {losses.tolist()}")


def check_determinism(subject: BackendSubject) -> None:
    """Two calls for equal clips give the same, and do not move the shared random generators."""
    backend, batch = subject.backend, subject.batch()
    losses = repeated("losses", lambda: backend.losses(batch))
    equal = [Clip(clip.track, clip.caption, clip.codes.clone()) for clip in batch.clips]
    same = torch.equal(losses, backend.losses(subject.batch(equal)))
    need(same, "losses of equal clips differ: they depend on more than caption, codes and noise index")
    if backend.has_tokens:
        repeated("logits", lambda: backend.logits(batch))


def check_token_mask(subject: BackendSubject) -> None:
    """token_mask gives bool [N, K, T], False on padding, the same for a clip in any batch."""
    backend, batch = subject.with_tokens(), subject.batch()
    mask = backend.token_mask(batch)
    need_tensor("token_mask", mask, tuple(batch.codes.shape), torch.bool)
    for row, clip in zip(mask, batch.clips, strict=True):
        frames = clip.codes.shape[-1]
        need(not row[:, frames:].any(), f"token_mask is True on the padding of a clip of {frames} frames")
        need(row.any(), f"token_mask is False all over a clip of {frames} frames")
        alone = backend.token_mask(subject.batch([clip]))[0]
        need(torch.equal(alone, row[:, :frames]), "a clip's token_mask depends on the clips beside it")


def check_logits(subject: BackendSubject) -> None:
    """logits gives float [N, K, T, V], finite where token_mask is True."""
    backend, batch = subject.with_tokens(), subject.batch()
    logits = backend.logits(batch)
    used = logits.where(backend.token_mask(batch)[..., None], 0)
    need_tensor("logits where token_mask is True", used, (*batch.codes.shape, backend.codebook_size))
    need(logits.is_floating_point(), f"logits returns {logits.dtype}")


def check_token_logprobs(subject: BackendSubject) -> None:
    """token_logprobs is log softmax of logits at the codes, 0 where masked; its mean is losses."""
    backend, batch = subject.with_tokens(), subject.batch()
    mask, logprobs = backend.token_mask(batch), backend.token_logprobs(batch)
    need_tensor("token_logprobs", logprobs, tuple(batch.codes.shape))
    need(not logprobs[~mask].any(), "token_logprobs is not 0 where token_mask is False")
    need(bool((logprobs <= 0).all()), f"a log-probability above 0: {float(logprobs.max()):.3g}")
    expected = backend.logits(batch).float().log_softmax(-1).gather(-1, batch.codes[..., None])[..., 0]
    need(close(logprobs[mask], expected[mask]), "token_logprobs differ from log softmax of logits")
    losses, mean = backend.losses(batch), -logprobs.sum((1, 2)) / mask.sum((1, 2))
    need(close(losses, mean), f"losses are {losses.tolist()}, but logits say {mean.tolist()} per unmasked token")


def check_batch_invariance(subject: BackendSubject) -> None:
    """A clip's loss depends on the clip alone, not on the clips or captions beside it."""
    backend, clips = subject.backend, subject.clips
    for noise_index in (0,) if backend.has_tokens else (0, 3):
        alone, together, backwards = (
            torch.cat([backend.losses(subject.batch(part, noise_index=noise_index)).detach() for part in parts])
            for parts in ([[clip] for clip in clips], [clips], [clips[::-1]])
        )
        for losses, order in ((together, ""), (backwards.flip(0), " in reverse order")):
            i = int((losses - alone).abs().argmax())
            figures = f"{alone[i]:.5f} alone and {losses[i]:.5f} beside others{order}"
            frames = f"{clips[i].codes.shape[-1]} frames, padded to {clips[0].codes.shape[-1]}"
            need(close(losses, alone, CLIP_TOLERANCE), f"the loss of a clip is {figures}; it has {frames}")


@torch.no_grad()
def check_causality(subject: BackendSubject) -> None:
    """A token changes no prediction of its own or of an earlier token."""
    # reach[j][k]: how far before a frame the predictions of codebook k change with codebook j from that frame on.
    # An order in which tokens can be generated has reach[j][k] + reach[k][j] < 0, and reach[k][k] < 0.
    backend, clip = subject.with_tokens(), subject.clips[0]
    frame, used = clip.codes.shape[-1] // 2, range(min(backend.codebooks, CODEBOOKS))
    mask, before = (function(subject.batch([clip]))[0] for function in (backend.token_mask, backend.logits))
    reach: list[list[float]] = []
    for j in used:
        codes = clip.codes.clone()
        codes[j, frame:] = (codes[j, frame:] + 1) % backend.codebook_size
        after = backend.logits(subject.batch([Clip(clip.track, clip.caption, codes)]))[0]
        changed = ((after - before).abs() > 1e-4 * (1 + before.abs())).any(-1) & mask  # [K, T]
        reach.append([frame - int(row.nonzero()[0]) if row.any() else -math.inf for row in changed])
    need(any(value > -math.inf for row in reach for value in row), "no token changes any prediction")
    for k in used:
        early = f"changing codebook {k} from frame {frame} on changes what is predicted for its frame "
        need(reach[k][k] < 0, f"{early}{frame - reach[k][k]}: later tokens leak")
        for j in range(k):
            need(reach[j][k] + reach[k][j] < 0, f"codebooks {j} and {k} read later tokens of each other: they leak")


@torch.no_grad()
def check_caption(subject: BackendSubject) -> None:
    """A caption changes the loss; unconditional logits ignore it."""
    backend, clip = subject.backend, subject.clips[0]
    batches = [subject.batch([Clip(clip.track, caption, clip.codes)]) for caption in CAPTIONS[:2]]
    first, second = map(backend.losses, batches)
    need(not torch.equal(first, second), "the loss is the same under any caption: the model does not read it")
    if backend.has_tokens:
        mask = backend.token_mask(batches[0])
        first, second = (backend.logits(batch, unconditional=True)[mask] for batch in batches)
        change = f"unconditional logits change by {apart(first, second):.2g} with the caption, which they must ignore"
        need(close(first, second), change)
        conditional = backend.logits(batches[0])[mask]
        need(not torch.equal(first, conditional), "unconditional logits are those with the caption")


def check_soft_prompt(subject: BackendSubject) -> None:
    """An encoding put into text_embeddings is used in losses, with a gradient to it, and in generate."""
    backend, clip, caption = subject.fresh, subject.clips[0], "known to text_embeddings alone"
    encoding = backend.encode_text(CAPTIONS[1:2])[0].detach().clone().requires_grad_(True)
    backend.text_embeddings[caption] = encoding
    clips = [Clip(clip.track, text, clip.codes) for text in (caption, CAPTIONS[1])]
    losses, expected = (backend.losses(subject.batch([one])) for one in clips)
    gradients = torch.autograd.grad(losses.sum(), [encoding], allow_unused=True) if losses.requires_grad else [None]
    if gradients[0] is None:
        raise Skip("losses have no gradient with respect to text_embeddings")
    need_tensor("the gradient with respect to text_embeddings", gradients[0], tuple(encoding.shape))
    need(bool(gradients[0].any()), "the gradient of losses with respect to text_embeddings is 0")
    same = close(losses.detach(), expected.detach())
    need(same, f"losses with an encoding from text_embeddings are {losses.tolist()}, and were {expected.tolist()}")
    seconds = subject.generated_frames / backend.frame_rate
    codes, plain = (backend.generate([one.caption], seconds=seconds, seed=5, guidance=10.0) for one in clips)
    need(_same(codes, plain), "generate does not use the encoding in text_embeddings")


def check_noise_index(subject: BackendSubject) -> None:
    """Without tokens, the noise of losses depends on the clip and on batch.noise_index."""
    backend = subject.with_tokens(False)
    zero, one, again = (backend.losses(subject.batch(noise_index=number)).detach() for number in (0, 1, 1))
    need(torch.equal(one, again), f"two calls at noise_index 1 differ by {apart(one, again):.2g}")
    need(not torch.equal(zero, one), "losses are the same at noise_index 0 and 1: training would use one noise only")


def check_no_tokens(subject: BackendSubject) -> None:
    """Without tokens, logits, token_mask and token_logprobs raise a clear UsageError."""
    backend, batch = subject.with_tokens(False), subject.batch()
    for name in ("logits", "token_mask", "token_logprobs"):
        with during(name):
            try:
                getattr(backend, name)(batch)
            except UsageError as error:
                need(error.message, f"{name} raises a UsageError without a message")
                continue
        raise ContractViolation(f"{name} returns something, and must raise UsageError")


def check_random_losses(subject: BackendSubject) -> None:
    """Without tokens, random_losses gives [N], its target drawn from the generator alone."""
    backend, batch = subject.with_tokens(False), subject.batch()

    def losses(seed: int) -> Tensor:
        return backend.random_losses(batch, torch.Generator().manual_seed(seed))

    try:
        first = losses(1)
    except UsageError as error:
        raise Skip(error.message) from error
    need_tensor("random_losses", first, (len(batch),), gradient=True)
    repeated("random_losses", lambda: losses(1))
    need(not torch.equal(first, losses(2)), "random_losses are the same whatever the generator")


def check_predictions(subject: BackendSubject) -> None:
    """Without tokens, predictions gives outputs and targets whose mean squared difference is losses."""
    backend, batch = subject.with_tokens(False), subject.batch(noise_index=3)
    try:
        pair: Any = backend.predictions(batch)
    except UsageError as error:
        raise Skip(error.message) from error
    need(isinstance(pair, tuple) and len(pair) == 2, "predictions does not return a pair, of outputs and targets")
    outputs, targets = pair
    need_tensor("predictions, for outputs,", outputs, (len(batch), None, *batch.codes.shape[1:]), gradient=True)
    need_tensor("predictions, for targets,", targets, tuple(outputs.shape), gradient=False)
    weights = [weight for weight in backend.module.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(outputs.square().sum(), weights, materialize_grads=True)
    need(any(gradient.any() for gradient in gradients), "outputs have no gradient with respect to the weights")
    expected: list[float] = []
    for clip, output, target in zip(batch.clips, outputs.detach().double(), targets.double(), strict=True):
        frames = clip.codes.shape[-1]
        for name, values in (("outputs", output), ("targets", target)):
            need(not values[..., frames:].any(), f"{name} are not 0 on the padding of a clip of {frames} frames")
        expected.append(float((output - target)[..., :frames].square().mean()))
    losses = backend.losses(batch).detach().double()
    same = close(losses.cpu(), torch.tensor(expected, dtype=torch.float64))
    need(same, f"losses are {losses.tolist()}, but outputs and targets say {expected}")
    captions = [*batch.captions[1:], batch.captions[0]]
    others = [Clip(clip.track, caption, clip.codes) for clip, caption in zip(batch.clips, captions, strict=True)]
    _, again = backend.predictions(subject.batch(others, noise_index=3))
    need(torch.equal(targets, again), f"the targets change by {apart(targets, again):.2g} with the captions")


def check_generate(subject: BackendSubject) -> None:
    """generate gives codes [N, K, T] of the seconds asked for, like encode."""
    codes, frames = subject.generated, subject.generated_frames
    subject.need_codes("generate", codes, 2)
    near = abs(codes.shape[-1] - frames) <= (0 if subject.backend.has_tokens else 1)
    need(near, f"{frames} frames were asked for, and generate returns {codes.shape[-1]}")


def check_generate_seed(subject: BackendSubject) -> None:
    """What generate returns depends on the seed, and a row on its caption, alone."""
    codes = subject.generated
    shared = seed_shared(2)
    need(_same(codes, subject.generate(seed=5)), "two calls of generate with one seed differ")
    need(not shared.moved(), f"generate draws from, or seeds, {shared.moved()} shared random generator")
    need(not _same(codes, subject.generate(seed=6)), "generate returns the same for two seeds")
    alone = subject.generate(1, seed=5)
    need(_same(codes[:1], alone), "what is generated for a caption depends on the captions beside it")


def check_prompt(subject: BackendSubject) -> None:
    """generate begins with the prompt that it is given."""
    frames = subject.generated_frames
    for length in (1, max(2, frames // 3)):
        prompt = torch.stack([subject.codes(length, seed) for seed in (1, 2)]).to(subject.backend.device)
        try:
            codes = subject.generate(prompt=prompt, seed=1)
        except UsageError as error:
            need(not subject.backend.has_tokens, f"a prompt is refused: {error.message}")
            raise Skip(error.message) from error
        need(_same(codes[..., :length], prompt), f"a prompt of {length} frames is not in what is generated")
        exact = not subject.backend.has_tokens or codes.shape[-1] == frames
        need(exact, f"{frames} frames were asked for with a prompt, and generate returns {codes.shape[-1]}")


def check_greedy(subject: BackendSubject) -> None:
    """temperature=0 generates the likeliest code given the codes before it, whatever the seed."""
    backend = subject.with_tokens()
    first, second = (subject.generate(temperature=0.0, guidance=1.0, seed=seed) for seed in (1, 2))
    need(torch.equal(first, second), "at temperature 0, two seeds generate different codes")
    batch = subject.batch([Clip(str(i), CAPTIONS[i], codes) for i, codes in enumerate(first)])
    with torch.no_grad():
        right = (backend.logits(batch).argmax(-1) == batch.codes)[backend.token_mask(batch)].float().mean()
    need(right >= 0.97, f"{1 - right:.0%} of what is generated greedily is not the likeliest code by logits")


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal codes, or latents equal up to rounding."""
    return close(a, b, 1e-3) if a.is_floating_point() else torch.equal(a, b)


CHECKS = [*(check for name, check in list(globals().items()) if name.startswith("check_")), *backend_changes.CHECKS]
