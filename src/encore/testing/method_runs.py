"""Of a method: what two steps of the engine (or its edit) do, to the model and to everything else."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from encore.api import LossMethod
from encore.errors import EncoreError
from encore.hashing import module_sha256
from encore.testing.access_spy import GIVEN, TOKENS
from encore.testing.core import ContractViolation, Skip, Suite, named, need, telling
from encore.testing.method_subject import MethodSubject

suite: Suite[MethodSubject] = Suite("method")


@suite.check("two steps", "it runs, changes the weights of the model, and leaves them finite")
def two_steps(subject: MethodSubject) -> str | None:
    trial = subject.trial()
    need(trial.error is None, f"it does not run: {trial.said}")
    need(not trial.skipped, f"{trial.skipped} steps were skipped, because loss or gradient was not finite")
    module = trial.backend.module
    odd = [name for name, weight in module.state_dict().items() if not torch.isfinite(weight).all()]
    need(not odd, f"it leaves weights that are not finite in {named(odd)}")
    if trial.weights == module_sha256(subject.fixture.base.module):
        if not subject.fixture.known:
            raise Skip("the model does not know the forget clips, so that a method may leave it as it is")
        raise ContractViolation("it changes no weight")
    return None


@suite.check("model", "the model keeps its parameters, their names, shapes and types; it is in evaluation mode again")
def model(subject: MethodSubject) -> None:
    module, base = subject.done().backend.module, subject.fixture.base.module
    own, before = ({n: (v.shape, v.dtype) for n, v in one.state_dict().items()} for one in (module, base))
    need(not before.keys() - own.keys(), f"it removes parameters: {named(sorted(before.keys() - own.keys()))}")
    need(not own.keys() - before.keys(), f"it adds parameters: {named(sorted(own.keys() - before.keys()))}")
    changed = [name for name, shape in own.items() if shape != before[name]]
    need(not changed, f"it changes the shape or type of {named(changed)}")
    need(not any(part.training for part in module.modules()), "it leaves the model in training mode")
    trained = {name for name, weight in base.named_parameters() if weight.requires_grad}
    fixed = [name for name, weight in module.named_parameters() if name in trained and not weight.requires_grad]
    need(not fixed, f"it leaves parameters that require no gradient: {named(fixed)}")


@suite.check("frozen parts", "codec and text encoder are bit for bit what they were")
def frozen_parts(subject: MethodSubject) -> None:
    trial = subject.trial()
    need(not trial.frozen, f"it changes the frozen {' and '.join(trial.frozen)}")


@suite.check("reference", "the base model that it compares with is bit for bit what it was")
def reference(subject: MethodSubject) -> None:
    if "reference" not in subject.needs:
        raise Skip("it does not need the reference")
    need(not subject.trial().reference, "it changes the reference model, which must stay the base")


@suite.check("clips", "the clips it is given are not written into")
def clips(subject: MethodSubject) -> None:
    changed = subject.trial().clips
    need(not changed, f"it writes into the codes of {len(changed)} clips: {named([clip.track for clip in changed])}")


@suite.check("determinism", "two runs from one seed end in the same weights, bit for bit")
def determinism(subject: MethodSubject) -> None:
    first, second = subject.done(), subject.done(twin=1)
    need(first.weights == second.weights, "two runs from one seed end in different weights")


@suite.check("random numbers", "all random numbers come from the generator it is given, none from shared ones")
def random_numbers(subject: MethodSubject) -> None:
    drew = subject.trial().watch.drew
    for call, whose in drew.items():
        raise ContractViolation(
            f"{call} draws from, or seeds, {whose} shared random generator; step.generator is there for that"
        )
    need(
        subject.done().weights == subject.done(salt=2).weights,
        "the result changes with the state of shared random generators",
    )


@suite.check("needs", "what it reads is in its spec's needs, and what is in needs it reads")
def needs(subject: MethodSubject) -> str | None:
    watch, spec = subject.trial().watch, subject.target.spec
    for name in ("reference", "fisher"):
        seen = sorted(one for one in watch.read if one.endswith(f".{name}"))
        if seen and name not in spec.needs:
            raise ContractViolation(
                f"it reads {seen[0]}, but its spec's needs lack {name!r}, without which there is none"
            )
    if subject.trial().error is not None:
        raise Skip("the method does not run, see 'two steps'")
    used = {
        "reference": watch.read & {"reference.nll", "reference.logits"},
        "fisher": watch.read & {"session.fisher"},
        "logits": watch.read & {*(f"backend.{name}" for name in TOKENS), "reference.logits"},
        "holdout": watch.read & {"session.holdout", "session.holdout_nll", "step.holdout_nll"},
        "retain": watch.read & {"session.retain"} or _hears_retain(subject),
    }
    idle = sorted(name for name in spec.needs & used.keys() if not used[name])
    need(not idle, f"its spec needs {' and '.join(idle)}, which it does not read at its default options")
    return None


def _hears_retain(subject: MethodSubject) -> bool:
    """Whether retain clips are trained on: by this method, or by one that it trains with."""
    return issubclass(subject.target, LossMethod) or "session.train" in subject.trial().watch.read


@suite.check("without retain", "where its spec does not need retain, it runs without such clips")
def without_retain(subject: MethodSubject) -> None:
    _without(subject, "retain")


@suite.check("without holdout", "where its spec does not need holdout, it runs without such clips")
def without_holdout(subject: MethodSubject) -> None:
    _without(subject, "holdout")


def _without(subject: MethodSubject, what: str) -> None:
    if what in subject.needs:
        raise Skip(f"it needs {what}")
    subject.done()
    trial = subject.trial(without=what)
    if trial.error is not None:
        names = {"retain": ("retain",), "holdout": ("holdout", "holdout_nll")}[what]
        read = sorted(
            one for one in trial.watch.read if one.rpartition(".")[2] in names and one.rpartition(".")[2] in GIVEN
        )
        where = f"it reads {' and '.join(read)}, and " if read else ""
        raise ContractViolation(
            f"{where}without {what} clips it does not run: {trial.said}; its spec's needs lack {what!r}"
        )


@suite.check(
    "without tokens", "on a backend without tokens it runs, or says in a sentence that it can't, or needs logits"
)
def without_tokens(subject: MethodSubject) -> str | None:
    if "logits" in subject.needs:
        raise Skip("it needs logits: Encore refuses a backend without tokens before it is asked")
    subject.done()
    trial = subject.trial(tokens=False)
    if trial.error is None:
        return None
    asked = sorted(one for one in trial.watch.read if one.startswith("backend.") or one == "reference.logits")
    if asked:
        raise ContractViolation(
            f"it reads {asked[0]}, which a backend without tokens has not; its spec's needs lack 'logits'"
        )
    if isinstance(trial.error, EncoreError):
        return f"refused: {trial.said}"
    raise ContractViolation(f"it does not run on a backend without tokens: {trial.said}")


@suite.check("files", "it writes no file, starts no process and opens no connection: what is kept, the engine keeps")
def files(subject: MethodSubject) -> None:
    outside = subject.trial().outside
    need(not outside, f"it {' and '.join(outside[:2])}")


@suite.check("save", "the model it leaves is saved and loaded with the same weights")
def save(subject: MethodSubject) -> None:
    trial = subject.done()
    with tempfile.TemporaryDirectory() as folder:
        with telling("the model it leaves can't be saved and loaded: the backend"):
            trial.backend.save(Path(folder))
            again = type(subject.fixture.base).load(folder, offline=True)
        need(module_sha256(again.module) == trial.weights, "saved and loaded, the model it leaves has other weights")


@suite.check("resume", "a run that is stopped and resumed ends in the weights of one that was not")
def resume(subject: MethodSubject) -> None:
    trial = subject.done()
    if len(trial.steps) < 2:
        raise Skip("it has no steps to stop between: a resumed run begins anew")
    went_on, weights = subject.resumed()
    need(went_on, "a run that is stopped after its first step does not go on from there")
    need(
        weights == trial.weights,
        "a run that was stopped and resumed ends in other weights: prepare is not deterministic, or it keeps a state "
        "between steps that no checkpoint holds",
    )
