"""The verdict on a track: what its evidence says, in one code and plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from encore.check.membership import LEVEL
from encore.metrics.memorization.verbatim import MATCH

Verdict = Literal["memorised", "trained_on", "no_sign", "not_checked"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
SIMILARITIES = {
    "chroma": "harmony", "melody": "melody", "onset": "rhythm", "bleu": "n-grams of codes", "edit": "order of codes",
}  # fmt: skip
PROMPTS = {
    "caption": "From its caption alone, choosing the likeliest token at each step,",
    "caption, sampled": "From its caption alone, in {reproduced} of {samples} random samples,",
    "caption, shortened": "From a shortened caption alone,",
    "1 s": "Given one second of it, choosing the likeliest token at each step,",
    "1 s, sampled": "Given one second of it, in {reproduced} of {samples} random samples,",
}


def verdict_of(evidence: Mapping[str, Any]) -> tuple[Verdict, list[str]]:
    """The verdict on a track, and the sentences that support it, the strongest first.

    A track is memorised if a generation reproduces a passage of it, its NLL is that of memorised tracks, or an excerpt
    of it has such an NLL. What gold does as well, or a held-out track shows as strongly, does not count. It was in the
    training data if it is predicted better than held-out music (p after correction). Similarity of generations alone
    never decides, as another recording of the same piece in the training data would explain it.

    Args:
        evidence: of the track, as in `check.json`.
    """
    sentences = [*_extraction(evidence), *_likelihood(evidence), *_excerpts(evidence)]
    verdict: Verdict = "memorised" if sentences else "no_sign"
    member = evidence["membership"]
    if member["p_adjusted"] is not None and member["p_adjusted"] <= LEVEL and not member["doubt"]:
        verdict = verdict if sentences else "trained_on"
        sentences.append(
            f"The model predicts it better than held-out music: p = {member['p_adjusted']:.2g}, corrected for all "
            "checked tracks."
        )
    similar = [
        f"{SIMILARITIES.get(kind, kind)} {found['value']:.2f} ({found['threshold']:.2f})"
        for kind, found in evidence["similarity"].items()
        if found["above"]
    ]
    if similar:
        sentences.append(
            "Similarity of generations for its caption, in brackets the highest of held-out music: "
            f"{', '.join(similar)}. Chance, or another recording of the same piece, would explain it as well."
        )
    if verdict == "no_sign":
        if member["p"] is None:
            tested = f"membership was not tested: {member['why']}"
        elif member["doubt"]:
            tested = "its membership could not be tested reliably"
        else:
            tested = (
                f"p = {member['p']:.2g} under the hypothesis that the model predicts it no better than held-out music"
            )
        sentences.insert(
            0, f"No sign of it under these tests ({tested}). That does not show that it is not in the model."
        )
    return verdict, sentences


def counts(item: Mapping[str, Any]) -> bool:
    """Whether what a prompt extracts is evidence: a verbatim passage, unlike gold's and that of held-out music."""
    share = item["share"]
    return share >= MATCH and share > (item["held_out"] or 0.0) and not (item["gold"] or 0.0) >= MATCH


def _extraction(evidence: Mapping[str, Any]) -> list[str]:
    found = [item for item in evidence["extraction"] if counts(item)]
    return [
        f"{PROMPTS[item['prompt']].format(**item)} the model generates {item['seconds']:.1f} s of it with "
        f"{item['share']:.0%} of the codes right."
        for item in sorted(found, key=lambda item: -item["share"])
    ]


def _likelihood(evidence: Mapping[str, Any]) -> list[str]:
    nll = evidence["nll"]
    if not nll["memorised"]:
        return []
    other = "held-out music" if nll["held_out"] is not None else "music that is not memorised, about"
    level = nll["held_out"] if nll["held_out"] is not None else 2 * nll["memorised_below"]
    return [f"Its NLL is {nll['value']:.2f} nats per token, that of {other} {level:.2f}."]


def _excerpts(evidence: Mapping[str, Any]) -> list[str]:
    return [
        f"The model has memorised it from {piece['from']:.2f} to {piece['to']:.2f} s: NLL {piece['nll']:.2f} there, "
        f"{evidence['nll']['value']:.2f} in the mean."
        for piece in evidence["excerpts"]
    ]
