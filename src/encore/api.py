"""What plugin authors import: the Specs they register, and the contracts their classes keep.

Importing this module costs nothing: no torch, no pydantic. Shapes used throughout:
N clips, K codebooks, T codec frames, V codes a codebook, L text tokens, D channels, C audio channels, S samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import pluggy

from encore.errors import PluginError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from torch import Tensor, nn

    from encore.options import Options as BaseOptions
    from encore.options import TrainOptions

hookimpl = pluggy.HookimplMarker("encore")

# Whose codes a Fisher's gradients are of: the clips', or the model's own; auto: the model's where it has tokens.
Labels = Literal["auto", "empirical", "sampled"]
Made = TypeVar("Made")


# ---------------------------------------------------------------------------------------------------------- specs


@dataclass(frozen=True)
class Spec:
    """How a plugin announces one thing. Listing it imports nothing; `target` is imported on first use.

    Args:
        name: what the user types; lower case, dashes.
        summary: one line for the listing.
        target: "package.module:Class".
        requires: what must be importable for it to work, as distribution names ("librosa"); checked before the import.
        needs: what must be there for it to work; see the subclass.
        install: the command that installs what it requires, where `pip install` and its names do not; shown as it is.
    """

    kind: ClassVar[str] = ""
    known_needs: ClassVar[frozenset[str]] = frozenset()

    name: str
    summary: str
    target: str
    requires: tuple[str, ...] = ()
    needs: AbstractSet[str] = frozenset()
    install: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", frozenset(self.needs))
        unknown = self.needs - self.known_needs
        if unknown:
            raise ValueError(
                f"{self.kind} {self.name!r} needs {sorted(unknown)}, but a {self.kind} can only need "
                f"{sorted(self.known_needs)}"
            )


class MethodSpec(Spec):
    """An unlearning method.

    `needs`: retain (clips to keep), reference (the base model), logits (a token model), holdout (clips never heard),
    fisher (it may call `Session.fisher`).
    """

    kind = "method"
    known_needs = frozenset({"retain", "reference", "logits", "holdout", "fisher", "hidden"})


class BackendSpec(Spec):
    """A model family: loads, trains, plays and saves."""

    kind = "backend"


@dataclass(frozen=True)
class MetricSpec(Spec):
    """A metric. `needs`: roles and tools without which there is nothing to measure.

    Args:
        full: `encore eval` measures it with `--full`, or where `--metrics` names it, and not by default. Set it for
            what takes more than a few seconds on the embedded model: attacks, many generations.
    """

    full: bool = False

    kind = "metric"
    known_needs = frozenset({"generations", "embedder", "gold", "gold2", "holdout", "retain", "base", "logits"})


class EmbedderSpec(Spec):
    """An audio embedder: waveforms to vectors."""

    kind = "embedder"


# ----------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True, eq=False)
class Clip:
    """One window of one track, as a model hears it. Two clips are equal only when they are the same object.

    Args:
        track: the track's id; several clips share it where the track is longer than the model's window.
        caption: the text the model is conditioned on.
        codes: codec tokens, int64 [K, T]; of a backend without tokens its latents, float32 [K, T].
    """

    track: str
    caption: str
    codes: Tensor


@dataclass(frozen=True)
class Batch:
    """Clips stacked for one forward pass, zero-padded to the longest.

    Args:
        clips: the N clips; their captions' frozen encodings are looked up by the backend.
        codes: int64 [N, K, T].
        frames: int64 [N], how many of T are real.
        draw: which noise a backend without tokens adds. 0 is the fixed one, by which losses compare; the engine gives
            every training step one of its own.
    """

    clips: tuple[Clip, ...]
    codes: Tensor
    frames: Tensor
    draw: int = 0

    @classmethod
    def of(cls, clips: Sequence[Clip], device: torch.device | str | None = None, *, draw: int = 0) -> Batch:
        """Stack clips of any lengths; on the clips' own device unless another is named."""
        import torch

        frames = [clip.codes.shape[-1] for clip in clips]
        codes = clips[0].codes.new_zeros(len(clips), *clips[0].codes.shape[:-1], max(frames))  # [N, K, T]
        for row, clip in zip(codes, clips, strict=True):
            row[..., : clip.codes.shape[-1]] = clip.codes
        device = device or codes.device
        return cls(tuple(clips), codes.to(device), torch.tensor(frames, device=device), draw)

    @property
    def captions(self) -> list[str]:
        return [clip.caption for clip in self.clips]

    def __len__(self) -> int:
        return len(self.clips)


# -------------------------------------------------------------------------------------------------------- backend


class Backend(ABC):
    """One loaded music model.

    A token model (MusicGen) keeps all of the contract. A model without tokens (diffusion) sets `has_tokens = False`,
    keeps latents where others keep codes, raises UsageError from `logits` and `token_mask`, and implements `losses`
    with noise and timesteps that depend on the clip and `batch.draw` alone, so that two models compare pair by pair.

    Attributes:
        name: the spec's name.
        module: the trainable part, and nothing else. Methods change these weights only.
        sample_rate: Hz. channels: audio channels. frame_rate: codec frames a second.
        codebooks: K (channels of a latent). codebook_size: V (0 without tokens). max_frames: longest window in codec
            frames.
        conditions: the encodings `condition` has computed or was given (from the cache on disk), a caption.
        library_name: the library that opens what `save` writes, as the hub calls it.
    """

    spec: ClassVar[BackendSpec]
    has_tokens: ClassVar[bool] = True
    library_name: ClassVar[str] = "transformers"

    name: str
    module: nn.Module
    sample_rate: int
    channels: int
    frame_rate: float
    codebooks: int
    codebook_size: int
    max_frames: int
    device: torch.device
    conditions: dict[str, Tensor]

    @classmethod
    @abstractmethod
    def load(cls, model: str, *, revision: str | None = None, offline: bool = False, device: str = "cpu") -> Backend:
        """Open a model folder or hub name, in evaluation mode and float32.

        Raises:
            InputError: the folder or name is not a model of this family.
        """

    @abstractmethod
    def frozen(self) -> Mapping[str, nn.Module]:
        """The parts that must stay bit-identical (codec, text encoder), by name."""

    @abstractmethod
    def encode(self, waveforms: Tensor) -> Tensor:
        """Waveforms [N, C, S] at `sample_rate` -> codes int64 [N, K, T], or latents float32 [N, K, T]."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [N, K, T] -> waveforms [N, C, S]."""

    def latents(self, codes: Tensor) -> Tensor:
        """What the codec's decoder is given for codes [N, K, T]: float [N, D, T], channels of audio averaged.

        Raises:
            UsageError: the codec has no such thing.
        """
        if not self.has_tokens:
            return codes
        raise UsageError(f"the backend {self.name} has no latents to embed", "choose another --embedder")

    @abstractmethod
    def condition(self, captions: Sequence[str]) -> list[Tensor]:
        """Frozen text encodings, one [L, D] a caption without padding; computed once a caption and kept."""

    @abstractmethod
    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        """Next-token logits [N, K, T, V], aligned with `batch.codes`; meaningless where `token_mask` is False."""

    @abstractmethod
    def token_mask(self, batch: Batch) -> Tensor:
        """bool [N, K, T]: the tokens the model is trained to predict (padding and the delay's tail are False)."""

    def token_logprobs(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        """log p of each token given its past and the caption, [N, K, T]; 0 where `token_mask` is False."""
        from encore.losses import token_logprobs

        return token_logprobs(self.logits(batch, unconditional=unconditional), batch.codes, self.token_mask(batch))

    def losses(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood a token of each clip, nats, [N]; independent of the rest of the batch.

        Without tokens: the training loss of each clip, at the noise of `batch.draw`.
        """
        return -self.token_logprobs(batch).sum((1, 2)) / self.token_mask(batch).sum((1, 2))

    @property
    def unit(self) -> str:
        """What `losses` are in."""
        return "nats/token" if self.has_tokens else "loss"

    @property
    def settings(self) -> str:
        """What `encode`, `condition` and `losses` depend on beside weights, or its hash: part of every cache's key."""
        return ""

    def random_losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Without tokens: the loss of each clip toward a target drawn at random in place of its own, [N].

        Args:
            generator: where the target is drawn from, on the CPU.

        Raises:
            UsageError: the backend has no such loss; with tokens it is a cross-entropy of `logits` to random codes.
        """
        raise UsageError(f"the backend {self.name} has no random target to train toward", "choose another --method")

    @abstractmethod
    def generate(
        self,
        captions: Sequence[str],
        *,
        seconds: float,
        prompt: Tensor | None = None,
        seed: int = 0,
        guidance: float = 3.0,
        temperature: float = 1.0,
        top_k: int = 250,
    ) -> Tensor:
        """Play captions: codes [N, K, T] of `seconds`, which begin with `prompt` [N, K, P] where one is given.

        `temperature=0` is greedy decoding; `guidance=1` turns classifier-free guidance off.
        """

    @abstractmethod
    def reinitialise(self, seed: int) -> None:
        """Draw the trainable weights anew, as before any training."""

    @abstractmethod
    def clone(self) -> Backend:
        """A copy with trainable weights of its own; the frozen parts are shared."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model in its own ecosystem's format into an existing folder.

        That is safetensors, or, where its library reads nothing else, pickles that `torch.load(weights_only=True)`
        reads: tensors and plain values.
        """


# --------------------------------------------------------------------------------------------------------- method


class Reference(ABC):
    """The base model, frozen: what a method may compare with."""

    @abstractmethod
    def nll(self, batch: Batch) -> Tensor:
        """The base's NLL of each clip, [N]; computed once a clip."""

    @abstractmethod
    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        """The base's logits [N, K, T, V], without gradient."""


@dataclass(frozen=True)
class Step:
    """What a loss method is given for one step, beside the batch.

    Args:
        backend: the model being trained; call `losses`, `logits`, `token_mask` on the batch.
        reference: the base model; None where the method does not declare `reference`.
        generator: the run's random numbers (on the CPU); use no other source.
        progress: 0 at the first step, towards 1 at the last one allowed.
        level: NLL of unseen music of the same source under the base model; None where there is no holdout.
    """

    backend: Backend
    reference: Reference | None
    generator: torch.Generator
    progress: float
    level: float | None


@dataclass
class Session:
    """What a method is given once, before the first step (loss methods) or for the whole edit (edit methods).

    `holdout` is unseen music of the same source. Gold is never here: no method may read it. A loss method may replace
    `retain` in `prepare`: clips are drawn from it in passes, so a clip that stands there twice is drawn twice as often.
    It may also fill `masks` there: parameter name -> bool of its shape. Weights where the mask is False stay bit for
    bit as they are, whatever weight decay and momentum are; a parameter without a mask is trained as a whole.
    """

    backend: Backend
    forget: Sequence[Clip]
    retain: Sequence[Clip]
    holdout: Sequence[Clip]
    reference: Reference | None
    generator: torch.Generator
    seed: int
    level: float | None
    run_loop: Callable[[LossMethod], None] = field(repr=False)
    run_fisher: Callable[[Sequence[Clip], Literal["empirical", "sampled"], int], dict[str, Tensor]] | None = field(
        default=None, repr=False
    )
    masks: dict[str, Tensor] = field(default_factory=dict)

    def train(self, method: LossMethod) -> None:
        """Run the engine's own loop on a loss method: its optimiser, precision, checkpoints, guards, log."""
        self.run_loop(method)

    def fisher(self, clips: Sequence[Clip], *, labels: Labels = "auto", micro_batch_size: int = 8) -> dict[str, Tensor]:
        """F = (1/n) Σ_n g_n∘g_n at the weights as they are, g_n the gradient of clip n's mean NLL a token.

        It is the mean over clips of the squares, not the square of their mean: it does not depend on batch sizes. Taken
        in evaluation mode and float32, and kept on disk by the hashes of model and clips, so that it is computed once.

        Args:
            clips: one sample each.
            labels: "empirical", the clips' own codes; "sampled", codes drawn from the model given the clip's true past;
                "auto", sampled where the backend has tokens.
            micro_batch_size: clips a pass; changes nothing but memory and rounding.

        Returns:
            trainable parameter name -> F of its shape, the caller's own.

        Raises:
            PluginError: the method does not declare `fisher`.
            UsageError: "sampled" of a backend without tokens.
        """
        if self.run_fisher is None:
            raise PluginError("a method that takes a Fisher must say so: MethodSpec(..., needs={'fisher'})")
        if labels == "auto":
            labels = "sampled" if self.backend.has_tokens else "empirical"
        return self.run_fisher(clips, labels, micro_batch_size)


class Method(ABC):
    """Base of the two kinds of method. `Options` is a pydantic model (`encore.options`) with tuned defaults."""

    spec: ClassVar[MethodSpec]
    Options: ClassVar[type[BaseOptions]]

    def __init__(self, options: BaseOptions) -> None:
        self.options = options


class LossMethod(Method):
    """A method that is a loss: the engine owns the loop. `Options` must derive from `TrainOptions`.

    The objective is mean(forget_loss) + mean(retain_loss) + penalty. The losses are asked for per clip, so that the
    engine can cut a batch into micro-batches, or clip a track's gradient, without changing what is optimised.
    """

    options: TrainOptions

    def prepare(self, session: Session) -> None:
        """Look at the data once, before the first step. Runs again when a run is resumed: keep it deterministic."""
        return None

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        """Loss of each forget clip, [N]. A method that leaves this out never looks at the forget clips."""
        raise NotImplementedError

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        """Loss of each retain clip, [N]. Asked for only where the spec needs `retain`."""
        return step.backend.losses(batch)

    def penalty(self, step: Step) -> Tensor | None:
        """What is no clip's own, such as a distance of weights: a scalar, once a step."""
        return None

    @property
    def uses_forget(self) -> bool:
        return type(self).forget_loss is not LossMethod.forget_loss

    @property
    def uses_penalty(self) -> bool:
        return type(self).penalty is not LossMethod.penalty


class EditMethod(Method):
    """A method that changes weights directly, and may call `session.train` for the parts that are training."""

    @abstractmethod
    def edit(self, session: Session) -> None:
        """Change `session.backend.module`'s weights in place."""


# --------------------------------------------------------------------------------------------------------- metric

Role = Literal["base", "unlearned", "gold", "gold2", "control"]
ClipSet = Literal["forget", "retain", "holdout"]
Source = Role | Literal["audio", "recorded"]  # whose sound: a model's generations, the clips as codes, their files


@dataclass(frozen=True)
class Result:
    """One row of `metrics.json`.

    Args:
        metric: the row's metric name. model: which role it was measured on ("none" for a test without any model).
        set: on which clips.
        value: the figure, None where it could not be measured; then `why` says why, in one sentence.
        low, high: ends of the 95 % interval, None where there is none.
        n: how many tracks (or generations) the figure rests on.
        unit: "nats/token", "share", "AUC"; "" for a bare number.
        direction: which way is better for a model that has forgotten and kept: "gold" means close to gold's figure.
        per_track: figure a track id; None where a track's figure is not finite.
        note: what a reader must know to read the figure rightly, in one sentence.
        details: what else belongs to it, as JSON: relearn's curve, the embedder's identity.
    """

    metric: str
    model: str
    set: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: str = ""
    direction: Literal["gold", "lower", "higher", "base"] = "gold"
    per_track: Mapping[str, float | None] = field(default_factory=dict)
    why: str | None = None
    note: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)


class Evaluation(ABC):
    """What a metric reads: models and clips, and everything costly computed once and shared.

    What is returned is shared: don't write into it. Lists hold one item a clip, in the order of `clips[set]`.

    Attributes:
        models: the roles that were given -> loaded model. clips: set -> clips; a set may be absent.
        seed: for every random draw. force: measure also where a figure is known to be mostly bias, and say so.
        embedder: the first of `embedders`; None where none was asked for, or could be had.
        embedders: what was asked for and could be opened, by name.
        unopened: what was asked for and could not, by name, and why.
        about: what is known of a track beside its caption, by its id: "artist", "genre". A track may be absent.
    """

    models: Mapping[Role, Backend]
    clips: Mapping[ClipSet, Sequence[Clip]]
    about: Mapping[str, Mapping[str, str]]
    seed: int
    force: bool
    embedder: Embedder | None
    embedders: Mapping[str, Embedder]
    unopened: Mapping[str, str]

    @abstractmethod
    def backend(self, model: Role) -> Backend:
        """The model of a role; `control`, the never-trained one, is made from another on first use.

        Raises:
            KeyError: the role was not given.
        """

    @abstractmethod
    def batches(self, clips: Sequence[Clip]) -> Iterable[Sequence[Clip]]:
        """Clips in pieces small enough for one forward (and backward) pass."""

    @abstractmethod
    def nll(self, model: Role, clips: ClipSet) -> Mapping[str, float]:
        """Mean NLL a token of each track, nats; a track's windows count by their tokens. Also without tokens."""

    @abstractmethod
    def token_mask(self, clips: ClipSet) -> list[Tensor]:
        """Which tokens a model is trained to predict, one bool [K, T] a clip."""

    @abstractmethod
    def token_logprobs(self, model: Role, clips: ClipSet, *, unconditional: bool = False) -> list[Tensor]:
        """log p of each token given its past and the caption, one float32 [K, T] a clip, 0 where masked."""

    @abstractmethod
    def predictions(self, model: Role, clips: ClipSet) -> list[Tensor]:
        """The likeliest code given the true past, int64 [K, T] a clip, -1 where masked."""

    @abstractmethod
    def kl(self, target: Role, model: Role, clips: ClipSet) -> list[Tensor]:
        """KL(target ‖ model) of each token, nats, one [K, T] a clip, 0 where masked."""

    @abstractmethod
    def continuations(self, model: Role, clips: ClipSet, prompt_frames: int) -> list[Tensor]:
        """Greedy codes [K, T], without guidance, after the caption and the clip's first `prompt_frames` frames.

        T is the clip's length, at most `prompt_frames` plus the evaluation's limit. A clip no longer than the prompt
        comes back as it is.
        """

    @abstractmethod
    def generations(self, model: Role, clips: ClipSet) -> list[Tensor]:
        """Sampled codes [K, T], one or more a track's caption (no prompt), in the order of track ids.

        Item i of every model has the same caption and the same noise.
        """

    @abstractmethod
    def embeddings(self, source: Source, clips: ClipSet, embedder: str = "") -> np.ndarray:
        """Embeddings [N, D] of a model's `generations`, of the clips (`audio`), or of their files (`recorded`).

        Args:
            embedder: one of `embedders` by name, the first one where none is named.

        Raises:
            EncoreError: no embedder was chosen, or the files are not at hand.
        """

    @abstractmethod
    def tags(self, source: Source, clips: ClipSet, embedder: str = "") -> np.ndarray | None:
        """Probabilities [N, C] of the embedder's tags, as `embeddings`; None where it has no tags."""

    @abstractmethod
    def recorded(self, clips: ClipSet) -> bool:
        """Whether the files of a set's tracks are at hand, for the source `recorded`."""

    @abstractmethod
    def embed(self, codes: Sequence[Tensor]) -> np.ndarray:
        """Embeddings [N, D] of any codes, [K, T] each, by the first embedder.

        Raises:
            EncoreError: no embedder was chosen.
        """

    @abstractmethod
    def other(
        self,
        *,
        models: Mapping[Role, Backend] | None = None,
        clips: Mapping[ClipSet, Sequence[Clip]] | None = None,
    ) -> Evaluation:
        """The same evaluation of other models, or on other clips: of a quantised copy, with reworded captions.

        It shares the seed, the embedder and what is known of tracks; what it computes is its own.
        """

    @abstractmethod
    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returns, computed for the first caller with this key and shared with the later ones.

        Begin the key with your metric's name, and put all in it that the result depends on beside the evaluation.
        """

    @abstractmethod
    def kept(
        self,
        key: Hashable,
        make: Callable[[], Mapping[str, Tensor]],
        *,
        models: Sequence[Role],
        clips: Sequence[Clip],
    ) -> Mapping[str, Tensor]:
        """What `make` computes of models on clips, by name: computed once, and found on disk by later evaluations.

        For what is costly and follows from the models' weights, the clips and the evaluation's seed and batch sizes;
        those, the versions of libraries and the code of Encore and of every plugin are seen to. In an evaluation that
        keeps nothing it is `once`.

        Args:
            key: strings, numbers, None and tuples of them: your metric's name first, then all else that the result
                depends on, such as a number of steps and the version of a library that Encore does not know of.
            models, clips: all that `make` reads, in an order that matters.
        """


class Metric(ABC):
    """One metric: reads an `Evaluation`, returns rows for every model and set it is about."""

    spec: ClassVar[MetricSpec]

    @abstractmethod
    def measure(self, evaluation: Evaluation) -> Iterable[Result]:
        """Rows of `metrics.json`. What can't be measured is a row with `why`, never left out."""


class Embedder(ABC):
    """Waveforms to vectors. Two distances compare only where `identity` is the same.

    Beside `embed`, an embedder may read texts into the same space (`embed_text`), and say what it hears (`tags`).

    Attributes:
        sample_rate: Hz it expects. identity: name, revision and weight hash in one string.
        tag_names: what the columns of `tags` are, [C]; empty for an embedder without tags.
    """

    spec: ClassVar[EmbedderSpec]
    sample_rate: int
    identity: str
    tag_names: Sequence[str] = ()

    @classmethod
    @abstractmethod
    def open(cls, backend: Backend) -> Embedder:
        """Load it. `backend` is the model under evaluation: its device, and its codec for an embedder that uses that.

        Raises:
            InputError: it can't work beside this backend, or its weights can't be had.
        """

    @classmethod
    def open_weights(cls, backend: Backend, model: str = "", *, offline: bool = False) -> Embedder:
        """Load it with weights by hub name (`owner/name`, `owner/name@revision`) or folder; empty for its own.

        For an embedder whose weights can be chosen, or are fetched from a hub: `offline` then forbids that.

        Raises:
            UsageError: weights were named, and it has none to choose. InputError: as `open`.
        """
        if model:
            raise UsageError(
                f"the embedder {cls.spec.name} has no weights to choose", f"say --embedder {cls.spec.name}"
            )
        return cls.open(backend)

    @abstractmethod
    def embed(self, waveforms: Tensor) -> Tensor:
        """Mono waveforms [N, S] at `sample_rate`, of any length -> float32 [N, D]."""

    def embed_codes(self, codes: Tensor) -> Tensor | None:
        """Codes [N, K, T] of the backend it was opened with -> [N, D]; None: decode them, and call `embed`.

        For an embedder that reads the codec's codes anyway: a clip's codes must give what its waveform gives.
        """
        return None

    def embed_text(self, texts: Sequence[str]) -> Tensor | None:
        """Texts -> float32 [N, D] in the space of `embed`; None for an embedder that reads none."""
        return None

    def tags(self, waveforms: Tensor) -> Tensor | None:
        """Mono waveforms [N, S] -> probabilities float32 [N, C] of `tag_names`; None for an embedder without tags.

        A row sums to 1 where one of the tags must apply (a softmax); where any number may (sigmoids), it need not.
        """
        return None

    def hear(self, waveforms: Tensor) -> tuple[Tensor, Tensor | None]:
        """`embed` and `tags` of the same waveforms; to override where one forward pass gives both."""
        return self.embed(waveforms), self.tags(waveforms)
