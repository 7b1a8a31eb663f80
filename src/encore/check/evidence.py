"""Everything that `encore check` computes of a model and its tracks."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip, ClipSet, Role
from encore.check.config import CheckConfig
from encore.check.extraction import Extraction, best_shares, extracted, extractions, passage_frames
from encore.check.membership import LEVEL, Membership
from encore.check.music import MOST, Music
from encore.check.verdicts import VERDICTS, counts, verdict_of
from encore.data.artists import artists_of, normalised
from encore.data.encode import TrackEncoder, window_samples
from encore.data.encoded_tracks import EncodedTrack, clips_of
from encore.data.offset_search import LEAST_SECONDS, OffsetSearch
from encore.data.tracks import Piece
from encore.errors import InputError, MissingExtraError, one_line
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.evaluate.result_cache import evaluation_cache
from encore.evaluate.samples import write_wav
from encore.memorised import is_memorised, memorised_below
from encore.metrics.memorization.verbatim import MATCH
from encore.metrics.privacy.model_free import baseline_scores
from encore.metrics.rows import code_entropies, not_finite, windows_by_track
from encore.metrics.utility.neighbours import UNKNOWN
from encore.reporter import Reporter
from encore.results.golds import listed
from encore.store.model_name import model_sha256
from encore.store.run_folder import staged_folder
from encore.tensor_cache import TensorCache

SCHEMA = 1
SAMPLES = "samples"
WINDOWS = 2  # of each track that are continued: those of the lowest NLL
HELD_OUT = 10  # held-out tracks, drawn by the seed, that generations are compared on
PROBES = 300  # offsets of each track that are searched, without `full`
SIMILARITY = {"similarity": "harmony, melody and rhythm", "similarity_codes": "codes"}  # metrics
SHOWN = 8  # generations that are written as WAV files


class Evidence:
    """The evidence of one check, computed test by test.

    Args:
        config: the settings.
        music: the tracks; their files are encoded here.
        models: the model as "base", perhaps a "gold".
        reporter: receives progress.

    Raises:
        InputError: no track can be used, or a model's likelihood of one is not finite.
    """

    def __init__(self, config: CheckConfig, music: Music, models: dict[Role, Backend], reporter: Reporter) -> None:
        self._config, self._music, self._reporter = config, music, reporter
        self._backend = backend = models["base"]
        self._encoder = TrackEncoder(backend, TensorCache())
        self._tracks, self._holdout = music.encode(self._encoder, reporter)
        clips: dict[ClipSet, list[Clip]] = {"forget": list(clips_of(self._tracks))}
        if self._holdout:
            clips["holdout"] = list(clips_of(self._holdout))
        self._evaluation = SharedEvaluation(
            models, clips, seed=config.seed, embedder=None, cache=evaluation_cache() if config.cache else None
        )
        self._require_finite()
        self._generating = self._evaluation.derive(clips=self._chosen_windows())
        self._tests: list[dict[str, Any]] = []  # name, whether it was tried, why not
        self._extracted: dict[str, list[Extraction]] = {}
        self._known = set[str]()  # held-out tracks with the NLL of memorised ones
        self._known_to_gold = set[str]()  # checked tracks that gold itself has memorised: it excuses nothing there
        self._limit: float | None = None  # NLL below which a track counts as memorised

    # --------------------------------------------------------------------------------------------------- evidence

    def result(self) -> dict[str, Any]:
        """The content of `check.json`, without the environment."""
        evidence = self._likelihoods()
        doubt = self._memberships(evidence)
        self._extractions(evidence)
        self._excerpts(evidence)
        self._similarities(evidence)
        tracks = []
        for item in self._tracks:
            verdict, sentences = verdict_of(evidence[item.track.id])
            tracks.append(
                {**_facts(item), "verdict": verdict, "sentences": sentences, "evidence": evidence[item.track.id]}
            )
        refused = [{"verdict": "not_checked", "why": e.message, "hint": e.hint} for e in self._music.refused]
        if doubt:
            self._music.notes.append(doubt)
        if self._known_to_gold:
            self._music.notes.append(
                f"gold itself has memorised {listed(self._known_to_gold)}, so these are not compared with it; give a "
                "gold that was trained without the checked tracks"
            )
        config = self._config
        return {
            "schema": SCHEMA,
            "model": {
                "name": config.model, "revision": config.revision, "backend": config.backend,
                "sha256": model_sha256(self._backend),
            },
            "gold": config.gold, "seed": config.seed, "samples": config.samples, "full": config.full,
            "summary": {
                name: sum(track["verdict"] == name for track in (*tracks, *refused)) for name in VERDICTS
            },
            "calibration": self._calibration,
            "list": self._of_list,
            "artists": self._of_artists,
            "tests": self._tests,
            "notes": list(dict.fromkeys(self._music.notes)),
            "tracks": tracks,
            "not_checked": refused,
        }  # fmt: skip

    def _tried(self, name: str, why_not: str = "") -> None:
        self._tests.append({"test": name, "tried": not why_not, "why": why_not or None})

    def _require_finite(self) -> None:
        for model in self._evaluation.models:
            for clips in self._evaluation.clips:
                if reason := not_finite(self._evaluation, model, clips):
                    name = self._config.gold if model == "gold" else self._config.model
                    raise InputError(f"{name}: {reason}", "are its weights damaged? else try --device cpu")

    def _chosen_windows(self) -> dict[ClipSet, list[Clip]]:
        """The windows of each track that are generated from: those of the lowest NLL, with the first caption."""
        evaluation, chosen = self._evaluation, dict[ClipSet, list[Clip]]()
        drawn = random.Random(self._config.seed).sample(self._holdout, min(HELD_OUT, len(self._holdout)))
        for name, encoded in (("forget", self._tracks), ("holdout", drawn)):
            if not encoded:
                continue
            clips_name: ClipSet = name  # type: ignore[assignment]
            captions = {item.track.id: item.track.caption for item in encoded}
            losses = self._clip_losses(clips_name)
            clips = evaluation.clips[clips_name]
            order = sorted(range(len(clips)), key=lambda i: (clips[i].track, losses[i]))
            by_track = windows_by_track(clips[i] for i in order if clips[i].caption == captions.get(clips[i].track))
            chosen[clips_name] = [clip for windows in by_track.values() for clip in windows[:WINDOWS]]
        return chosen

    def _clip_losses(self, clips: ClipSet) -> list[float]:
        evaluation = self._evaluation
        if not self._backend.has_tokens:
            return [0.0] * len(evaluation.clips[clips])
        pairs = zip(evaluation.token_logprobs("base", clips), evaluation.token_mask(clips), strict=True)
        return [-float(logprobs.double().sum()) / max(1, int(mask.sum())) for logprobs, mask in pairs]

    def _likelihoods(self) -> dict[str, dict[str, Any]]:
        """NLLs, and whether they are those of memorised tracks: below the threshold and half of the codes' entropy.

        Codes of low entropy (silence, a held tone) have a low NLL under any model.
        """
        evaluation, tokens = self._evaluation, self._backend.has_tokens
        nll = evaluation.nll("base", "forget")
        gold = evaluation.nll("gold", "forget") if "gold" in evaluation.models else {}
        held_out = list(evaluation.nll("base", "holdout").values()) if self._holdout else []
        mean = sum(held_out) / len(held_out) if held_out else None
        self._limit = limit = memorised_below(mean, self._backend.codebook_size) if tokens else None
        entropies = self._entropies("forget")

        def is_below(value: float, entropy: float | None) -> bool:
            return limit is not None and entropy is not None and is_memorised(value, limit, entropy)

        evidence: dict[str, dict[str, Any]] = {}
        for track, value in nll.items():
            entropy = entropies.get(track)
            below = is_below(value, entropy)
            if is_below(gold.get(track, math.inf), entropy):
                self._known_to_gold.add(track)
            by_gold = limit is not None and gold.get(track, math.inf) < limit and track not in self._known_to_gold
            evidence[track] = {
                "nll": {
                    "value": value, "unit": self._backend.unit, "held_out": mean, "memorised_below": limit,
                    "entropy": entropy, "gold": gold.get(track), "memorised": below and not by_gold,
                },
                "membership": {"p": None, "p_adjusted": None, "doubt": False, "why": None},
                "extraction": [], "excerpts": [], "searched": None, "similarity": {},
            }  # fmt: skip
        if self._holdout:
            entropies = self._entropies("holdout")
            values = evaluation.nll("base", "holdout")
            self._known = {track for track, value in values.items() if is_below(value, entropies.get(track))}
        if self._known:
            self._music.notes.append(
                f"the model has memorised held-out music, which weakens the membership tests: {listed(self._known)}; "
                "better leave it out of --holdout"
            )
        self._tried("likelihood of memorised tracks", "" if tokens else "the model has no tokens")
        self._calibration: dict[str, Any] = {
            "tracks": len(held_out), "source": self._music.source or None, "nll": mean, "least_p": None,
            "extracted": None, "compared": None,
        }  # fmt: skip
        return evidence

    def _entropies(self, clips: ClipSet) -> dict[str, float]:
        """Entropy of each track's codes; empty without tokens."""
        if not self._backend.has_tokens:
            return {}
        return code_entropies(self._evaluation.clips[clips])

    def _memberships(self, evidence: Mapping[str, dict[str, Any]]) -> str:
        """p of each track, of the list and of artists; returns why they are doubtful, or nothing."""
        self._of_list: dict[str, Any] | None = None
        self._of_artists: list[dict[str, Any]] = []
        why = "" if self._holdout else "there is no held-out music"
        membership = None if why else Membership(self._evaluation)
        if membership is not None and not membership.names:
            why = "no likelihood is finite for every track"
        for name in ("membership of each track", "membership of the list (dataset inference)"):
            self._tried(name, why)
        if membership is None or why:
            for found in evidence.values():
                found["membership"]["why"] = why
            return ""
        warnings = [score for score in baseline_scores(self._evaluation) if score.warning and score.p_holm < LEVEL]
        doubt = str(min(warnings, key=lambda score: score.p_holm).warning) if warnings else ""
        doubt = doubt.replace("forget and holdout", "checked and held-out tracks")
        for track, (p, adjusted) in membership.per_track().items():
            evidence[track]["membership"] = {"p": p, "p_adjusted": adjusted, "doubt": bool(doubt), "why": None}
        self._calibration["least_p"] = membership.least_p
        counted = self._music.one_per_recording(item.track.id for item in self._tracks)
        self._of_list = {
            "p": membership.of_list(counted),
            "tracks": len(counted),
            "scores": membership.names,
            "doubt": doubt or None,
        }
        artists: dict[str, list[str]] = {}
        spelled: dict[str, str] = {}
        for item in self._tracks:
            for artist in artists_of(item.track.artist or ""):
                if not UNKNOWN.fullmatch(normalised(artist)):
                    name = spelled.setdefault(normalised(artist), artist)
                    artists.setdefault(name, []).append(item.track.id)
        artists = {artist: self._music.one_per_recording(tracks) for artist, tracks in artists.items()}
        self._of_artists = [
            {"artist": artist, "tracks": artists[artist], "p": p, "p_adjusted": adjusted}
            for artist, (p, adjusted) in membership.of_artists(artists).items()
        ]
        least = math.ceil(1 / LEVEL) - 1
        if len(self._holdout) < least:
            self._music.notes.append(
                f"with {len(self._holdout)} held-out tracks no p of a single track is below {membership.least_p:.2g}; "
                f"{least} are needed for {LEVEL:g}"
            )
        elif len(self._holdout) < (needed := math.ceil(len(self._tracks) / LEVEL) - 1):
            self._music.notes.append(
                f"membership can't find a lone track among {len(self._tracks)}: that takes {needed} held-out tracks"
                + (f", and at most {MOST} are compared with; check fewer tracks at once" if needed > MOST else "")
            )
        if doubt:
            return f"The membership tests are not used for verdicts, since they can't be trusted: {doubt}."
        return ""

    def _extractions(self, evidence: Mapping[str, dict[str, Any]]) -> None:
        names = ("generations from captions", "continuations of one second")
        if not self._backend.has_tokens:
            for name in names:
                self._tried(name, "the model has no tokens to compare")
            return
        self._reporter.progress("generate", 0, 2)
        samples = self._config.samples
        try:
            found = extractions(self._generating, "base", "forget", samples=samples)
            self._reporter.progress("generate", 1, 2)
            others = extractions(self._generating, "base", "holdout", samples=samples) if self._holdout else {}
            by_gold = (
                extractions(self._generating, "gold", "forget", samples=samples, greedy_only=True)
                if "gold" in self._generating.models
                else {}
            )
        except Exception as error:  # a backend without prompts, or out of memory: the other tests are worth having
            for name in names:
                self._tried(name, f"the model can't generate: {one_line(error)}")
            return
        for name in names:
            self._tried(name)
        # What the model generates of music that it knows is no measure of chance.
        chance = best_shares(items for track, items in others.items() if track not in self._known)
        if like := {track for track, items in others.items() if track not in self._known and extracted(items)}:
            self._music.notes.append(
                f"the model generates passages of held-out music: {listed(like)}; passages of checked tracks count "
                "only where more of their codes are right"
            )
        self._calibration |= {"extracted": sum(map(extracted, others.values())), "compared": len(others)}
        windows = windows_by_track(self._generating.clips["forget"])
        for track, items in found.items():
            shares = {item.prompt: item.share for item in by_gold.get(track, ())}
            if shares.get("caption", 0.0) >= max(MATCH, chance.get("caption", 0.0)):
                self._known_to_gold.add(track)
            gold = max(shares.values(), default=None) if track not in self._known_to_gold else None
            evidence[track]["extraction"] = [
                {
                    "prompt": item.prompt, "samples": item.samples, "reproduced": item.reproduced, "share": item.share,
                    "seconds": item.seconds, "held_out": chance.get(item.prompt), "gold": gold,
                }
                for item in items
            ]  # fmt: skip
            self._extracted[track] = items
            if not passage_frames(windows[track], self._backend.frame_rate):
                self._music.notes.append(f"{track} is too short to compare generations with")

    def _excerpts(self, evidence: Mapping[str, dict[str, Any]]) -> None:
        """Excerpts that the model learnt at other offsets, of tracks that show nothing so far."""
        name = "excerpts at other offsets"
        backend = self._backend
        if not backend.has_tokens:
            return self._tried(name, "the model has no tokens")
        if window_samples(backend) < LEAST_SECONDS * backend.sample_rate:
            return self._tried(name, "the model's window is too short")
        unknown = [item for item in self._tracks if not _memorised(evidence[item.track.id])]
        in_shards = [item for item in unknown if item.track.shards is not None]
        self._tried(name, "shards hold no audio to search" if in_shards and len(in_shards) == len(unknown) else "")
        for done, item in enumerate(unknown):
            self._reporter.progress("search offsets", done, len(unknown))
            if item.track.shards is not None:
                continue
            samples = torch.from_numpy(self._encoder.load(item.track).samples)
            greedy = [e.codes for e in self._extracted.get(item.track.id, ()) if e.prompt == "caption"]
            with torch.no_grad():
                audio = [backend.decode(codes[None].to(backend.device))[0].mean(0).float().cpu() for codes in greedy]
            search = OffsetSearch(
                backend, samples, item.track.caption, audio, most_probes=None if self._config.full else PROBES
            )
            pieces = [piece for piece in search.pieces() if not self._by_gold(item, piece)]
            rate = backend.sample_rate
            evidence[item.track.id] |= {
                "excerpts": [
                    {"from": p.start / rate, "to": (p.start + p.samples) / rate, "nll": p.nll} for p in pieces
                ],
                "searched": search.searched,
            }  # fmt: skip
            if search.searched < 1:
                self._music.notes.append(
                    f"{item.track.id} is long: {search.searched:.0%} of its offsets were searched, beside those of "
                    "generations from its caption" + ("" if self._config.full else "; --full searches more")
                )
        self._reporter.progress("search offsets", len(unknown), len(unknown))
        return None

    @torch.no_grad()
    def _by_gold(self, item: EncodedTrack, piece: Piece) -> bool:
        """Whether gold predicts an excerpt nearly as well as the model, without having memorised it."""
        if "gold" not in self._evaluation.models:
            return False
        (encoded,) = self._encoder.encode([replace(item.track, pieces=(piece,), more_captions=())])
        gold, track = self._evaluation.backend("gold"), item.track.id
        nll = float(gold.losses(Batch.of(encoded.clips, gold.device))[0])
        entropy = code_entropies(encoded.clips)[encoded.clips[0].track]
        if self._limit is not None and is_memorised(nll, self._limit, entropy):
            self._known_to_gold.add(track)
        return nll <= 2 * piece.nll and track not in self._known_to_gold

    def _similarities(self, evidence: Mapping[str, dict[str, Any]]) -> None:
        """Musical and code similarity of generations from captions to their tracks, against held-out music."""
        for metric, what in SIMILARITY.items():
            name = f"similarity of generations: {what}"
            if not self._holdout:
                self._tried(name, "there is no held-out music")
                continue
            self._reporter.progress("compare generations", 0, 1)
            try:
                rows = measure(self._generating, [metric])
            except MissingExtraError as error:
                self._tried(name, f"{error.message}; {error.hint}")
                continue
            measured = any(row.value is not None for row in rows)
            self._tried(name, "" if measured else next((row.why for row in rows if row.why), "not measured"))
            for row in (row for row in rows if row.model == "base"):
                limit = row.details.get("threshold")
                if row.metric.endswith("_flagged") or not isinstance(limit, float):
                    continue
                for track, value in row.per_track.items():
                    evidence[track]["similarity"][row.metric.removeprefix("similarity_")] = {
                        "value": value, "threshold": limit, "above": value is not None and value > limit,
                    }  # fmt: skip

    # ---------------------------------------------------------------------------------------------------- samples

    def write_samples(self, folder: Path, result: Mapping[str, Any]) -> None:
        """WAV files of the best generations that reproduce a track; adds their names to the result."""
        chosen: list[tuple[dict[str, Any], Tensor]] = []
        for track in result["tracks"]:
            found = [
                item
                for item, listed in zip(
                    self._extracted.get(track["id"], ()), track["evidence"]["extraction"], strict=False
                )
                if counts(listed)
            ]
            if found:
                chosen.append((track, max(found, key=lambda item: item.share).codes))
        with staged_folder(folder) as staging:
            for number, (track, codes) in enumerate(chosen[:SHOWN]):
                name = f"{number:03d}.wav"
                with torch.no_grad():
                    audio = self._backend.decode(codes[None].to(self._backend.device))[0]
                write_wav(staging / name, audio, self._backend.sample_rate)
                track["sample"] = f"{SAMPLES}/{name}"


def _memorised(evidence: Mapping[str, Any]) -> bool:
    return evidence["nll"]["memorised"] or any(counts(item) for item in evidence["extraction"])


def _facts(item: EncodedTrack) -> dict[str, Any]:
    track = item.track
    return {
        "id": track.id, "title": track.title, "artist": track.artist, "file": str(track.path), "line": track.line,
        "sha256": track.sha256, "seconds": round(item.seconds, 3), "caption": track.caption,
        "caption_source": track.caption_source,
    }  # fmt: skip
