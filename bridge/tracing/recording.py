"""Records what a module runs: every matrix product of a forward and a backward pass, with its module, weight and pass.

Modules have no hooks inside the backward pass.  Autograd numbers the operations of the forward pass instead, and each backward
operation has the number of the forward operation it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from bridge.flops.terms import Context, Pass
from bridge.tracing.flex import flex_as_products
from bridge.tracing.kernels import QUESTIONS, MatrixProduct, products_of


@dataclass
class Op:
    """One matrix product that ran.

    Attributes:
        name: ``matmul``, ``convolution``, ``query_key``, ``scores_value``.
        path: the module.
        dims: the reduced dimension, the produced one, and the others.
        passes: FORWARD, RECOMPUTE, DGRAD or WGRAD.
        weight: the parameter or buffer that it reads, empty for two activations.
        forward: index of the forward operation that a backward one belongs to; None if it is no recorded product.
        context: which keys a query sees; None if that could not be read.
        depthwise: a convolution that does not mix channels.
    """

    name: str
    path: str
    dims: tuple[int, ...]
    passes: Pass
    weight: str = ""
    forward: int | None = None
    context: Context | None = None
    depthwise: bool = False


class Recorder(TorchDispatchMode):
    """Records the matrix products that run inside ``with recorder.on()``.

    Args:
        model: the module whose submodules give operations their paths.
        weights: parameters and buffers by name.
        computes: whether small tensors that no weight flows into (token ids, masks, positions, sizes of images) have data.

    Attributes:
        ops: the operations in the order in which they ran.
        context: the context of the attention function that is running; None outside of one.
        needed: paths of the modules with an input that needs a gradient.
    """

    def __init__(self, model: torch.nn.Module, weights: Mapping[str, torch.Tensor], *, computes: bool = False):
        super().__init__()
        self.ops: list[Op] = []
        self.needed: set[str] = set()
        self._computes = computes
        self.context: Context | None = None
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = []
        self._numbers: dict[int, list[int]] = {}
        self._repeated: dict[tuple[Any, ...], int] = {}
        # Storage -> weight. The tensors are kept: a storage that was freed would lend its address to another one.
        self._weights = {_storage(tensor): name for name, tensor in weights.items()}
        self._kept: list[Any] = list(weights.values())

    @contextmanager
    def seeing(self, context: Context | None) -> Iterator[None]:
        """Around an attention function: sets its context, which keys its queries see."""
        before, self.context = self.context, context
        try:
            yield
        finally:
            self.context = before

    @contextmanager
    def on(self) -> Iterator[None]:
        """Record what runs in this block."""
        module = torch.nn.modules.module
        before = module.register_module_forward_pre_hook(self._enter_module)
        after = module.register_module_forward_hook(self._leave_module, always_call=True)
        try:
            with flex_as_products(self), self:
                yield
        finally:
            before.remove()
            after.remove()

    def _enter_module(self, module: torch.nn.Module, inputs: Any) -> None:
        name = self._names.get(id(module), self.path)
        self._stack.append(name)
        if any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs):
            self.needed.add(name)

    def _leave_module(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if self._stack:
            self._stack.pop()

    @property
    def path(self) -> str:
        """Path of the module that is running."""
        return self._stack[-1] if self._stack else ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in QUESTIONS:
            return NotImplemented
        packet = func._overloadpacket
        products = products_of(packet)
        if self._computes and products is None and self._has_data(func, args, kwargs):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if packet in _INDEXING:
            args = (args[0], _places(args[1]), *args[2:])
        if packet is torch.ops.aten._local_scalar_dense:
            return args[0].dtype is torch.bool or 1
        if products is None and func is not torch.ops.prim.device.default:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        out = func(*args, **kwargs)
        if products is not None:
            self._record(list(products(args, out)), masked=kwargs.get("attn_mask") is not None)
        self._spread(packet, args, kwargs, out)
        return out

    def _has_data(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether an operation can be computed: its inputs are small and have data, or it has none and makes a few integers."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if tensors:
            known = all(type(tensor) is torch.Tensor and tensor.is_cpu and not tensor.requires_grad for tensor in tensors)
            return known and sum(tensor.numel() for tensor in tensors) <= _LITTLE
        if torch.device(kwargs.get("device") or "cpu").type != "cpu":
            return False
        made = func(*args, **kwargs)
        return isinstance(made, torch.Tensor) and not made.is_floating_point() and made.numel() <= _LITTLE

    # ---- weights ---------------------------------------------------------------------------------

    def _spread(self, packet: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Count as weights what is computed from weights alone, and matrices selected from a stack of weights (experts)."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        names = [self._weight(tensor) for tensor in tensors]
        chosen = packet in _CHOOSING and tensors[0].dim() > 2
        if tensors and (all(names) or (chosen and names[0])):
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    self._weights.setdefault(_storage(leaf), names[0])
                    self._kept.append(leaf)

    def _weight(self, tensor: torch.Tensor) -> str:
        return self._weights.get(_storage(tensor), "")

    # ---- operations ------------------------------------------------------------------------------

    def _record(self, work: list[MatrixProduct], masked: bool = False) -> None:
        backward = torch._C._current_graph_task_id() != -1
        again = backward and torch.is_grad_enabled()  # checkpointing turns gradients on inside the backward pass
        if not backward or again:
            self._record_forward(work, Pass.RECOMPUTE if again else Pass.FORWARD, masked)
        else:
            self._record_backward(work)

    def _record_forward(self, work: list[MatrixProduct], passes: Pass, masked: bool) -> None:
        first = len(self.ops)
        for one in work:
            weight = next(filter(None, map(self._weight, reversed(one.operands))), "")
            context = one.sees if one.sees is not None and not masked else self.context
            op = Op(one.name, self.path, one.dims, passes, weight, None, context, one.depthwise)
            if passes is Pass.RECOMPUTE:
                op.forward = self._original(op)
            self.ops.append(op)
        # An operation without its own node repeats the number of the one before: the first one is meant.
        self._numbers.setdefault(torch.autograd._get_sequence_nr() - 1, list(range(first, len(self.ops))))

    def _original(self, again: Op) -> int | None:
        """Index of the forward operation that runs again: those of one module do so in their order."""
        key = again.path, again.name, again.weight, again.dims
        after = self._repeated.get(key, -1)
        for i, op in enumerate(self.ops):
            if i > after and op.passes is Pass.FORWARD and (op.path, op.name, op.weight, op.dims) == key:
                self._repeated[key] = i
                return i
        return None

    def _record_backward(self, work: list[MatrixProduct]) -> None:
        node = torch._C._current_autograd_node()
        known = self._numbers.get(node._sequence_nr(), []) if node is not None else []
        for one in work:
            index = next((i for i in known if self.ops[i].name == one.name), None)
            op = Op(one.name, self.ops[-1].path if self.ops else "", one.dims, one.passes)
            if index is not None:
                forward = self.ops[index]
                op.path, op.weight, op.forward = forward.path, forward.weight, index
                if forward.passes is Pass.RECOMPUTE:  # the reentrant checkpoint: the graph is that of the second run
                    op.forward = forward.forward
            if op.passes is Pass.NONE:
                op.passes = self._gradient(op, one)
            self.ops.append(op)

    def _gradient(self, op: Op, one: MatrixProduct) -> Pass:
        """DGRAD or WGRAD: the gradient of the activations is the product that reads the weight."""
        if op.weight:
            return Pass.DGRAD if any(map(self._weight, one.operands)) else Pass.WGRAD
        taken = any(other.forward == op.forward and other.passes is Pass.DGRAD for other in self.ops[-8:])
        return Pass.WGRAD if taken and op.forward is not None else Pass.DGRAD


#: The most elements of a tensor that is computed with real data.
_LITTLE = 2**20

_INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}
_CHOOSING = {torch.ops.aten.index, torch.ops.aten.index_select, torch.ops.aten.gather, torch.ops.aten.embedding}


def _places(indices: Any) -> list[Any]:
    """Boolean masks that have data as indices, so that the number of selected elements is known."""
    result = []
    for index in indices:
        if type(index) is torch.Tensor and index.dtype is torch.bool and index.is_cpu:
            with _disable_current_modes():
                result += index.nonzero(as_tuple=True)
        else:
            result.append(index)
    return result


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
