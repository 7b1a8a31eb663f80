"""What all diffusion backends share: the loss at fixed noise, the sampler, and how they are opened and saved."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor, nn

from encore import distributed
from encore.api import Backend, Batch
from encore.errors import InputError, UsageError
from encore_diffusers.folder import open_parts, quiet
from encore_diffusers.objectives import Objective, objective

TIMESTEPS = 4  # noise levels a clip's loss is the mean over, one from each quarter of those seen in training

Conditioning = Mapping[str, Tensor]
"""Inputs of the network beside the noisy latents and the timestep; the first dimension is the row."""


def diffusion(backend: Backend, method: str) -> DiffusionBackend:
    """The backend, for a method of this plugin.

    Raises:
        UsageError: it is no diffusion model of this plugin.
    """
    if not isinstance(backend, DiffusionBackend):
        raise UsageError(
            f"{method} trains diffusion models, and {backend.name} is not one", "see `encore methods` for others"
        )
    return backend


@dataclass(frozen=True)
class Rows:
    """Clips that are run together, at one noise level each.

    Args:
        places: the clips' places in the batch.
        stratum: which share of the noise levels theirs are from: 0 to `TIMESTEPS` - 1.
        latents: [n, K, W].
        noise: [n, K, W].
        level: [n], in the objective's unit.
    """

    places: Sequence[int]
    stratum: int
    latents: Tensor
    noise: Tensor
    level: Tensor


class DiffusionBackend(Backend):
    """A latent diffusion model; see `encore.api.Backend` for the contract.

    A family says how waveforms become latents, captions encodings, and both a call of its denoiser. Rows that can't
    stand in one batch without changing one another (`_batch_key`) are run apart.

    Args:
        parts: the pipeline's components, by its own names.
    """

    has_tokens = False
    library_name = "diffusers"
    codebook_size = 0
    pipeline: ClassVar[str]  # the class in diffusers
    library: ClassVar[str]  # the module of diffusers.pipelines that its own model classes are in
    trained: ClassVar[tuple[str, ...]]  # parts that are trained
    kept: ClassVar[Mapping[str, str]]  # parts that stay as they are -> the name they have in `frozen`
    inference_steps: int  # of the sampler
    guided: bool = True  # whether it can be guided; a distilled model can't
    logit_mean: ClassVar[float] = 0.0  # of a flow's time in training
    module: nn.ModuleDict

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = dict(parts)
        with quiet():
            self.pipe = getattr(diffusers, self.pipeline)(**self.parts)
        self.objective: Objective = objective(self.parts["scheduler"], mean=self.logit_mean)
        self.module = nn.ModuleDict({name: self.parts[name] for name in self.trained}).eval().requires_grad_(True)
        for name in self._fixed():
            self.module.get_parameter(name).requires_grad_(False)
        self.device = next(self.module.parameters()).device
        self.text_embeddings: dict[str, Tensor] = {}

    # ------------------------------------------------------------------------------------------ what a family says

    @abstractmethod
    def _latents(self, waveforms: Tensor) -> Tensor:
        """Waveforms [N, C, S], S a multiple of a frame's samples -> the mode of the posterior [N, K, T]."""

    @abstractmethod
    def _read(self, caption: str) -> Tensor:
        """The caption's frozen text encoding [L, D]."""

    @abstractmethod
    def _prepare(self, captions: Sequence[str], frames: Sequence[int], *, unconditional: bool = False) -> Conditioning:
        """The conditioning of rows with these captions and numbers of frames."""

    @abstractmethod
    def _predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser: [N, K, T], timestep [N] -> [N, K, T]."""

    def _fixed(self) -> Sequence[str]:
        """Parameters of `module` that are not trained."""
        return ()

    def _batch_key(self, caption: str, frames: int) -> Hashable:
        """Rows for which this is equal can be run together."""
        return frames

    def _window(self, frames: int) -> int:
        """How many frames the denoiser is run on for a clip of so many."""
        return frames

    def _windowed(self, latents: Tensor) -> Tensor:
        """Latents [K, T] followed by what the network gets after the end of a clip, [K, window]."""
        return latents

    def _schedule(self, scheduler: Any) -> None:
        scheduler.set_timesteps(self.inference_steps, device=self.device)

    def _guide(self, conditional: Tensor, unconditional: Tensor, guidance: float, memory: dict[str, Any]) -> Tensor:
        """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): predictions with and without caption -> one.

        Args:
            memory: empty at the first step of a generation, and kept to its last.
        """
        return unconditional + guidance * (conditional - unconditional)

    # -------------------------------------------------------------------------------------------------- load, save

    @classmethod
    def load(
        cls, model: str, *, revision: str | None = None, offline: bool = False, device: str = "cpu"
    ) -> DiffusionBackend:
        parts = open_parts(model, cls.pipeline, cls.library, revision=revision, offline=offline)
        for name in ("scheduler", *cls.trained, *cls.kept):
            if parts.get(name) is None and name not in getattr(diffusers, cls.pipeline)._optional_components:
                raise InputError(f"{model} has no {name}, so it is not a complete {cls.pipeline}")
        return cls({name: part.to(device) if isinstance(part, nn.Module) else part for name, part in parts.items()})

    def save(self, folder: Path) -> None:
        with quiet():
            self.pipe.save_pretrained(folder, safe_serialization=True)

    def clone(self) -> DiffusionBackend:
        own = {name: copy.deepcopy(self.parts[name]) for name in self.trained}
        twin = type(self)(self.parts | own)
        twin.text_embeddings = self.text_embeddings
        return twin

    def frozen(self) -> Mapping[str, nn.Module]:
        return {name: self.parts[part] for part, name in self.kept.items() if self.parts.get(part) is not None}

    def reinitialise(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed)
            for name in self.trained:
                fresh = dict(type(self.parts[name]).from_config(self.parts[name].config).named_parameters())
                for weight_name, weight in self.parts[name].named_parameters():
                    weight.copy_(fresh[weight_name])

    @property
    def settings(self) -> str:
        configs = {
            name: dict(part.config) if hasattr(part, "from_config") else part.config.to_dict()
            for name, part in self.parts.items()
            if hasattr(part, "config")
        }
        vocabularies = {name: part.get_vocab() for name, part in self.parts.items() if hasattr(part, "get_vocab")}
        settings = {"configs": configs, "vocabularies": vocabularies, "timesteps": TIMESTEPS}
        for config in configs.values():
            for noted in [key for key in config if key.startswith("_")]:  # versions, and where it was loaded from
                config.pop(noted)
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

    # --------------------------------------------------------------------------------------------- codec and text

    @property
    def hop(self) -> int:
        """Samples a latent frame."""
        return round(self.sample_rate / self.frame_rate)

    @torch.no_grad()
    def encode(self, waveforms: Tensor) -> Tensor:
        if waveforms.shape[1] != self.channels:
            raise ValueError(f"{waveforms.shape[1]} audio channels given, the model has {self.channels}")
        rest = -waveforms.shape[-1] % self.hop
        return self._latents(nn.functional.pad(waveforms.to(self.device), (0, rest))).float()

    def latents(self, codes: Tensor) -> Tensor:
        return codes

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        for caption in captions:
            if caption not in self.text_embeddings:
                self.text_embeddings[caption] = self._read(caption)
        return [self.text_embeddings[caption] for caption in captions]

    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        raise UsageError(f"the backend {self.name} has no tokens, so no logits")

    def token_mask(self, batch: Batch) -> Tensor:
        raise UsageError(f"the backend {self.name} has no tokens to mask")

    # -------------------------------------------------------------------------------------------------------- loss

    def losses(self, batch: Batch) -> Tensor:
        """Mean squared error of the training objective, [N], over `TIMESTEPS` noise levels and a clip's own frames.

        Levels are stratified: one is drawn from each of as many equal shares of those seen in training. They and the
        noise are drawn from the clip's latents and `batch.noise_index`.
        """
        return self.regress(batch, self.target)

    def random_losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The same, toward the target of other noise and other latents: Gaussian, with each channel's own mean and
        deviation over time (Gaussian amnesiac learning, Tarun et al., "Deep Regression Unlearning", arXiv 2210.08196).
        """

        def target(rows: Rows) -> Tensor:
            drawn = torch.randn((2, *rows.latents.shape), generator=generator).to(rows.latents)
            mean, deviation = rows.latents.mean(-1, keepdim=True), rows.latents.std(-1, keepdim=True, unbiased=False)
            return self.objective.target(mean + deviation * drawn[0], drawn[1], rows.level)

        return self.regress(batch, target)

    def target(self, rows: Rows) -> Tensor:
        """What the network is trained to predict for rows, [n, K, W]."""
        return self.objective.target(rows.latents, rows.noise, rows.level)

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the network predicts for each clip at the noise of `batch.noise_index`, and what it should predict.

        Each is [N, `TIMESTEPS`, K, T]; frames beyond a clip's own are 0.
        """
        frames = batch.frames.tolist()
        shape = len(batch), TIMESTEPS, *batch.codes.shape[1:]
        outputs, targets = torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device)

        def store(rows: Rows, prediction: Tensor) -> Tensor:
            for out, values in ((outputs, prediction), (targets, self.target(rows))):
                for place, row in zip(rows.places, values, strict=True):
                    out[place, rows.stratum, :, : frames[place]] = row[:, : frames[place]]
            return prediction[:, 0]

        self.per_frame(batch, store)
        return outputs, targets

    def regress(
        self,
        batch: Batch,
        target: Callable[[Rows], Tensor],
        noisy: Callable[[Rows], Tensor] | None = None,
    ) -> Tensor:
        """Mean squared error of the network's predictions to a target, [N]; see `per_frame`.

        Args:
            batch: N clips.
            target: gives the target [n, K, W] of rows.
            noisy: gives the network's input [n, K, W]; default: the rows' latents with their noise.
        """
        return self.per_frame(batch, lambda rows, prediction: (prediction - target(rows)).square().mean(1), noisy)

    def per_frame(
        self,
        batch: Batch,
        loss: Callable[[Rows, Tensor], Tensor],
        noisy: Callable[[Rows], Tensor] | None = None,
    ) -> Tensor:
        """Mean of a loss over `TIMESTEPS` noise levels and a clip's own frames, [N].

        Args:
            batch: N clips.
            loss: from rows and the network's predictions [n, K, W] for them to a loss per frame, [n, W].
            noisy: gives the network's input [n, K, W]; default: the rows' latents with their noise.
        """
        frames = batch.frames.tolist()
        drawn = [
            self._noised(codes[:, :length], batch.noise_index)
            for codes, length in zip(batch.codes, frames, strict=True)
        ]
        self.encode_text(batch.captions)
        groups = self._groups(batch.captions, frames)
        losses = []
        for turn in range(_most_anywhere(len(groups))):
            group = groups[min(turn, len(groups) - 1)]
            latents = torch.stack([drawn[i][0] for i in group])  # [n, K, W]
            noise, share = (torch.stack([drawn[i][j] for i in group]) for j in (1, 2))  # [n, S, K, W], [n, S]
            real = torch.arange(latents.shape[-1], device=self.device) < batch.frames.to(self.device)[group, None]
            conditioning = self._prepare([batch.captions[i] for i in group], [frames[i] for i in group])
            of_levels = []
            for s in range(TIMESTEPS):
                rows = Rows(group, s, latents, noise[:, s], self.objective.level(share[:, s]))
                state = noisy(rows) if noisy else self.objective.noisy(latents, rows.noise, rows.level)
                prediction = self._predict(state, self.objective.timestep(rows.level), conditioning).float()
                of_levels.append((loss(rows, prediction) * real).sum(-1) / real.sum(-1))  # [n]
            losses.append(torch.stack(of_levels).mean(0)[: len(group) if turn < len(groups) else 0])
        if len(losses) == 1:
            return losses[0]
        order = [i for group in groups for i in group]
        return torch.cat(losses)[torch.tensor(order, device=self.device).argsort()]

    @property
    def levels(self) -> int:
        """Noise levels of a clip's loss."""
        return TIMESTEPS

    def fitted(self, latents: Tensor, frames: int) -> Tensor:
        """Latents [K, T] cut or repeated to a number of frames, in the network's window, [K, W]."""
        fitted = latents.repeat(1, -(-frames // latents.shape[-1]))[:, :frames]
        return self._windowed(fitted.to(self.device))

    def _groups(self, captions: Sequence[str], frames: Sequence[int]) -> list[list[int]]:
        groups: dict[Hashable, list[int]] = {}
        for i, (caption, length) in enumerate(zip(captions, frames, strict=True)):
            groups.setdefault(self._batch_key(caption, length), []).append(i)
        return list(groups.values())

    def _noised(self, latents: Tensor, draw: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [K, T] -> latents [K, window], noise [S, K, window], shares [S] of the levels seen in training."""
        content = latents.detach().float().cpu().contiguous()
        key = hashlib.sha256(f"{draw} {tuple(content.shape)}".encode() + content.numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
        share = (torch.arange(TIMESTEPS) + torch.rand(TIMESTEPS, generator=generator)) / TIMESTEPS
        noise = torch.randn(TIMESTEPS, self.codebooks, self._window(content.shape[-1]), generator=generator)
        limits = torch.finfo(torch.float32).eps, 1 - torch.finfo(torch.float32).eps
        return self._windowed(latents.to(self.device)), noise.to(self.device), share.clamp(*limits).to(self.device)

    # -------------------------------------------------------------------------------------------------- generation

    @torch.no_grad()
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
        """Generate music for captions with the pipeline's own sampler: latents [N, K, T].

        Row i has the noise of `seed + i`, the sampler's too where it adds some. `temperature` and `top_k` say nothing
        to a model without tokens; `guidance` says nothing to one that was distilled to generate without.

        Raises:
            UsageError: a prompt was given, or more seconds than the model can generate.
        """
        if prompt is not None and prompt.shape[-1]:
            raise UsageError(
                f"the backend {self.name} can't continue a prompt: it generates all of a piece at once",
                "leave the prompt out",
            )
        frames = max(1, round(seconds * self.frame_rate))
        if frames > self.max_frames:
            longest = self.max_frames / self.frame_rate
            raise UsageError(f"the backend {self.name} generates {longest:.1f} s at most", f"ask for {longest:.1f} s")
        self.encode_text(captions)
        played: list[Tensor] = [torch.empty(0)] * len(captions)
        for group in self._groups(captions, [frames] * len(captions)):
            with quiet():
                rows = self._sample_latents([captions[i] for i in group], frames, [seed + i for i in group], guidance)
            for i, row in zip(group, rows, strict=True):
                played[i] = row
        return torch.stack(played)

    def _sample_latents(self, captions: Sequence[str], frames: int, seeds: Sequence[int], guidance: float) -> Tensor:
        """Rows that can be run together, from noise to latents [N, K, T]."""
        scheduler = type(self.parts["scheduler"]).from_config(self.parts["scheduler"].config)
        self._schedule(scheduler)
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(self.codebooks, self._window(frames), generator=draw) for draw in draws])
        state = noise.to(self.device) * getattr(scheduler, "init_noise_sigma", 1.0)
        lengths = [frames] * len(captions)
        guides = self.guided and guidance != 1.0
        conditional = self._prepare(captions, lengths)
        unconditional = self._prepare(captions, lengths, unconditional=True) if guides else None
        drawing = {"generator": draws} if "generator" in inspect.signature(scheduler.step).parameters else {}
        memory: dict[str, Any] = {}
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(state, timestep) if hasattr(scheduler, "scale_model_input") else state
            times = timestep.to(self.device).expand(len(captions))
            prediction = self._predict(scaled, times, conditional)
            if unconditional is not None:
                without = self._predict(scaled, times, unconditional)
                prediction = self._guide(prediction, without, guidance, memory)
            state = scheduler.step(prediction, timestep, state, return_dict=False, **drawing)[0]
        return state[..., :frames]


def _most_anywhere(groups: int) -> int:
    """How many groups of rows the network is run on: where its weights are split, as many in every process.

    A process with fewer of them runs its last one again, and leaves the result out.
    """
    return int(distributed.largest([groups])[0]) if distributed.in_lockstep() else groups
