"""Per-sample gradients of a whole model from one forward and one backward pass, reduced as they arise.

Inside `capture`, each use of a parameter by a layer that `encore.curvature.layers` can read is computed with the
parameter detached, and its output goes through an identity whose backward sees the layer's input and output gradient:
all that the per-sample gradients are made of. Autograd never forms the batch's weight gradients; the reductions take
their place. And since nothing arrives at a parameter by way of these layers, a gradient that does arrive there shows a
use of some other kind: that is how a parameter that can't be read exactly is found out, every time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from encore.curvature.accumulators import Accumulators
from encore.curvature.grad_factors import Part, Vector, joined, moved
from encore.curvature.hooks import (
    Intercept,
    as_autocast_would,
    at_its_end,
    backward_pass,
    hook_gradients,
    set_aside_grads,
    sum_of_losses,
)
from encore.curvature.layers import LayerCall
from encore.errors import EncoreError

OUTSIDE = "it is used outside the layers that per-sample gradients can be read from"
MIXED = "its layer's input does not keep the samples apart along the first dimension"
INSTEAD = "leave it out with skip=, freeze it, or use encore.curvature.fisher, which loops over the samples for it"

_proven: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""Parameters that `capture.probe` has found to be used in a way that is read exactly."""


class UnsupportedParameterError(EncoreError):
    """Parameters whose per-sample gradients can't be read exactly.

    Args:
        reasons: name -> why.
        hint: what can be done.
    """

    def __init__(self, reasons: Mapping[str, str], hint: str = INSTEAD) -> None:
        self.reasons = dict(reasons)
        named = "; ".join(f"{name}: {why}" for name, why in self.reasons.items())
        super().__init__(f"no exact per-sample gradient of {named}", hint)


class Place(NamedTuple):
    """Rows of a parameter."""

    name: str
    rows: range

    def overlaps(self, part: Part) -> bool:
        return max(self.rows.start, part.start) < min(self.rows.stop, part.start + part.rows)


class capture:
    """What is asked for of the per-sample gradients g_n of a module's trainable parameters.

    Inside the block, run one forward pass and `losses.sum().backward()` (or several such pairs: sums add up, samples
    are strung together), where `losses` is [N], and each sample's loss depends on the sample alone. The loss may be a
    mean, and scaled; then so are the g_n. Samples are the first dimension of every layer's input. `.grad` and
    `requires_grad` of captured parameters stay as they are.

    The first backward pass over a module takes one more, see `probe`.

    Args:
        module: frozen parameters are left alone.
        fisher: Σ_n g_n∘g_n; or tensors by parameter name, float32 or float64, that it is added to in place.
        norms: ‖g_n‖² over all captured parameters.
        directions: M mappings name -> tensor of the parameter's shape; ⟨g_n, V_m⟩. A name that is missing counts as 0.
        total: Σ_n g_n, what `.grad` would be.
        keep: hold on to inputs and output gradients, for `weighted_sum`; their memory is taken as long as the capture
            lives.
        skip: names of parameters to leave to autograd, which fills their `.grad`.

    Raises:
        UnsupportedParameterError: during backward, where a parameter is used in a way that can't be read exactly.
        EncoreError: backward was called on something that is not a sum of one loss per sample; or a result is asked for
            when a backward pass has failed.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        fisher: bool | Mapping[str, Tensor] = False,
        norms: bool = False,
        directions: Sequence[Mapping[str, Tensor]] | None = None,
        total: bool = False,
        keep: bool = False,
        skip: Collection[str] = (),
    ) -> None:
        self.parameters = {
            name: weight for name, weight in module.named_parameters() if weight.requires_grad and name not in skip
        }
        self._names = {id(weight): name for name, weight in self.parameters.items()}
        self._module = module
        self._accumulators = Accumulators(
            self.parameters, fisher=fisher, norms=norms, directions=directions, total=total, keep=keep
        )
        self._mode: Intercept | None = None
        self._handles: list[Any] = []
        self._anchors: dict[torch.device, Tensor] = {}
        self._recomputing: list[bool] = []
        self._muted = False
        self._samples: int | None = None  # N, while a backward pass runs
        self._probed: int | None = None  # the sample whose loss alone is sent back
        self._refused: dict[str, str] = {}
        self._seen: set[str] = set()
        self._task: int | None = None
        self._begin_pass()

    def _begin_pass(self) -> None:
        self._calls: dict[str, list[Place]] = {}
        self._sizes: set[int] = set()  # of all dimensions of inputs but the first
        self._held: dict[str, list[Part]] = {}
        self._cleared = False  # by `probe`

    # ------------------------------------------------------------------------------------------------------ results

    @property
    def fisher(self) -> dict[str, Tensor]:
        """Σ_n g_n∘g_n a parameter, float32 (float64 for one of that type); added up over the block's passes."""
        return self._complete().fisher()

    @property
    def total(self) -> dict[str, Tensor]:
        """Σ_n g_n a parameter, in the same types."""
        return self._complete().total()

    @property
    def sq_norms(self) -> Tensor:
        """‖g_n‖² over all captured parameters, [N]."""
        return self._complete().sq_norms()

    @property
    def dots(self) -> Tensor:
        """⟨g_n, V_m⟩ over all captured parameters, [N, M]."""
        return self._complete().dots()

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """Σ_n w_n g_n a parameter, for weights [N], from what `keep=True` has kept; no second backward."""
        return self._complete().weighted_sum(weights)

    def _complete(self) -> Accumulators:
        if self._task is not None:
            raise EncoreError("a backward pass inside capture did not come to its end", "begin a new capture")
        return self._accumulators

    # ---------------------------------------------------------------------------------------------------- the block

    def __enter__(self) -> capture:
        self._mode = Intercept(self._layer, self._backward)
        for name, weight in self.parameters.items():
            self._handles.append(weight.register_hook(lambda grad, name=name: self._arrived(name, grad)))
        for part in self._module.modules():
            self._handles.append(part.register_forward_pre_hook(self._enter_recomputation))
            self._handles.append(part.register_forward_hook(self._leave_recomputation, always_call=True))
        self._mode.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        assert self._mode is not None
        self._mode.__exit__(kind, *rest)
        self._mode = None  # else the two would hold each other, and what is kept, until the garbage collector comes
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if kind is None:
            self._complete()

    def _enter_recomputation(self, *_: object) -> None:
        """Autograd switches modes off: a module that checkpointing runs again in backward needs ours back."""
        if backward_pass() != -1 and self._mode is not None:
            self._recomputing.append(self._mode.enter_again())

    def _leave_recomputation(self, *_: object) -> None:
        if backward_pass() != -1 and self._mode is not None and self._recomputing.pop():
            self._mode.__exit__(None, None, None)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Backward passes in here are not recorded."""
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

    # ------------------------------------------------------------------------------------------------- forward pass

    def _layer(self, call: LayerCall) -> Tensor | None:
        """Run a layer so that backward shows its input and output gradient; None where it holds nothing captured."""
        weight, bias = self._place(call.weight), self._place(call.bias)
        if weight is None and bias is None:
            return None
        if backward_pass() == -1:  # a recomputation under checkpointing is no further call
            self._complete()
            self._sizes.update(call.inputs.shape[1:])
            for place in (weight, bias):
                if place is not None:
                    self._calls.setdefault(place.name, []).append(place)
        else:
            self._note_pass()
        if not torch.is_grad_enabled():  # the first run of reentrant checkpointing, or one without any gradient
            return None
        inputs = as_autocast_would(call.inputs) if call.casts else call.inputs
        out = call.run(
            inputs,
            call.weight.detach() if weight is not None and call.weight is not None else call.weight,
            call.bias.detach() if bias is not None and call.bias is not None else call.bias,
        )
        parts_of, bias_rows = call.parts, call.bias_rows  # not the call: it would hold the input till the graph goes

        def seen(inputs: Tensor, grads: Tensor) -> None:
            if weight is not None:
                start = weight.rows.start
                self._record(weight.name, grads, lambda: [moved(part, start) for part in parts_of(inputs, grads)])
            if bias is not None:
                rows = bias.rows
                self._record(bias.name, grads, lambda: [Vector(bias_rows(grads), rows.start, len(rows))])

        if out.device not in self._anchors:
            self._anchors[out.device] = torch.zeros((), device=out.device, requires_grad=True)
        return hook_gradients(out, inputs.detach() if weight is not None else None, self._anchors[out.device], seen)

    def _place(self, tensor: Tensor | None) -> Place | None:
        """Which parameter a tensor is, or which of its rows; None for what is not captured or not rows of it."""
        if tensor is None or not tensor.requires_grad or not tensor.dim():
            return None
        if id(tensor) in self._names:
            return Place(self._names[id(tensor)], range(len(tensor)))
        whole = tensor._base
        if whole is None or id(whole) not in self._names or not whole.numel() or tensor.dtype != whole.dtype:
            return None
        if not whole.dim() or tensor.shape[1:] != whole.shape[1:]:
            return None
        if not tensor.is_contiguous() or not whole.is_contiguous():
            return None
        start, rest = divmod(int(tensor.storage_offset() - whole.storage_offset()), whole[0].numel())
        return None if rest else Place(self._names[id(whole)], range(start, start + len(tensor)))

    # ------------------------------------------------------------------------------------------------ backward pass

    def _backward(self, loss: Tensor, run: Callable[..., Any]) -> None:
        """`loss.backward()`."""
        losses = sum_of_losses(loss)
        if losses is None or self._muted or self._probed is not None:
            run()
            return
        if self.unproven(losses.samples):
            handle = losses.masked(losses.samples // 2)
            try:
                refused = self._probe(losses.samples, lambda: run(retain_graph=True))
            finally:
                handle.remove()
            if refused:
                raise UnsupportedParameterError(refused)
        self._samples = losses.samples
        try:
            run()
        finally:
            self._samples = None

    def unproven(self, samples: int) -> bool:
        """Whether `probe` has to be asked about the forward pass that was made, of so many samples.

        One sample needs none: all there is belongs to it. Else it is needed once a module, and wherever the number of
        samples happens to be the size of another dimension, so that sizes would not show a layout that has changed.
        """
        if samples == 1 or self._cleared:
            return False
        used = self._calls.keys() or self.parameters.keys()
        return samples in self._sizes or not used <= _proven.get(self._module, set())

    def probe(self, losses: Tensor) -> dict[str, str]:
        """Find parameters that can't be read exactly in the forward pass that was made: name -> why.

        What sizes alone don't show is whether the first dimension of a layer's input *is* the sample (where as many
        positions as samples are looked up, or the batch comes second, it may look so). So the loss of one sample is
        sent back, and no row but its own may see it. It records nothing, and takes one backward pass. `backward` does
        it by itself where it has to.

        Args:
            losses: one loss per sample, [N], as the forward pass gave them.
        """
        return self._probe(len(losses), lambda: losses[len(losses) // 2].backward(retain_graph=True))

    def _probe(self, samples: int, run: Callable[[], None]) -> dict[str, str]:
        self._refused, self._seen = {}, set()
        self._samples, self._probed = samples, samples // 2
        try:
            with set_aside_grads(self._module.parameters()):
                run()
        finally:
            self._samples = self._probed = None
        self._cleared = not self._refused
        if samples > 1:
            _proven.setdefault(self._module, set()).update(self._seen - self._refused.keys())
        return self._refused

    def _note_pass(self) -> None:
        """On the first sight of a backward pass, ask to be called at its end.

        Reentrant checkpointing runs passes inside the pass; the outermost is always seen first.
        """
        if self._task is None:
            self._task = backward_pass()
            at_its_end(self._finish)

    def _arrived(self, name: str, grad: Tensor | None) -> None:
        """Autograd's own gradient has reached a captured parameter: it was used where nothing was read."""
        if grad is not None and not self._muted:
            self._refuse(name, OUTSIDE)

    def _refuse(self, name: str, why: str) -> None:
        if self._probed is None:
            raise UnsupportedParameterError({name: why})
        self._refused.setdefault(name, why)

    def _record(self, name: str, grads: Tensor, parts: Callable[[], list[Part]]) -> None:
        """Reduce a parameter's gradient now, or hold it where other calls add to the same rows."""
        if self._muted:
            return
        if self._mode is None:
            raise EncoreError("the backward pass ran after the capture block", "run it inside the block")
        if self._samples is None:
            raise EncoreError(
                "inside capture, backward must be called on a sum of one loss per sample",
                "call losses.sum().backward()",
            )
        self._note_pass()
        if len(grads) != self._samples:
            why = f"the first dimension of its layer's input is {len(grads)}, and not the {self._samples} samples"
            self._refuse(name, why)
        elif self._probed is not None:
            self._seen.add(name)
            if grads[: self._probed].any() or grads[self._probed + 1 :].any():
                self._refuse(name, MIXED)
        else:
            for part in parts():
                self._accumulators.keep(name, part)
                if sum(place.overlaps(part) for place in self._calls.get(name, ())) == 1:
                    self._accumulators.add(name, part)
                else:
                    self._held.setdefault(name, []).append(part)

    def _finish(self) -> None:
        """The end of a backward pass: what was held is complete."""
        if self._probed is None and not self._muted:  # else the same forward pass will be gone through again
            for name, parts in self._held.items():
                whole = joined(parts)
                if whole is None:
                    self._refuse(name, "it is a matrix to one layer and a vector to another")
                for part in whole or ():
                    self._accumulators.add(name, part)
            if self._samples is not None:
                self._accumulators.end_pass(self._samples, next(iter(self._anchors)))
            self._begin_pass()
        self._task = None
