"""Per-sample gradients of a whole model from one forward and one backward pass, reduced as they arise.

Inside `capture`, each use of a parameter by a layer that `encore.curvature.calls` can read is computed with the
parameter detached, and its output goes through an identity whose backward sees the layer's input and output gradient:
all that the per-sample gradients are made of. Autograd never forms the batch's weight gradients; the reductions take
their place. And since nothing arrives at a parameter by way of these layers, a gradient that does arrive there shows a
use of some other kind: that is how a parameter that can't be read exactly is found out, every time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from encore.curvature.calls import READERS, Call
from encore.curvature.parts import Part, Vector, joined, moved
from encore.errors import EncoreError

OUTSIDE = "it is used outside the layers that per-sample gradients can be read from"


class UnsupportedParameterError(EncoreError):
    """Parameters whose per-sample gradients can't be read exactly.

    Args:
        reasons: name -> why.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = dict(reasons)
        named = "; ".join(f"{name}: {why}" for name, why in self.reasons.items())
        super().__init__(
            f"no exact per-sample gradient of {named}",
            "leave it out with skip=, freeze it, or use encore.curvature.fisher, which loops over the samples for it",
        )


class capture:
    """What is asked for of the per-sample gradients g_n of a module's trainable parameters.

    Samples are the first dimension of every layer's input, and the loss is a sum of one loss a sample. Inside the
    block, run one forward and one backward pass, or several such pairs: sums add up, samples are strung together.
    `.grad` and `requires_grad` stay as they are.

    Args:
        module: frozen parameters are left alone.
        fisher: Σ_n g_n∘g_n; or tensors by parameter name, float32 or float64, that it is added to in place.
        norms: ‖g_n‖² over all captured parameters.
        directions: M mappings name -> tensor of the parameter's shape; ⟨g_n, V_m⟩. A name that is missing counts as 0.
        total: Σ_n g_n, what `.grad` would be.
        keep: hold on to inputs and output gradients, for `weighted_sum`; takes their memory until the block is left to
            the garbage collector.
        skip: names of parameters to leave to autograd, which fills their `.grad`.

    Raises:
        UnsupportedParameterError: during backward, where a parameter was used in a way that can't be read exactly.
        EncoreError: the results are asked for before a backward pass has come to its end.
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
        self._module = module
        self._names = {id(weight): name for name, weight in self.parameters.items()}
        self._wanted_fisher, self._wanted_total, self._norms = fisher is not False, total, norms
        self._directions = _stacked(directions, self.parameters) if directions is not None else None
        self._count_directions = len(directions) if directions is not None else 0
        self._fisher: dict[str, Tensor] = {} if isinstance(fisher, bool) else dict(fisher)
        self._total: dict[str, Tensor] = {}
        self._sq_norms: list[Tensor] = []
        self._dots: list[Tensor] = []
        self._kept: list[list[tuple[str, Part]]] | None = [] if keep else None
        self._samples: list[int] = []
        self._mode = _Intercept(self)
        self._handles: list[Any] = []
        self._anchors: dict[torch.device, Tensor] = {}
        self._recomputing: list[bool] = []
        self._probed: int | None = None
        self._muted = False
        self._open = False
        self._task: int | None = None
        self._refused: dict[str, str] = {}
        self._begin_pass()

    def _begin_pass(self) -> None:
        self._calls: dict[str, list[range]] = {}
        self._held: dict[str, list[Part]] = {}
        self._parts: list[tuple[str, Part]] = []
        self._count: int | None = None
        self._pass_norms: Tensor | None = None
        self._pass_dots: Tensor | None = None

    # ---------------------------------------------------------------------------------------------------- the block

    def __enter__(self) -> capture:
        self._open = True
        for name, weight in self.parameters.items():
            self._handles.append(weight.register_hook(lambda grad, name=name: self._arrived(name, grad)))
        for part in self._module.modules():
            self._handles.append(part.register_forward_pre_hook(self._enter_recomputation))
            self._handles.append(part.register_forward_hook(self._leave_recomputation, always_call=True))
        self._mode.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._mode.__exit__(kind, *rest)
        self._open = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if kind is None:
            self._check_complete()

    def _enter_recomputation(self, *_: object) -> None:
        """Autograd switches modes off: a module that checkpointing runs again in backward needs ours back."""
        if _task() != -1:
            self._recomputing.append(self._mode.enter_again())

    def _leave_recomputation(self, *_: object) -> None:
        if _task() != -1 and self._recomputing and self._recomputing.pop():
            self._mode.__exit__(None, None, None)

    def probe(self, losses: Tensor) -> dict[str, str]:
        """Find parameters that this forward pass can't be read exactly for: name -> why.

        What sizes alone don't show is whether the first dimension of a layer's input *is* the sample (where as many
        positions as samples are looked up, or the batch comes second, it may look so). So the loss of one sample is
        sent back, and no row but its own may see it. Call it in the block before `backward`; it records nothing, and
        takes one backward pass.

        Args:
            losses: one loss a sample, [N], as the forward pass gave them.
        """
        self._refused = {}
        self._probed, self._mode.losses = len(losses) // 2, len(losses)
        try:
            with set_aside_grads(self._module.parameters()):
                losses[self._probed].backward(retain_graph=True)
        finally:
            self._probed = self._mode.losses = None
        return self._refused

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Backward passes in here are not recorded."""
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

    # ------------------------------------------------------------------------------------------------------ results

    @property
    def fisher(self) -> dict[str, Tensor]:
        """Σ_n g_n∘g_n a parameter, float32 (float64 for one of that type); added up over the block's passes."""
        return self._sums(self._fisher, self._wanted_fisher, "fisher")

    @property
    def total(self) -> dict[str, Tensor]:
        """Σ_n g_n a parameter, in the same types."""
        return self._sums(self._total, self._wanted_total, "total")

    @property
    def sq_norms(self) -> Tensor:
        """‖g_n‖² over all captured parameters, [N]."""
        self._check(self._norms, "norms")
        return torch.cat(self._sq_norms)

    @property
    def dots(self) -> Tensor:
        """⟨g_n, V_m⟩ over all captured parameters, [N, M]."""
        self._check(self._directions is not None, "directions")
        return torch.cat(self._dots)

    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """Σ_n w_n g_n a parameter, for weights [N], from what `keep=True` has kept; no second backward."""
        self._check(self._kept is not None, "keep")
        assert self._kept is not None
        if weights.shape != (sum(self._samples),):
            raise ValueError(f"weights [{sum(self._samples)}] are needed, not {list(weights.shape)}")
        sums: dict[str, Tensor] = {}
        for parts, own in zip(self._kept, weights.split(self._samples), strict=True):
            for name, part in parts:
                part.add_weighted_(self._slice(self._buffer(sums, name), part), own)
        return {name: self._buffer(sums, name) for name in self.parameters}

    def _sums(self, buffers: dict[str, Tensor], wanted: bool, name: str) -> dict[str, Tensor]:
        self._check(wanted, name)
        return {name: self._buffer(buffers, name) for name in self.parameters}

    def _check(self, wanted: bool, name: str) -> None:
        if not wanted:
            raise AttributeError(f"{name} was not asked for: capture(..., {name}=...)")
        self._check_complete()

    def _check_complete(self) -> None:
        if self._task is not None:
            raise EncoreError("a backward pass inside capture did not come to its end", "start a new block")

    # ------------------------------------------------------------------------------------------------- forward pass

    def intercept(self, call: Call) -> Tensor | None:
        """Run a layer so that backward shows its input and output gradient; None where it holds nothing captured."""
        weight, bias = self._place(call.weight), self._place(call.bias)
        if weight is None and bias is None:
            return None
        if _task() == -1:  # a recomputation under checkpointing is no further call
            self._check_complete()
            for place in (weight, bias):
                if place is not None:
                    self._calls.setdefault(place[0], []).append(place[1])
        else:
            self._note_task()
        if not torch.is_grad_enabled():  # checkpointing's first run, or no training at all
            return None
        inputs = _as_autocast_would(call.inputs) if call.casts else call.inputs
        out = call.run(
            inputs,
            call.weight.detach() if weight is not None and call.weight is not None else call.weight,
            call.bias.detach() if bias is not None and call.bias is not None else call.bias,
        )

        def record(inputs: Tensor, grads: Tensor) -> None:
            if weight is not None:
                name, rows = weight
                self._record(name, grads, lambda: [moved(part, rows.start) for part in call.parts(inputs, grads)])
            if bias is not None:
                name, rows = bias
                self._record(name, grads, lambda: [Vector(call.bias_rows(grads), rows.start, len(rows))])

        anchor = self._anchors.get(out.device)
        if anchor is None:
            anchor = self._anchors[out.device] = torch.zeros((), device=out.device, requires_grad=True)
        return _Tap.apply(out, anchor, inputs.detach() if weight is not None else None, self, record)

    def _place(self, tensor: Tensor | None) -> tuple[str, range] | None:
        """Which parameter a tensor is, or which of its rows; None for what is not captured or not rows of it."""
        if tensor is None or not tensor.requires_grad:
            return None
        name = self._names.get(id(tensor))
        if name is not None:
            return (name, range(len(tensor))) if tensor.dim() else None
        whole = tensor._base
        name = self._names.get(id(whole))
        if whole is None or name is None or not whole.dim() or tensor.dtype != whole.dtype:
            return None
        row = whole[0].numel() if len(whole) else 0
        same_rows = tensor.shape[1:] == whole.shape[1:] and tensor.is_contiguous() and whole.is_contiguous()
        if not same_rows or not tensor.dim() or not row:
            return None
        start, rest = divmod(int(tensor.storage_offset() - whole.storage_offset()), row)
        return None if rest else (name, range(start, start + len(tensor)))

    # ------------------------------------------------------------------------------------------------ backward pass

    def receive(self, inputs: Tensor, grads: Tensor, record: Callable[[Tensor, Tensor], None]) -> None:
        """What a tap saw."""
        if self._muted:
            return
        if not self._open:
            raise EncoreError("the backward pass ran after the capture block", "run it inside the block")
        self._note_task()
        with torch.autocast(grads.device.type, enabled=False):
            record(inputs, grads)

    def _note_task(self) -> None:
        """On the first sight of a backward pass, ask to be called at its end.

        Checkpointing with reentrant autograd runs passes inside the pass; the outermost is always seen first.
        """
        if self._task is None:
            self._task = _task()
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)  # type: ignore[attr-defined]

    def _arrived(self, name: str, grad: Tensor | None) -> None:
        """Autograd's own gradient has reached a captured parameter: it was used where nothing was read."""
        if grad is not None and not self._muted:
            self._refuse(name, OUTSIDE)

    def _refuse(self, name: str, why: str) -> None:
        if self._probed is None:
            raise UnsupportedParameterError({name: why})
        self._refused.setdefault(name, why)

    def _record(self, name: str, grads: Tensor, make: Callable[[], list[Part]]) -> None:
        """Reduce the parts of a parameter's gradient now, or hold them where other calls add to the same rows."""
        count = len(grads)
        expected = self._count if self._mode.losses is None else self._mode.losses
        if expected is not None and count != expected:
            why = f"the first dimension of its layer's input is {count}, and not the {expected} samples"
            return self._refuse(name, why)
        self._count = count
        if self._probed is not None:
            if grads[: self._probed].any() or grads[self._probed + 1 :].any():
                self._refuse(name, "its layer's input does not keep the samples apart along the first dimension")
            return None
        for part in make():
            if self._kept is not None:
                self._parts.append((name, part))
            rows = range(part.start, part.start + part.rows)
            if sum(_overlap(rows, other) for other in self._calls.get(name, ())) == 1:
                self._reduce(name, part)
            else:
                self._held.setdefault(name, []).append(part)
        return None

    def _reduce(self, name: str, part: Part) -> None:
        fisher = self._slice(self._buffer(self._fisher, name), part) if self._wanted_fisher else None
        total = self._slice(self._buffer(self._total, name), part) if self._wanted_total else None
        directions = self._directions.get(name) if self._directions is not None else None
        if directions is not None:
            directions = directions[:, part.start : part.start + part.rows]
        if fisher is None and total is None and directions is None and not self._norms:
            return
        norms, dots = part.reduce_(fisher=fisher, total=total, directions=directions, norms=self._norms)
        if self._norms:
            self._pass_norms = norms if self._pass_norms is None else self._pass_norms + norms.to(self._pass_norms)
        if directions is not None:
            self._pass_dots = dots if self._pass_dots is None else self._pass_dots + dots.to(self._pass_dots)

    def _finish(self) -> None:
        """The end of a backward pass: what was held is complete."""
        count = self._count
        self._task = None
        if self._probed is not None or self._muted:
            return  # the same forward pass will be gone through again
        if count is not None:
            for name, parts in self._held.items():
                whole = joined(parts)
                if whole is None:
                    self._refuse(name, "it is a matrix to one layer and a vector to another")
                for part in whole or ():
                    self._reduce(name, part)
            device = next(iter(self._anchors))
            if self._norms:
                norms = self._pass_norms
                self._sq_norms.append(torch.zeros(count, device=device) if norms is None else norms)
            if self._directions is not None:
                dots = self._pass_dots
                empty = torch.zeros(count, self._count_directions, device=device)
                self._dots.append(empty if dots is None else dots)
            if self._kept is not None:
                self._kept.append(self._parts)
            self._samples.append(count)
        self._begin_pass()

    def _buffer(self, buffers: dict[str, Tensor], name: str) -> Tensor:
        if name not in buffers:
            weight = self.parameters[name]
            kind = torch.promote_types(weight.dtype, torch.float32)
            buffers[name] = torch.zeros(weight.shape, dtype=kind, device=weight.device)
        return buffers[name]

    def _slice(self, buffer: Tensor, part: Part) -> Tensor:
        """A part's rows of a buffer, as [rows, columns]."""
        return buffer.view(len(buffer), -1)[part.start : part.start + part.rows]


class _Intercept(TorchFunctionMode):
    """Hands layer calls to a capture, and reads from `loss.backward()` how many losses went into the sum."""

    def __init__(self, owner: capture) -> None:
        super().__init__()
        self.owner = owner
        self.losses: int | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        reader = READERS.get(func)
        if reader is not None:
            call = reader(*args, **kwargs)
            out = self.owner.intercept(call) if call is not None else None
            return func(*args, **kwargs) if out is None else out
        if func is Tensor.backward and self.losses is None:
            self.losses = _summed(args[0])
            try:
                return func(*args, **kwargs)
            finally:
                self.losses = None
        return func(*args, **kwargs)

    def enter_again(self) -> bool:
        """Become active where autograd has switched modes off; whether that was needed."""
        if self in _get_current_function_mode_stack():
            return False
        self.__enter__()
        return True


class _Tap(torch.autograd.Function):
    """The identity, whose backward shows a layer's input and output gradient.

    It returns an alias and not a view, so that the output may be changed in place. The anchor makes it fire also where
    nothing before it needs a gradient; it is saved to be one tensor more than autograd's own layer saves: a checkpoint
    that were recomputed without taps would then miss tensors, and fail.
    """

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, anchor: Tensor, inputs: Tensor | None, owner: capture, record: Callable[..., None]
    ) -> Tensor:
        ctx.save_for_backward(inputs, anchor)
        ctx.owner, ctx.record = owner, record
        ctx.set_materialize_grads(False)
        return out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor | None) -> tuple[Tensor | None, None, None, None, None]:
        if grads is not None:
            ctx.owner.receive(ctx.saved_tensors[0], grads, ctx.record)
        return grads, None, None, None, None


@contextmanager
def set_aside_grads(weights: Iterable[Tensor]) -> Iterator[None]:
    """In here every `.grad` is None at first; afterwards it is what it was before."""
    kept = [(weight, weight.grad) for weight in weights]
    for weight, _ in kept:
        weight.grad = None
    try:
        yield
    finally:
        for weight, grad in kept:
            weight.grad = grad


def _task() -> int:
    """The id of the backward pass that this code runs in, -1 outside of any."""
    return int(torch._C._current_graph_task_id())


def _summed(loss: Tensor) -> int | None:
    """How many losses a scalar is the (weighted) sum or mean of; None where its graph does not begin like that."""
    node = loss.grad_fn
    while node is not None and node.name() in ("MulBackward0", "DivBackward0", "NegBackward0"):
        node = node.next_functions[0][0]
    if node is None or node.name() not in ("SumBackward0", "SumBackward1", "MeanBackward0", "MeanBackward1"):
        return None
    sizes: Sequence[int] = node._saved_self_sym_sizes  # type: ignore[attr-defined]
    return int(sizes[0]) if len(sizes) == 1 else None


def _overlap(rows: range, other: range) -> bool:
    return max(rows.start, other.start) < min(rows.stop, other.stop)


def _stacked(directions: Sequence[Mapping[str, Tensor]], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Directions a parameter, [M, rows, columns]; none for a parameter that none of them moves."""
    unknown = {name for direction in directions for name in direction} - set(parameters)
    if unknown:
        raise ValueError(f"directions for {sorted(unknown)}, which are not captured")
    stacked = {
        name: torch.stack([d[name].detach() if name in d else torch.zeros_like(weight) for d in directions])
        for name, weight in parameters.items()
        if any(name in direction for direction in directions)
    }
    return {name: stack.flatten(2) if stack.dim() > 2 else stack[..., None] for name, stack in stacked.items()}


def _as_autocast_would(inputs: Tensor) -> Tensor:
    """Cast an input as autocast would: what is saved for the gradient is then what a plain step saves."""
    kind = inputs.device.type
    if torch.is_autocast_enabled(kind) and inputs.is_floating_point() and inputs.dtype != torch.float64:
        return inputs.to(torch.get_autocast_dtype(kind))
    return inputs
