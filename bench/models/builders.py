"""The models, and the edits that recipes make to them, by name.

These are tables of names only: a recipe's key holds what is behind its own names, not these tables.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

from bench.errors import UserError


@dataclass(frozen=True)
class Builder:
    """A function of a module of ours that builds a network, imported when it is first called.

    Only its own recipes depend on it: what follows imports to find what code made a number does not see it.
    """

    module: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, **arguments: Any) -> nn.Module:
        """The network."""
        build = getattr(importlib.import_module(self.module), self.name)
        return build(**self.arguments, **arguments)  # type: ignore[no-any-return]


BUILDERS: dict[str, Builder] = {
    "vgg16": Builder("bench.models.vgg", "vgg16"),
    "vgg16_bn": Builder("bench.models.vgg", "vgg16_bn"),
    "mcifarnet": Builder("bench.models.mcifarnet", "mcifarnet"),
    "resnet18": Builder("bench.models.resnet", "resnet18"),
    "resnet50": Builder("bench.models.resnet", "resnet50"),
    "bottleneck_resnet": Builder("bench.models.resnet", "bottleneck_resnet"),
    **{
        f"cifar_resnet{depth}": Builder("bench.models.cifar_resnet", "CifarResNet", {"depth": depth})
        for depth in (20, 32, 44, 56, 110)
    },
    **{name: Builder("bench.models.ssd", name) for name in ("ssd300_vgg16", "ssd300_resnet50", "narrow_ssd")},
}

# an edit's kind to the class that makes it; an edit that is not here has MODULE:CLASS for a kind
EDITS: dict[str, str] = {
    "remove": "bench.models.edits:Remove",
    "sample": "bench.models.edits:Sample",
    "bias": "bench.models.edits:Bias",
    "replace head": "bench.models.edits:ReplaceHead",
    "new outputs": "bench.models.edits:NewOutputs",
    "gate": "bench.gating.edit:Gate",
}


def find(name: str, what: str) -> Any:
    """What stands under ``MODULE:NAME``, or None where the module has nothing of this name.

    Raises :class:`UserError`, which calls it a ``what``, where the module cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot import {module!r} of {what} {name!r}: {error}") from error
