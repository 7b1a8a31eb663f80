"""Each gate and the fake that only it catches, on the embedded models: the fake is gold but for one thing.

Metrics that train take longest: they are measured on gold and on the fakes that are theirs. The fakes of gates that
take a stereo model, or long tracks, are in the tests of these metrics.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests import embedded
from tests.metrics import fakes
from torch import Tensor

from encore import plugins
from encore.api import Evaluation
from encore.backends.musicgen import MusicgenBackend
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.measure import measure
from encore.metrics.robustness.prompt_attacks import ChangedPrompt
from encore.metrics.robustness.variants import Variant
from encore.results.findings import findings
from encore.results.targets import row_specs, summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

FAST = [entry.spec.name for entry in plugins.metrics() if not entry.spec.full and not entry.spec.trains]
TRAINING = [entry.spec.name for entry in plugins.metrics() if entry.spec.trains]
TRAINED = {row.name for entry in plugins.metrics() if entry.spec.trains for row in entry.spec.rows}
ATTACKS = [
    "quantised", "paraphrased", "prompt_reencoded", "prompt_time_stretched", "prompt_pitch_shifted",
    "sampled_verbatim", "artefacts",
]  # fmt: skip
AUDITS = ["reversed_guidance", "depth", "relative_audit", "dataset_inference", "unlearning_inference"]
MEMBERSHIP = "membership_attacks"  # takes a gradient of each clip: for gold and for the fakes of membership


@pytest.fixture(scope="module")
def evaluation() -> Iterator[SharedEvaluation]:
    """The embedded models. Prompts are changed and codes decoded once: no fake changes the tracks or the codec."""
    made: dict[str, list[Variant]] = {}
    audio: dict[bytes, Tensor] = {}
    make, decode = ChangedPrompt.variants, MusicgenBackend.decode

    def variants(metric: ChangedPrompt, of: Evaluation) -> list[Variant]:
        if metric.metric not in made:
            made[metric.metric] = make(metric, of)
        return made[metric.metric]

    def decoded(model: MusicgenBackend, codes: Tensor) -> Tensor:
        key = codes.numpy().tobytes()
        if key not in audio:
            audio[key] = decode(model, codes)
        return audio[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChangedPrompt, "variants", variants)
        patch.setattr(MusicgenBackend, "decode", decoded)
        yield embedded.evaluation()


def caught(evaluation, fake, metrics) -> set[str]:
    """Gates that a fake fails, and failures that no gate has."""
    roles = {role: evaluation.models[role] for role in ("base", "gold", "gold2")} | {"unlearned": fake}
    rows = measure(evaluation.derive(models=roles), metrics)
    failed = {f"{line.metric} {line.set}": line.label for line in summary(rows) if line.met is False}
    labels = tuple(f"{label}:" for label in failed.values())
    beyond = {one.text for one in findings(rows) if one.level == "fail" and not one.text.startswith(labels)}
    return {*failed, *beyond}


def own(gate: str) -> list[str]:
    """The metrics that take longest, for a fake that one of them catches; a trained prompt trains no fake."""
    if gate.startswith("membership_p"):
        return [*ATTACKS, MEMBERSHIP]
    if gate.split()[0] not in TRAINED:
        return []
    return [name for name in TRAINING if (name == "soft_prompt") == gate.startswith("soft_prompt")]


def test_a_fake_that_changes_nothing_is_caught_by_nothing(evaluation):
    metrics = [*FAST, *ATTACKS, *AUDITS, MEMBERSHIP]  # what trains is measured of gold in test_expected_directions
    assert caught(evaluation, fakes.wrap(evaluation.models["gold"], "nothing"), metrics) == set()


@pytest.mark.parametrize("name", fakes.FAKES)
def test_only_its_gate_of_the_fast_set_catches(evaluation, name):
    gate, make = fakes.FAKES[name]
    fake = make(evaluation.models["gold"], fakes.Tracks.of(evaluation), evaluation)
    assert caught(evaluation, fake, [*FAST, *own(gate)]) == {gate}


@pytest.mark.parametrize("name", fakes.FULL)
def test_only_its_gate_of_the_full_set_catches(evaluation, name):
    gate, make = fakes.FULL[name]
    fake = make(evaluation.models["gold"], fakes.Tracks.of(evaluation), evaluation)
    assert caught(evaluation, fake, [*FAST, *(own(gate) or ATTACKS)]) == {gate}


@pytest.mark.parametrize("name", fakes.AUDITS)
def test_only_its_audit_catches(evaluation, name):
    gate, make = fakes.AUDITS[name]
    fake = make(evaluation.models["gold"], fakes.Tracks.of(evaluation), evaluation)
    more = [MEMBERSHIP] if gate.startswith("dataset") else []
    assert caught(evaluation, fake, [*FAST, *AUDITS, *more]) == {gate}


def test_every_gate_has_a_fake():
    gates = {f"{row.name} {row.set}" for row in row_specs() if row.judge}
    every = (*fakes.FAKES.values(), *fakes.FULL.values(), *fakes.AUDITS.values(), *fakes.OTHERS.values())
    assert {gate for gate, _ in every} == gates
