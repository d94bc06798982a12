"""Copies of a user's network that leave it as it is, and the check that a traced network is the given one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from bench.errors import UserError
from bench.pruning.walk import run_node

# largest difference between the outputs of the traced and of the given network, relative to the largest output
TOLERANCE = 1e-4


def copied(model: nn.Module, shared: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy of ``model`` with its hooks, flags and modes; ``shared`` (by id) is used as it is, not copied.

    Weights that a hook or a parametrisation computes (weight norm, masks) are tensors that PyTorch refuses to copy;
    they are copied by value, and computed anew at the copy's next call.
    """
    memo: dict[int, Any] = dict(shared or {})
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # copying runs the user's own code
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise UserError(
            f"{type(model).__name__} cannot be copied ({reason}): give a network that copy.deepcopy takes"
        ) from error


@torch.no_grad()
def run_graph(model: nn.Module, graph: fx.Graph, images: Tensor) -> Any:
    """The outputs of the traced network for ``images`` (N x C x H x W)."""
    values: dict[fx.Node, Any] = {}
    left = {node: len(node.users) for node in graph.nodes}
    result = None
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = images if not values else (node.args[0] if node.args else None)
            continue
        if node.op == "output":
            result = fx.node.map_arg(node.args[0], values.__getitem__)
            continue
        values[node] = run_node(model, node, values)
        for source in node.all_input_nodes:
            left[source] -= 1
            if not left[source] and source.op != "placeholder":
                del values[source]
    return result


@torch.no_grad()
def check_traced(model: nn.Module, graph: fx.Graph, images: Tensor) -> float:
    """The largest difference between the outputs of ``graph`` and of ``model`` itself, relative to the largest output.

    ``model`` is in evaluation mode.  Raises :class:`UserError` where it passes :data:`TOLERANCE`: what follows would
    measure and prune another network than the one given.
    """
    given = [leaf for leaf in pytree.tree_leaves(model(images.clone())) if isinstance(leaf, Tensor)]
    traced = [leaf for leaf in pytree.tree_leaves(run_graph(model, graph, images.clone())) if isinstance(leaf, Tensor)]
    if [leaf.shape for leaf in given] != [leaf.shape for leaf in traced]:
        raise UserError(
            f"traced by torch.fx, {type(model).__name__} gives outputs of other shapes: it cannot be pruned"
        )
    largest = 0.0
    for ours, theirs in zip(traced, given, strict=True):
        if ours.numel() and ours.is_floating_point():
            scale = max(float(theirs.abs().max()), torch.finfo(theirs.dtype).tiny)
            largest = max(largest, float((ours - theirs).abs().max()) / scale)
    if largest > TOLERANCE:
        raise UserError(
            f"traced by torch.fx, {type(model).__name__} computes something else: on {len(images)} images its outputs "
            f"differ by {largest:.2g} of the largest (more than {TOLERANCE:g}), so it cannot be pruned"
        )
    return largest
