"""Batch norms folded into the convolutions in front of them, whatever class these are: what anyone deploys."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bench.pruning.graph import trace


def fold(model: nn.Module) -> nn.Module:
    """``model`` (in evaluation mode, changed in place): a batch norm that alone reads a convolution becomes part of it.

    torch.fx's own fusion sees no convolutions of other classes than torch's, as those behind channel samplers.  Raises
    :class:`bench.errors.UserError` for a network that cannot be traced.
    """
    graph, modules = trace(model), dict(model.named_modules())
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")

    def called(node: fx.Node) -> nn.Module | None:
        once = node.op == "call_module" and calls[str(node.target)] == 1
        return modules[str(node.target)] if once else None

    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or len(source.users) != 1:
            continue
        norm, conv = called(node), called(source)
        if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d):
            _put(model, str(source.target), fuse_conv_bn_eval(conv, norm))
            _put(model, str(node.target), nn.Identity())
    return model


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
