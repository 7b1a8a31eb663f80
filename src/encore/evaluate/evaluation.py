"""What metrics share of models and tracks: computed once, in batches of bounded memory."""

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
from encore.cache import TensorCache
from encore.errors import EncoreError, InputError
from encore.evaluate.embed import EncodedTrack, as_tensors, from_tensors, hear_audio, hear_codes
from encore.evaluate.embedder_choice import by_name, open_embedders
from encore.evaluate.result_cache import Kept, Key, listed, named
from encore.hashing import module_sha256
from encore.losses import kl_divergence, token_logprobs
from encore.metrics.rows import ROLES, SETS, by_track

BATCH = 16  # clips a forward pass, where memory allows
LOGITS = 2**25  # elements of a logits tensor at most: 128 MiB of float32, of which a few are alive at once
GENERATE_BATCH = 32  # captions played side by side
CONTINUATION_FRAMES = 250  # of a replay; MusicGen's own memorisation test decodes 5 s at 50 frames a second
GENERATION_SECONDS = 10.0  # longest sampled generation


@dataclass
class _Scores:
    """One forward pass over a set, a model: lists with one tensor a clip."""

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

    All likelihoods of a set come from one pass over its clips, in which every model sees a batch and what metrics read
    of the logits is kept: never the logits themselves. Models are put in evaluation mode.

    Args:
        models: what to measure, at least one; they must share a codec.
        clips: `forget` must not be empty. seed: of resampling, of generations, and of the control's weights.
        embedder: registered names with commas between (`runs.embedders.parsed`), an opened embedder, several by name,
            or None: metrics that need one are then not measured. offline: fetch no embedder's weights.
        recordings: what gives a set's tracks as their files have them, for those sets that have files: mono waveforms
            [S] at the models' rate, one a clip.
        draws: generations a caption. force, track_metadata: see `Evaluation`.
        batch, generate_batch: clips a forward pass, captions a generation, at most.
        cache: where what is costly is kept and taken from, with the same figures to the last bit
            (`encore.evaluate.result_cache`). Without one all is measured afresh.

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
        draws: int = 1,
        force: bool = False,
        track_metadata: Mapping[str, Mapping[str, str]] | None = None,
        batch: int = BATCH,
        generate_batch: int = GENERATE_BATCH,
        cache: TensorCache | Kept | None = None,
    ) -> None:
        if not models:
            raise InputError("there is no model to measure", "give at least one of --model, --base, --gold")
        if not clips.get("forget"):
            raise InputError("there are no forget tracks to measure on", "name them with --tracks")
        self.models = {role: models[role] for role in ROLES if role in models}  # one order, whatever was given
        self.clips = {name: list(chosen) for name, chosen in clips.items()}
        self.seed, self.force, self.track_metadata = seed, force, dict(track_metadata or {})
        self._draws, self._batch, self._generate_batch = draws, batch, generate_batch
        self._first = next(iter(self.models.values()))
        self._check_models()
        captions = sorted({clip.caption for chosen in self.clips.values() for clip in chosen})
        for model in self.models.values():
            model.module.eval()
            with torch.no_grad():  # now: encoded under a metric's inference_mode they would be of no use to training
                model.encode_text(captions)
        self.unopened: Mapping[str, str] = {}
        if isinstance(embedder, str):
            self.embedders, self.unopened = open_embedders(embedder, self._first, offline=offline)
        else:
            self.embedders = by_name(embedder)
        self.embedder = next(iter(self.embedders.values()), None)
        self._recordings = dict(recordings or {})
        self._disk = cache if isinstance(cache, Kept) else Kept(cache)
        self._control: Backend | None = None
        self._made: dict[tuple[Any, ...], Any] = {}

    def _check_models(self) -> None:
        """Codes of one codec mean nothing to a model of another."""

        def codec(model: Backend) -> tuple[Any, ...]:
            weights = model.frozen().get("codec")
            return model.codebooks, model.codebook_size, module_sha256(weights) if weights is not None else None

        first, *others = self.models.items()
        for role, model in others:
            if codec(model) != codec(first[1]):
                raise InputError(
                    f"the {role} model has another codec than the {first[0]} model: their figures don't compare",
                    "give models that were trained on the codes of one codec",
                )

    def unmet(self, spec: MetricSpec) -> str:
        """Which of a metric's needs is not there, or nothing."""
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
        a_clip = max((clip.codes.numel() for clip in clips), default=1) * self._first.codebook_size
        size = max(1, min(self._batch, LOGITS // a_clip if self._first.has_tokens else self._batch))
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
        if target == "gold" and model in self.models:
            return self._scores(model, clips).kl
        return self._once(("kl", target, model, clips), lambda: self._passes([model], clips, target)[model].kl)

    def continuations(self, model: Role, clips: ClipSet, prompt_frames: int) -> list[Tensor]:
        made = self._once(("played", model, prompt_frames), lambda: self._played(model, prompt_frames))
        return made.get(clips, [])  # type: ignore[no-any-return]

    def generations(self, model: Role, clips: ClipSet) -> list[Tensor]:
        def make() -> dict[str, list[Tensor]]:
            return {"codes": self._generate(model, clips)}

        what = ("generated", GENERATION_SECONDS)
        return self._once(
            ("generated", model, clips), lambda: self._kept(what, make, [model], self.clips[clips])["codes"]
        )

    def embeddings(self, source: Source, clips: ClipSet, embedder: str = "") -> np.ndarray:
        return self._heard(source, clips, embedder)[0]

    def tags(self, source: Source, clips: ClipSet, embedder: str = "") -> np.ndarray | None:
        return self._heard(source, clips, embedder)[1]

    def has_audio(self, clips: ClipSet) -> bool:
        return clips in self._recordings

    def embed(self, codes: Sequence[Tensor]) -> np.ndarray:
        if self.embedder is None:
            raise EncoreError("no embedder was chosen", "choose one with --embedder")
        return hear_codes({"": self.embedder}, codes, self._first)[""][0]

    def derive(
        self,
        *,
        models: Mapping[Role, Backend] | None = None,
        clips: Mapping[ClipSet, Sequence[Clip]] | None = None,
        seed: int | None = None,
    ) -> SharedEvaluation:
        return SharedEvaluation(
            models if models is not None else self.models, clips if clips is not None else self.clips,
            seed=self.seed if seed is None else seed, embedder=self.embedders, draws=self._draws,
            force=self.force, track_metadata=self.track_metadata, batch=self._batch,
            generate_batch=self._generate_batch, cache=self._disk,
        )  # fmt: skip

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
            ("kept", key, tuple(models), tuple(clips)),
            lambda: self._disk.get_or_make(self._key(("metric", key), models, clips), make),
        )

    # ------------------------------------------------------------------------------------------------ likelihoods

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _key(self, what: Hashable, models: Sequence[Role], clips: Sequence[Clip]) -> Key:
        settings = (self.seed, self._draws, self._batch, self._generate_batch)
        return self._disk.key(what, settings, [self.backend(model) for model in models], clips)

    def _kept(
        self,
        what: Hashable,
        make: Callable[[], Mapping[str, Sequence[Tensor]]],
        models: Sequence[Role],
        clips: Sequence[Clip],
    ) -> dict[str, list[Tensor]]:
        return listed(self._disk.get_or_make(self._key(what, models, clips), lambda: named(make())))

    def _scores(self, model: Role, clips: ClipSet) -> _Scores:
        if model in self.models:
            target: Role | None = "gold" if "gold" in self.models else None
            return self._once(("scores", clips), lambda: self._passes(list(self.models), clips, target))[model]
        return self._once(("scores", model, clips), lambda: self._pass([model], clips, None)[model])

    def _passes(
        self, models: Sequence[Role], clips: ClipSet, target: Role | None, *, unconditional: bool = False
    ) -> dict[Role, _Scores]:
        """`_pass` of those models that nothing is kept of, and what is kept of the others."""
        aim = [target] if target else []
        keys = {model: self._key(("scores", unconditional), [model, *aim], self.clips[clips]) for model in models}
        found = {model: kept for model in models if (kept := self._disk.find(keys[model])) is not None}
        missing = [model for model in models if model not in found]
        made = self._pass(missing, clips, target, unconditional=unconditional) if missing else {}
        found |= {model: self._disk.keep(keys[model], scores.named()) for model, scores in made.items()}
        return {model: _Scores.of(kept) for model, kept in found.items()}

    @torch.no_grad()
    def _pass(
        self, models: Sequence[Role], clips: ClipSet, target: Role | None, *, unconditional: bool = False
    ) -> dict[Role, _Scores]:
        """Every model over every batch; the target's logits of a batch are alive while the others are compared."""
        scores = {model: _Scores() for model in models}
        for piece in self.batches(self.clips[clips]):
            aim = self._logits(target, piece, unconditional) if target else None
            for model in models:
                own = aim if aim and model == target else self._logits(model, piece, unconditional)
                _keep(scores[model], piece, *own, aim[0] if aim else None)
        return scores

    def _logits(self, model: Role, piece: Sequence[Clip], unconditional: bool) -> tuple[Tensor, Tensor]:
        """Logits [N, K, T, V] and mask [N, K, T]."""
        backend = self.backend(model)
        batch = Batch.of(piece, backend.device)
        return backend.logits(batch, unconditional=unconditional), backend.token_mask(batch)

    def _mask(self, clips: ClipSet) -> list[Tensor]:
        return [self._first.token_mask(Batch.of([clip], self._first.device))[0].cpu() for clip in self.clips[clips]]

    @torch.no_grad()
    def _nll(self, model: Role, clips: ClipSet) -> dict[str, float]:
        chosen, backend = self.clips[clips], self.backend(model)
        if backend.has_tokens:
            logprobs = self.token_logprobs(model, clips)
            totals = [-float(clip.double().sum()) for clip in logprobs]
            return by_track(chosen, totals, [int(mask.sum()) for mask in self.token_mask(clips)])
        losses = torch.cat([backend.losses(Batch.of(piece, backend.device)) for piece in self.batches(chosen)])
        return by_track(chosen, losses.double().tolist(), [1.0] * len(chosen))

    # ------------------------------------------------------------------------------------------------- generation

    def _played(self, model: Role, prompt: int) -> dict[str, list[Tensor]]:
        sets = [(name, len(chosen)) for name, chosen in self.clips.items()]
        what = ("played", prompt, CONTINUATION_FRAMES, *sets)
        everything = [clip for chosen in self.clips.values() for clip in chosen]
        return self._kept(what, lambda: self._continue(model, prompt), [model], everything)

    def _continue(self, model: Role, prompt: int) -> dict[str, list[Tensor]]:
        """Greedy continuations of all sets at once: one decoding loop costs hardly more for many clips than for few.

        A clip of which every later token is the model's likeliest code, given the true past, is what greedy decoding
        plays: it needs no decoding.
        """
        backend = self.backend(model)
        played: dict[str, list[Tensor]] = {}
        open_rows: list[tuple[ClipSet, int, int]] = []  # set, index, frames to play
        for name, chosen in self.clips.items():
            played[name] = [clip.codes[:, : prompt + CONTINUATION_FRAMES].cpu() for clip in chosen]
            predicted = self.predictions(model, name) if backend.has_tokens else [None] * len(chosen)
            for i, (clip, likeliest) in enumerate(zip(chosen, predicted, strict=True)):
                frames = played[name][i].shape[-1]
                if frames > prompt and not _replays(likeliest, clip.codes, prompt, frames):
                    open_rows.append((name, i, frames))
        open_rows.sort(key=lambda row: row[2])  # rows of a batch are as long as its longest
        for start in range(0, len(open_rows), self._generate_batch):
            rows = open_rows[start : start + self._generate_batch]
            clips = [self.clips[name][i] for name, i, _ in rows]
            given = torch.stack([clip.codes[:, :prompt] for clip in clips]).to(backend.device) if prompt else None
            codes = backend.generate(
                [clip.caption for clip in clips], prompt=given, seconds=rows[-1][2] / backend.frame_rate,
                seed=self.seed, temperature=0.0, guidance=1.0,
            )  # fmt: skip
            for row, (name, i, frames) in zip(codes.cpu(), rows, strict=True):
                played[name][i] = row[:, :frames]
        return played

    def _generate(self, model: Role, clips: ClipSet) -> list[Tensor]:
        backend = self.backend(model)
        first = {clip.track: clip for clip in reversed(self.clips[clips])}  # a track's first window
        chosen = [first[track] for track in sorted(first) for _ in range(self._draws)]
        most = round(GENERATION_SECONDS * backend.frame_rate)
        generated: list[Tensor] = []
        for start in range(0, len(chosen), self._generate_batch):
            piece = chosen[start : start + self._generate_batch]
            frames = [min(clip.codes.shape[-1], most) for clip in piece]
            # A row's noise is that of seed + row, so that the batches' size changes nothing.
            codes = backend.generate(
                [clip.caption for clip in piece], seconds=max(frames) / backend.frame_rate,
                seed=self.seed * 1_000_003 + start,
            )  # fmt: skip
            generated += [row[:, :length] for row, length in zip(codes.cpu(), frames, strict=True)]
        return generated

    def _heard(self, source: Source, clips: ClipSet, name: str) -> EncodedTrack:
        """Vectors [N, D] and tags [N, C] of one embedder; codes are heard by all of them at once."""
        name = name or next(iter(self.embedders), "")
        if name not in self.embedders:
            raise EncoreError(self.unopened.get(name, "no embedder was chosen"), "choose another with --embedder")
        if source == "recorded":
            return self._once(("heard", source, clips, name), lambda: self._hear_recordings(clips, name))
        return self._once(("heard", source, clips), lambda: self._hear(source, clips))[name]

    def _hear_recordings(self, clips: ClipSet, name: str) -> EncodedTrack:
        if clips not in self._recordings:
            raise EncoreError(f"the files of the {clips} tracks are not at hand", "measure a run, or give --tracks")
        return hear_audio(self.embedders[name], self._recordings[clips](), self._first.sample_rate)

    def _hear(self, source: Role | Literal["audio"], clips: ClipSet) -> dict[str, EncodedTrack]:
        codes = [clip.codes for clip in self.clips[clips]] if source == "audio" else self.generations(source, clips)
        ears = tuple((name, embedder.identity) for name, embedder in self.embedders.items())
        made = self._disk.get_or_make(
            self._key(("heard", ears), [next(iter(self.models))], [Clip("", "", item) for item in codes]),
            lambda: as_tensors(hear_codes(self.embedders, codes, self._first)),
        )
        return from_tensors(made, self.embedders)


def _keep(scores: _Scores, piece: Sequence[Clip], logits: Tensor, mask: Tensor, target: Tensor | None) -> None:
    """Reduce a batch's logits [N, K, T, V] to what metrics read, cut to each clip's length."""
    codes = Batch.of(piece, logits.device).codes
    logprobs = token_logprobs(logits, codes, mask)
    likeliest = logits.argmax(-1).masked_fill(~mask, -1)
    kl = None
    if target is not None:  # a codebook at a time: the log-probabilities of both models are as large as the logits
        of_codebooks = [
            kl_divergence(target[:, k, None].to(logits.device), logits[:, k, None], mask[:, k, None])
            for k in range(logits.shape[1])
        ]
        kl = torch.cat(of_codebooks, 1)
    for i, clip in enumerate(piece):
        frames = clip.codes.shape[-1]
        scores.logprobs.append(logprobs[i, :, :frames].cpu())
        scores.predictions.append(likeliest[i, :, :frames].cpu())
        if kl is not None:
            scores.kl.append(kl[i, :, :frames].cpu())


def _replays(likeliest: Tensor | None, codes: Tensor, prompt: int, frames: int) -> bool:
    if likeliest is None:
        return False
    later = slice(prompt, frames)
    return not bool(((likeliest[:, later] != codes[:, later].cpu()) & (likeliest[:, later] >= 0)).any())
