"""Computations that metrics share: each done once, in batches of bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from encore.api import (
    Backend,
    Batch,
    Clip,
    ClipSet,
    Embedder,
    Evaluation,
    Made,
    MetricSpec,
    Role,
    Source,
)
from encore.errors import EncoreError, InputError
from encore.evaluate.embed import Embeddings, as_tensors, embed_audio, embed_codes, from_tensors
from encore.evaluate.embedder_choice import by_name, open_embedders
from encore.evaluate.result_cache import Key, ResultCache, listed, named
from encore.hashing import module_sha256
from encore.losses import kl_divergence, token_logprobs
from encore.metrics.rows import ROLES, SETS, by_track
from encore.tensor_cache import TensorCache

BATCH = 16  # clips per forward pass, memory permitting
LOGITS = 2**25  # maximum elements of a logits tensor: 128 MiB of float32, a few of which are alive at once
GENERATE_BATCH = 32  # captions per generation
CONTINUATION_FRAMES = 250  # as in MusicGen's memorisation test: 5 s at 50 frames per second
GENERATION_SECONDS = 10.0  # longest sampled generation


@dataclass
class _Scores:
    """Results of a model's forward pass over a set, one tensor per clip."""

    logprobs: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> _Scores:
        return cls(**listed(tensors))

    def named(self) -> dict[str, Tensor]:
        return named({"logprobs": self.logprobs, "predictions": self.predictions, "kl": self.kl})


class SharedEvaluation(Evaluation):
    """The `Evaluation` of `encore eval`.

    One pass over a set's clips gives all likelihoods of all models; the logits are reduced batch by batch and not kept.
    Models are put in evaluation mode.

    Args:
        models: models to measure, at least one; they must share a codec.
        clips: clips by set; `forget` must not be empty.
        seed: seed of resampling, generations and the control's weights.
        embedder: registered names separated by commas (`encore.evaluate.embedder_choice.parsed`), an opened embedder,
            several by name, or None: metrics that need one are then not measured.
        offline: do not download embedder weights.
        recordings: for each set with audio files, a function that reads them: mono waveforms [S] at the models' sample
            rate, one per clip.
        samples_per_caption: generations per caption.
        force: see `Evaluation`.
        track_metadata: see `Evaluation`.
        batch: maximum clips per forward pass.
        generate_batch: maximum captions per generation.
        cache: cache of expensive results, which are bitwise the same with it (`encore.evaluate.result_cache`). None
            computes all.

    Raises:
        InputError: no forget clips, no model, or models of different codecs.
    """

    def __init__(
        self,
        models: Mapping[Role, Backend],
        clips: Mapping[ClipSet, Sequence[Clip]],
        *,
        seed: int = 0,
        embedder: str | Embedder | Mapping[str, Embedder] | None = "latents",
        offline: bool = False,
        recordings: Mapping[ClipSet, Callable[[], Sequence[Tensor]]] | None = None,
        samples_per_caption: int = 1,
        force: bool = False,
        track_metadata: Mapping[str, Mapping[str, str]] | None = None,
        batch: int = BATCH,
        generate_batch: int = GENERATE_BATCH,
        cache: TensorCache | ResultCache | None = None,
    ) -> None:
        if not models:
            raise InputError("there is no model to measure", "give at least one of --model, --base, --gold")
        if not clips.get("forget"):
            raise InputError("there are no forget tracks to measure on", "name them with --tracks")
        self.models = {role: models[role] for role in ROLES if role in models}  # in a fixed order
        self.clips = {name: list(members) for name, members in clips.items()}
        self.seed, self.force, self.track_metadata = seed, force, dict(track_metadata or {})
        self._samples_per_caption, self._batch, self._generate_batch = samples_per_caption, batch, generate_batch
        self._first = next(iter(self.models.values()))
        self._check_models()
        captions = sorted({clip.caption for members in self.clips.values() for clip in members})
        for model in self.models.values():
            model.module.eval()
            with torch.no_grad():  # here: tensors made under a metric's inference_mode can't be used in training
                model.encode_text(captions)
        self.unopened: Mapping[str, str] = {}
        if isinstance(embedder, str):
            self.embedders, self.unopened = open_embedders(embedder, self._first, offline=offline)
        else:
            self.embedders = by_name(embedder)
        self.embedder = next(iter(self.embedders.values()), None)
        self._recordings = dict(recordings or {})
        self._disk = cache if isinstance(cache, ResultCache) else ResultCache(cache)
        self._control: Backend | None = None
        self._results: dict[tuple[Any, ...], Any] = {}
        self._target: Role | None = "gold" if "gold" in self.models else None

    def _check_models(self) -> None:
        """Refuse models of different codecs."""

        def codec(model: Backend) -> tuple[Any, ...]:
            weights = model.frozen().get("codec")
            return model.codebooks, model.codebook_size, module_sha256(weights) if weights is not None else None

        first, *others = self.models.items()
        for role, model in others:
            if codec(model) != codec(first[1]):
                raise InputError(
                    f"the {role} model has another codec than the {first[0]} model: their values are not comparable",
                    "give models that were trained on the same codec",
                )

    def unmet(self, spec: MetricSpec) -> str:
        """The first of a metric's needs that is missing, as a reason; empty if none is."""
        absent: dict[str, str] = {
            role: f"no {role} model was given (--{role})" for role in ROLES if role not in self.models
        }
        absent |= {name: f"there are no {name} tracks" for name in SETS if not self.clips.get(name)}
        absent |= {} if self.embedders or self.unopened else {"embedder": "no embedder was chosen (--embedder)"}
        absent |= {} if self._first.has_tokens else {"logits": "the model has no tokens"}
        return next((absent[need] for need in sorted(spec.needs) if need in absent), "")

    # ------------------------------------------------------------------------------------------------- Evaluation

    def backend(self, model: Role) -> Backend:
        if model == "control" and "control" not in self.models:
            if self._control is None:
                self._control = self._first.clone()
                self._control.reinitialise(self.seed)
                self._control.module.eval()
            return self._control
        return self.models[model]

    def batches(self, clips: Sequence[Clip]) -> Iterator[Sequence[Clip]]:
        per_clip = max((clip.codes.numel() for clip in clips), default=1) * self._first.codebook_size
        size = max(1, min(self._batch, LOGITS // per_clip if self._first.has_tokens else self._batch))
        return (clips[start : start + size] for start in range(0, len(clips), size))

    def nll(self, model: Role, clips: ClipSet) -> Mapping[str, float]:
        return self._once(("nll", model, clips), lambda: self._nll(model, clips))

    def token_mask(self, clips: ClipSet) -> list[Tensor]:
        return self._once(("mask", clips), lambda: self._mask(clips))

    def token_logprobs(self, model: Role, clips: ClipSet, *, unconditional: bool = False) -> list[Tensor]:
        if unconditional:
            without = self._once(
                ("unconditional", model, clips), lambda: self._passes([model], clips, None, unconditional=True)
            )
            return without[model].logprobs
        return self._scores(model, clips).logprobs

    def predictions(self, model: Role, clips: ClipSet) -> list[Tensor]:
        return self._scores(model, clips).predictions

    def kl(self, target: Role, model: Role, clips: ClipSet) -> list[Tensor]:
        if target == self._target and model in self.models:
            return self._scores(model, clips).kl
        return self._once(("kl", target, model, clips), lambda: self._passes([model], clips, target)[model].kl)

    def continuations(self, model: Role, clips: ClipSet, prompt_frames: int) -> list[Tensor]:
        key = ("continuations", model, prompt_frames)
        by_set = self._once(key, lambda: self._continuations(model, prompt_frames))
        return by_set.get(clips, [])  # type: ignore[no-any-return]

    def generations(self, model: Role, clips: ClipSet) -> list[Tensor]:
        def make() -> dict[str, list[Tensor]]:
            return {"codes": self._generate(model, clips)}

        key = ("generated", GENERATION_SECONDS)
        return self._once(
            ("generated", model, clips), lambda: self._from_disk(key, make, [model], self.clips[clips])["codes"]
        )

    def embeddings(self, source: Source, clips: ClipSet, embedder: str = "") -> np.ndarray:
        return self._embeddings(source, clips, embedder)[0]

    def tags(self, source: Source, clips: ClipSet, embedder: str = "") -> np.ndarray | None:
        return self._embeddings(source, clips, embedder)[1]

    def has_audio(self, clips: ClipSet) -> bool:
        return clips in self._recordings

    def embed(self, codes: Sequence[Tensor]) -> np.ndarray:
        if self.embedder is None:
            raise EncoreError("no embedder was chosen", "choose one with --embedder")
        return embed_codes({"": self.embedder}, codes, self._first)[""][0]

    def derive(
        self,
        *,
        models: Mapping[Role, Backend] | None = None,
        clips: Mapping[ClipSet, Sequence[Clip]] | None = None,
        seed: int | None = None,
    ) -> SharedEvaluation:
        derived = SharedEvaluation(
            models if models is not None else self.models, clips if clips is not None else self.clips,
            seed=self.seed if seed is None else seed, embedder=self.embedders,
            samples_per_caption=self._samples_per_caption, force=self.force,
            track_metadata=self.track_metadata, batch=self._batch, generate_batch=self._generate_batch,
            cache=self._disk,
        )  # fmt: skip
        if clips is not None:  # what is measured of other clips is seldom the KL to gold: not in the same pass
            derived._target = None
        return derived

    def cached(self, key: Hashable, make: Callable[[], Made]) -> Made:
        return self._once(("metric", key), make)

    def cached_on_disk(
        self,
        key: Hashable,
        make: Callable[[], Mapping[str, Tensor]],
        *,
        models: Sequence[Role],
        clips: Sequence[Clip],
    ) -> Mapping[str, Tensor]:
        return self._once(
            ("disk", key, tuple(models), tuple(clips)),
            lambda: self._disk.get_or_make(self._key(("metric", key), models, clips), make),
        )

    # ------------------------------------------------------------------------------------------------ likelihoods

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._results:
            self._results[key] = make()
        return self._results[key]

    def _key(self, name: Hashable, models: Sequence[Role], clips: Sequence[Clip]) -> Key:
        settings = (self.seed, self._samples_per_caption, self._batch, self._generate_batch)
        return self._disk.key(name, settings, [self.backend(model) for model in models], clips)

    def _from_disk(
        self,
        name: Hashable,
        make: Callable[[], Mapping[str, Sequence[Tensor]]],
        models: Sequence[Role],
        clips: Sequence[Clip],
    ) -> dict[str, list[Tensor]]:
        return listed(self._disk.get_or_make(self._key(name, models, clips), lambda: named(make())))

    def _scores(self, model: Role, clips: ClipSet) -> _Scores:
        if model in self.models:
            return self._once(("scores", clips), lambda: self._passes(list(self.models), clips, self._target))[model]
        return self._once(("scores", model, clips), lambda: self._pass([model], clips, None)[model])

    def _passes(
        self, models: Sequence[Role], clips: ClipSet, target: Role | None, *, unconditional: bool = False
    ) -> dict[Role, _Scores]:
        """Scores from the cache, and by `_pass` for the models that are not cached."""
        targets = [target] if target else []
        keys = {model: self._key(("scores", unconditional), [model, *targets], self.clips[clips]) for model in models}
        tensors = {model: cached for model in models if (cached := self._disk.get(keys[model])) is not None}
        missing = [model for model in models if model not in tensors]
        new = self._pass(missing, clips, target, unconditional=unconditional) if missing else {}
        tensors |= {model: self._disk.put(keys[model], scores.named()) for model, scores in new.items()}
        return {model: _Scores.of(named_tensors) for model, named_tensors in tensors.items()}

    @torch.no_grad()
    def _pass(
        self, models: Sequence[Role], clips: ClipSet, target: Role | None, *, unconditional: bool = False
    ) -> dict[Role, _Scores]:
        """Run every model on every batch; the target's logits stay in memory while the others are compared."""
        scores = {model: _Scores() for model in models}
        for part in self.batches(self.clips[clips]):
            reference = self._logits(target, part, unconditional) if target else None
            for model in models:
                outputs = reference if reference and model == target else self._logits(model, part, unconditional)
                _reduce(scores[model], part, *outputs, reference[0] if reference else None)
        return scores

    def _logits(self, model: Role, part: Sequence[Clip], unconditional: bool) -> tuple[Tensor, Tensor]:
        """Logits [N, K, T, V] and mask [N, K, T]."""
        backend = self.backend(model)
        batch = Batch.of(part, backend.device)
        return backend.logits(batch, unconditional=unconditional), backend.token_mask(batch)

    def _mask(self, clips: ClipSet) -> list[Tensor]:
        return [self._first.token_mask(Batch.of([clip], self._first.device))[0].cpu() for clip in self.clips[clips]]

    @torch.no_grad()
    def _nll(self, model: Role, clips: ClipSet) -> dict[str, float]:
        members, backend = self.clips[clips], self.backend(model)
        if backend.has_tokens:
            logprobs = self.token_logprobs(model, clips)
            totals = [-float(clip.double().sum()) for clip in logprobs]
            return by_track(members, totals, [int(mask.sum()) for mask in self.token_mask(clips)])
        losses = torch.cat([backend.losses(Batch.of(part, backend.device)) for part in self.batches(members)])
        return by_track(members, losses.double().tolist(), [1.0] * len(members))

    # ------------------------------------------------------------------------------------------------- generation

    def _continuations(self, model: Role, prompt: int) -> dict[str, list[Tensor]]:
        sets = [(name, len(members)) for name, members in self.clips.items()]
        key = ("continued", prompt, CONTINUATION_FRAMES, *sets)
        clips = [clip for members in self.clips.values() for clip in members]
        return self._from_disk(key, lambda: self._continue(model, prompt), [model], clips)

    def _continue(self, model: Role, prompt: int) -> dict[str, list[Tensor]]:
        """Greedy continuations of all sets in shared batches.

        A clip whose every later token is the argmax code given the true past needs no decoding: greedy decoding
        reproduces it.
        """
        backend = self.backend(model)
        continued: dict[str, list[Tensor]] = {}
        to_decode: list[tuple[ClipSet, int, int]] = []  # set, index, frames
        for name, members in self.clips.items():
            continued[name] = [clip.codes[:, : prompt + CONTINUATION_FRAMES].cpu() for clip in members]
            predicted = self.predictions(model, name) if backend.has_tokens else [None] * len(members)
            for i, (clip, argmax) in enumerate(zip(members, predicted, strict=True)):
                frames = continued[name][i].shape[-1]
                if frames > prompt and not _reproduces(argmax, clip.codes, prompt, frames):
                    to_decode.append((name, i, frames))
        to_decode.sort(key=lambda row: row[2])  # rows of a batch are as long as its longest
        for start in range(0, len(to_decode), self._generate_batch):
            rows = to_decode[start : start + self._generate_batch]
            clips = [self.clips[name][i] for name, i, _ in rows]
            prompts = torch.stack([clip.codes[:, :prompt] for clip in clips]).to(backend.device) if prompt else None
            codes = backend.generate(
                [clip.caption for clip in clips], prompt=prompts, seconds=rows[-1][2] / backend.frame_rate,
                seed=self.seed, temperature=0.0, guidance=1.0,
            )  # fmt: skip
            for row, (name, i, frames) in zip(codes.cpu(), rows, strict=True):
                continued[name][i] = row[:, :frames]
        return continued

    def _generate(self, model: Role, clips: ClipSet) -> list[Tensor]:
        backend = self.backend(model)
        first = {clip.track: clip for clip in reversed(self.clips[clips])}  # a track's first window
        repeated = [first[track] for track in sorted(first) for _ in range(self._samples_per_caption)]
        max_frames = round(GENERATION_SECONDS * backend.frame_rate)
        generated: list[Tensor] = []
        for start in range(0, len(repeated), self._generate_batch):
            part = repeated[start : start + self._generate_batch]
            frames = [min(clip.codes.shape[-1], max_frames) for clip in part]
            # Row i's noise has the seed seed + i, so the result does not depend on the batch size.
            codes = backend.generate(
                [clip.caption for clip in part], seconds=max(frames) / backend.frame_rate,
                seed=self.seed * 1_000_003 + start,
            )  # fmt: skip
            generated += [row[:, :length] for row, length in zip(codes.cpu(), frames, strict=True)]
        return generated

    def _embeddings(self, source: Source, clips: ClipSet, name: str) -> Embeddings:
        """Vectors [N, D] and tags [N, C] of one embedder; codes are decoded once for all embedders."""
        name = name or next(iter(self.embedders), "")
        if name not in self.embedders:
            raise EncoreError(self.unopened.get(name, "no embedder was chosen"), "choose another with --embedder")
        if source == "recorded":
            return self._once(("embeddings", source, clips, name), lambda: self._embed_recordings(clips, name))
        return self._once(("embeddings", source, clips), lambda: self._embed_codes(source, clips))[name]

    def _embed_recordings(self, clips: ClipSet, name: str) -> Embeddings:
        if clips not in self._recordings:
            raise EncoreError(f"the files of the {clips} tracks are not available", "measure a run, or give --tracks")
        return embed_audio(self.embedders[name], self._recordings[clips](), self._first.sample_rate)

    def _embed_codes(self, source: Role | Literal["audio"], clips: ClipSet) -> dict[str, Embeddings]:
        codes = [clip.codes for clip in self.clips[clips]] if source == "audio" else self.generations(source, clips)
        identities = tuple((name, embedder.identity) for name, embedder in self.embedders.items())
        tensors = self._disk.get_or_make(
            self._key(("embedded", identities), [next(iter(self.models))], [Clip("", "", item) for item in codes]),
            lambda: as_tensors(embed_codes(self.embedders, codes, self._first)),
        )
        return from_tensors(tensors, self.embedders)


def _reduce(scores: _Scores, part: Sequence[Clip], logits: Tensor, mask: Tensor, target: Tensor | None) -> None:
    """Append log-probabilities, argmax codes and KL of a batch's logits [N, K, T, V], cut to each clip's length."""
    codes = Batch.of(part, logits.device).codes
    logprobs = token_logprobs(logits, codes, mask)
    argmax = logits.argmax(-1).masked_fill(~mask, -1)
    kl = None
    if target is not None:  # one codebook at a time: the log-probabilities of both models are as large as the logits
        by_codebook = [
            kl_divergence(target[:, k, None].to(logits.device), logits[:, k, None], mask[:, k, None])
            for k in range(logits.shape[1])
        ]
        kl = torch.cat(by_codebook, 1)
    for i, clip in enumerate(part):
        frames = clip.codes.shape[-1]
        scores.logprobs.append(logprobs[i, :, :frames].cpu())
        scores.predictions.append(argmax[i, :, :frames].cpu())
        if kl is not None:
            scores.kl.append(kl[i, :, :frames].cpu())


def _reproduces(argmax: Tensor | None, codes: Tensor, prompt: int, frames: int) -> bool:
    if argmax is None:
        return False
    later = slice(prompt, frames)
    return not bool(((argmax[:, later] != codes[:, later].cpu()) & (argmax[:, later] >= 0)).any())
