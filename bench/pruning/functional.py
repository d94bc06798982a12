"""In-place operations of a torch.fx graph, made explicit: whoever reads a tensor later reads its new value.

torch.fx records ``t.relu_()`` and ``y += x`` as calls like any other, and their effect on the tensor's later readers is
lost.  Here every such call becomes its out-of-place form and the later readers of the same tensor get its result.  What
shares memory in a way that cannot be followed (a view whose base is changed, or the reverse) is refused where it is
read.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bench.errors import UserError

_NAMES = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
_OPERATORS = {getattr(operator, f"i{name}"): getattr(operator, name) for name in _NAMES}
# in evaluation mode these give back the very tensor that they got
_SAME_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_SAME = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "detach", "requires_grad_"}
# these may share memory with what they got, in whole or in part
_VIEW_MODULES = (nn.Flatten, nn.Unflatten)
# fmt: off
_VIEWS = {
    "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "getitem", "getattr", "transpose",
    "swapaxes", "swapdims", "movedim", "moveaxis", "permute", "t", "adjoint", "chunk", "split", "tensor_split",
    "split_with_sizes", "unbind", "squeeze", "unsqueeze", "expand", "expand_as", "broadcast_to", "narrow", "select",
    "unfold", "diagonal", "as_strided", "contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16",
    "cpu", "cuda", "real", "imag", "atleast_2d", "atleast_3d",
}
# fmt: on
_NUMBERS = ("shape", "ndim", "dtype", "device", "size", "dim", "numel", "len", "is_contiguous", "stride")


class InPlaceProxy(fx.Proxy):  # type: ignore[misc]
    """A traced value that records ``y += x`` as such; torch.fx's own would record ``y + x``, a new tensor."""


def _recorder(function: Callable[..., Any]) -> Callable[[InPlaceProxy, Any], Any]:
    def record(self: InPlaceProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _operation in _NAMES:
    setattr(InPlaceProxy, f"__i{_operation}__", _recorder(getattr(operator, f"i{_operation}")))


@dataclass(eq=False)
class _Memory:
    """One tensor's memory: the node that holds its latest value, and how often it has changed."""

    current: fx.Node
    family: list[_Memory] = field(default_factory=list)
    changes: int = 0
    lost: fx.Node | None = None  # the operation that has changed it through another view


def functionalise(model: nn.Module, graph: fx.Graph) -> None:
    """Rewrites ``graph`` (a trace of ``model`` in evaluation mode) so that no node changes another's value.

    Modules with an ``inplace`` flag stay, and have to be run :func:`out_of_place`.  Raises :class:`UserError` for what
    cannot be followed.
    """
    memory: dict[fx.Node, _Memory] = {}
    born: dict[fx.Node, int] = {}  # the memory's changes when the node was made
    numbers: set[fx.Node] = set()

    def read(node: fx.Node) -> fx.Node:
        found = memory.get(node)
        if found is None:
            return node
        if found.lost is not None:
            raise UserError(
                f"the network changes a tensor in place through a view of it ({found.lost.format_node()}) and reads "
                f"{node.name} afterwards: write that operation out of place"
            )
        return node if found.changes == born[node] else found.current

    for node in graph.nodes:
        changed = _first(node) if _is_in_place(model, node) and _first(node) not in numbers else None
        node.args, node.kwargs = fx.node.map_arg(node.args, read), fx.node.map_arg(node.kwargs, read)
        inputs = node.all_input_nodes
        if _is_number(node, numbers):
            numbers.add(node)
        if changed is not None:
            _make_out_of_place(node)
            own = memory.get(changed)
            if own is None or changed.op == "get_attr":
                raise UserError(
                    f"the network changes its own state in place ({node.name}): leave that out of forward()"
                )
            own.current, own.changes = node, own.changes + 1
            for other in own.family:
                if other is not own:
                    other.lost = node
            memory[node] = own
        elif node in numbers:
            _make_out_of_place(node)
            continue
        elif inputs and _gives_back(model, node) and inputs[0] in memory:
            memory[node] = memory[inputs[0]]
        else:
            memory[node] = _Memory(node)
            shared = memory.get(inputs[0]) if inputs and _is_view(model, node) else None
            memory[node].family = [] if shared is None else shared.family
            memory[node].family.append(memory[node])
        born[node] = memory[node].changes
    graph.lint()


def out_of_place(module: nn.Module) -> nn.Module:
    """``module``, or where it works in place a copy (of the same parameters) that does not."""
    if not getattr(module, "inplace", False):
        return module
    twin = copy.copy(module)
    twin.inplace = False  # type: ignore[assignment]
    return twin


def _name(node: fx.Node) -> str:
    """The function's or method's plain name, "" for a module."""
    if node.op == "call_method":
        return str(node.target)
    return str(getattr(node.target, "__name__", "")) if node.op == "call_function" else ""


def _first(node: fx.Node) -> Any:
    """What an operation works on: its first argument."""
    return node.args[0] if node.args else next(iter(node.kwargs.values()), None)


def _ends_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and name not in ("requires_grad_", "detach_")


def _is_in_place(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_function" and (node.target in _OPERATORS or node.target is operator.setitem):
        return True
    if node.kwargs.get("out") is not None:
        raise UserError(f"the network writes into a tensor ({node.name}, out=...): write that operation out of place")
    return _ends_in_place(_name(node)) or _inplace_argument(node) is not None


def _inplace_argument(node: fx.Node) -> str | int | None:
    """Where a function's true ``inplace`` argument stands: its keyword or its place."""
    if node.op != "call_function":
        return None
    if node.kwargs.get("inplace"):
        return "inplace"
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # built-in functions have none
        return None
    place = names.index("inplace") if "inplace" in names else len(node.args)
    return place if place < len(node.args) and node.args[place] else None


def _make_out_of_place(node: fx.Node) -> None:
    """The node as its out-of-place form.  Raises :class:`UserError` where there is none."""
    place = _inplace_argument(node)
    if node.op == "call_module":
        return
    if isinstance(place, str):
        node.kwargs = {**node.kwargs, place: False}
    elif place is not None:
        node.args = (*node.args[:place], False, *node.args[place + 1 :])
    elif node.op == "call_function" and node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
    elif _ends_in_place(_name(node)):
        name = _name(node)[:-1]
        twins = (
            [getattr(Tensor, name, None)]
            if node.op == "call_method"
            else [getattr(torch, name, None), getattr(F, name, None)]
        )
        twin = next((twin for twin in twins if twin is not None), None)
        if twin is None:
            raise UserError(f"the network changes a tensor in place by {name}_ ({node.name}): write that out of place")
        node.target = name if node.op == "call_method" else twin
    elif node.target is operator.setitem:
        raise UserError(f"the network assigns to a part of a tensor ({node.name}): write that operation out of place")


def _is_number(node: fx.Node, numbers: set[fx.Node]) -> bool:
    """Whether a node gives sizes and other plain values, which are copied and not changed in place."""
    name = _name(node)
    if name == "getattr":
        return node.args[1] in _NUMBERS
    if name in _NUMBERS and node.op != "call_module":
        return True
    inputs = node.all_input_nodes
    return (
        node.op == "call_function"
        and bool(inputs)
        and all(source in numbers for source in inputs)
        and (getattr(node.target, "__module__", "") in ("_operator", "builtins", "math"))
    )


def _gives_back(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), _SAME_MODULES)
    return _name(node).removesuffix("_") in _SAME or _name(node) in _SAME


def _is_view(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), _VIEW_MODULES)
    return _name(node).removesuffix("_") in _VIEWS
