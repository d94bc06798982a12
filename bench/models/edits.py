"""The edits that make a network from a base: filters removed, inputs sampled, biases added, the head replaced.

An edit is a frozen dataclass of JSON values that changes a network in place, with weights or on ``meta``.  A new one is
a subclass of :class:`Edit`; its kind is a name in ``EDITS`` or, in a paper's script, MODULE:CLASS.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn
from torchvision.models.vgg import VGG

from bench.errors import UserError
from bench.models.builders import EDITS, find
from bench.models.initial import initialise
from bench.pruning import surgery


@dataclass(frozen=True)
class Edit(ABC):
    """One change of a network.  ``kind`` is what its JSON calls it, and how it is found."""

    kind: ClassVar[str]

    @abstractmethod
    def apply(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        """Changes ``model``, which takes images of ``input_shape`` (C, H, W), in place; keeps weights that stay.

        What is new is on the device of the weights, initialised except on ``meta``.  Raises :class:`UserError` where
        the edit does not fit the network.
        """

    @property
    def is_empty(self) -> bool:
        """Whether it changes no network."""
        return False

    def joined(self, later: Self) -> Self | None:
        """The one edit that does what this one does and then ``later``, or None where there is none."""
        return None

    def to_json(self) -> dict[str, Any]:
        """The kind and the fields as plain JSON values, names sorted."""
        return {"kind": self.kind, **{spec.name: _plain(getattr(self, spec.name)) for spec in dataclasses.fields(self)}}


@dataclass(frozen=True)
class Remove(Edit):
    """Filters removed: ``widths`` gives how many are left, by convolution; the first are kept where nobody chose."""

    kind = "remove"
    widths: Mapping[str, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", dict(self.widths))

    def apply(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        """Keeps the first filters of each convolution."""
        surgery.shrink(model, input_shape, self.widths)

    @property
    def is_empty(self) -> bool:
        """Whether no convolution is named."""
        return not self.widths

    def joined(self, later: Remove) -> Remove:
        """The later widths count.  Raises :class:`UserError` where they are larger."""
        for name, width in later.widths.items():
            if width > self.widths.get(name, width):
                raise UserError(f"{name}: {width} filters cannot be left of {self.widths[name]}")
        return Remove({**self.widths, **later.widths})


@dataclass(frozen=True)
class Sample(Edit):
    """Channel samplers in front of convolutions: ``channels`` of the stream that each reads (CP, section 3.3)."""

    kind = "sample"
    channels: Mapping[str, Sequence[int]]

    def __post_init__(self) -> None:
        channels = {name: [int(channel) for channel in read] for name, read in self.channels.items()}
        object.__setattr__(self, "channels", channels)

    def apply(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        """The channels are numbered in the stream, also where it is sampled already."""
        for name, channels in self.channels.items():
            surgery.sample_stream(model, name, channels)

    @property
    def is_empty(self) -> bool:
        """Whether no convolution is named."""
        return not self.channels

    def joined(self, later: Sample) -> Sample:
        """The later samplers count.  Raises :class:`UserError` where they read what is gone."""
        for name, channels in later.channels.items():
            if not set(channels) <= set(self.channels.get(name, channels)):
                raise UserError(f"{name}: a sampler cannot read channels that another has left out")
        return Sample({**self.channels, **later.channels})


@dataclass(frozen=True)
class Bias(Edit):
    """A bias for the convolutions ``names`` that have none: reconstruction gives them one."""

    kind = "bias"
    names: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(sorted(set(self.names))))

    def apply(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        """The new biases are zero."""
        surgery.add_biases(model, self.names)

    @property
    def is_empty(self) -> bool:
        """Whether no convolution is named."""
        return not self.names

    def joined(self, later: Bias) -> Bias:
        """Both."""
        return Bias((*self.names, *later.names))


@dataclass(frozen=True)
class ReplaceHead(Edit):
    """VGG's last pooling and fully connected layers give way to global average pooling and one linear layer.

    ThiNet-GAP and ThiNet-Tiny (Luo et al. 2017, the authors' prototxt): the mean over the last convolution's whole
    map (14x14 of 224x224), then ``classes`` outputs (None: as many as before).
    """

    kind = "replace head"
    classes: int | None = None

    def apply(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        """The state dict keeps the names of ``features``; the linear layer is ``classifier.0``."""
        if not isinstance(model, VGG) or not isinstance(model.features[-1], nn.MaxPool2d):
            raise UserError(f"{type(model).__name__} is no VGG with its last pooling: its head cannot be replaced")
        last = [module for module in model.features if isinstance(module, nn.Conv2d)][-1]
        outputs = [module for module in model.classifier if isinstance(module, nn.Linear)][-1].out_features
        weight = last.weight
        linear = nn.Linear(last.out_channels, self.classes or outputs, device=weight.device, dtype=weight.dtype)
        if not weight.is_meta:
            initialise(linear)
        model.features[-1] = nn.Identity()
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Sequential(linear).train(model.training)


@dataclass(frozen=True)
class NewOutputs(Edit):
    """The last fully connected layer gives way to a fresh one of ``classes`` outputs, for another data set."""

    kind = "new outputs"
    classes: int

    def apply(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        """The state dict keeps its names."""
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not layers:
            raise UserError(f"{type(model).__name__} has no fully connected layer whose outputs could be replaced")
        parent, _, name = layers[-1].rpartition(".")
        old = model.get_submodule(layers[-1])
        assert isinstance(old, nn.Linear)
        weight = old.weight
        linear = nn.Linear(old.in_features, self.classes, device=weight.device, dtype=weight.dtype).train(old.training)
        if not weight.is_meta:
            initialise(linear)
        setattr(model.get_submodule(parent), name, linear)


def simplified(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    """The same edits without those that do nothing, neighbours of one type joined where they can be."""
    found: list[Edit] = []
    for one in edits:
        if one.is_empty:
            continue
        both = found[-1].joined(one) if found and type(found[-1]) is type(one) else None
        if both is not None:
            found.pop()
        found.append(both or one)
    return tuple(found)


def edit(kind: str, **fields: Any) -> Edit:
    """The edit of a kind, found and imported by its name.  Raises :class:`UserError` where there is none."""
    if kind not in EDITS and ":" not in kind:
        raise UserError(f"unknown edit {kind!r}: choose one of {', '.join(EDITS)}, or give MODULE:CLASS")
    found = find(EDITS.get(kind, kind), "edit")
    if not (isinstance(found, type) and issubclass(found, Edit)):
        raise UserError(f"{kind!r} is no subclass of {Edit.__module__}.{Edit.__name__}")
    return found(**fields)


def read(value: Mapping[str, Any]) -> Edit:
    """The inverse of :meth:`Edit.to_json`.  Raises :class:`UserError` for an unknown kind."""
    return edit(value["kind"], **{name: field for name, field in value.items() if name != "kind"})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in sorted(value.items())}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
