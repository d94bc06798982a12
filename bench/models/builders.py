"""The models by name.

This is a table of names only: a recipe's key holds the functions behind its own name, not this table.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


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
    "gated": Builder("bench.gating.builder", "gated"),
    "resnet18": Builder("bench.models.resnet", "resnet18"),
    "resnet50": Builder("bench.models.resnet", "resnet50"),
    "bottleneck_resnet": Builder("bench.models.resnet", "bottleneck_resnet"),
    **{
        f"cifar_resnet{depth}": Builder("bench.models.cifar_resnet", "CifarResNet", {"depth": depth})
        for depth in (20, 32, 44, 56, 110)
    },
    **{name: Builder("bench.models.ssd", name) for name in ("ssd300_vgg16", "ssd300_resnet50", "narrow_ssd")},
}
