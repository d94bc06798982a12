"""The edits that make a network's convolutions versatile, with fixed secondary filters or with learned masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from bench.errors import UserError
from bench.models.edits import Edit
from bench.models.initial import initialise
from bench.models.recipe import Recipe
from bench.pruning.surgery import replace_module
from bench.versatile.layer import PAPER, Options, VersatileConv2d
from bench.versatile.learned import NESTED_AS_MANY, LearnedConv2d, Masks


@dataclass(frozen=True)
class Versatile(Edit):
    """Every convolution with more than one secondary filter, but those ``skipped``, becomes versatile.

    ``options`` may be given by the names of its fields.  ``linears`` names fully connected layers that read a flattened
    map, with the side of the map: they are convolutions of that size (VGG's and AlexNet's first).
    """

    kind = "versatile"
    options: Options = PAPER
    skipped: Sequence[str] = ()
    linears: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.options, Options):
            object.__setattr__(self, "options", Options(**(self.options or {})))
        object.__setattr__(self, "skipped", tuple(sorted(self.skipped)))
        object.__setattr__(self, "linears", dict(self.linears))

    def apply(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        """Primary filters are fresh; everything else keeps its weights."""
        for name, side in self.linears.items():
            linear = model.get_submodule(name)
            if not isinstance(linear, nn.Linear) or linear.in_features % side**2:
                raise UserError(f"{name} is no fully connected layer on a map of {side}x{side}")
            channels = linear.in_features // side**2
            like, bias = linear.weight, linear.bias is not None
            conv = nn.Conv2d(channels, linear.out_features, side, bias=bias, device=like.device, dtype=like.dtype)
            behind = (nn.Unflatten(1, (channels, side, side)), conv, nn.Flatten(1))
            replace_module(model, name, nn.Sequential(*behind).train(linear.training))
        _replaced(model, self.skipped, lambda conv: VersatileConv2d(conv, self.options))


@dataclass(frozen=True)
class Learned(Edit):
    """Every convolution with more than one secondary filter, but those ``skipped``, gets learned masks.

    ``masks`` may be given by the names of its fields.  ``exported``: the masks are fixed, and stored as bits.
    """

    kind = "learned masks"
    masks: Masks = NESTED_AS_MANY
    skipped: Sequence[str] = ()
    exported: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.masks, Masks):
            object.__setattr__(self, "masks", Masks(**(self.masks or {})))
        object.__setattr__(self, "skipped", tuple(sorted(self.skipped)))

    def apply(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        """Primary filters and masks are fresh; everything else keeps its weights."""
        _replaced(model, self.skipped, lambda conv: LearnedConv2d(conv, self.masks, self.exported))


def exported(recipe: Recipe) -> Recipe:
    """The recipe of the network whose learned masks are fixed."""
    return replace(
        recipe, edits=[replace(one, exported=True) if isinstance(one, Learned) else one for one in recipe.edits]
    )


def _replaced(
    model: nn.Module, skipped: Sequence[str], make: Callable[[nn.Conv2d], VersatileConv2d | LearnedConv2d]
) -> None:
    """Puts what ``make`` makes in the place of each convolution, where that has more than one secondary filter.

    Raises :class:`UserError` for unknown names and where nothing is replaced.
    """
    found = dict(_convolutions(model))
    unknown = sorted(set(skipped) - set(found))
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no convolution has this name")
    count = 0
    for name, conv in found.items():
        layer = make(conv)
        if name not in skipped and layer.secondaries > 1:
            if not layer.weight.is_meta:
                initialise(layer)
            replace_module(model, name, layer)
            count += 1
    if not count:
        raise UserError("no convolution has more than one secondary filter: the network would stay as it is")


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """The ordinary ones, by name."""
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d:
            yield name, module
