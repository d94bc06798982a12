"""Physical removal of channels, through torch-pruning's dependency graph, and the channel sampler of residual nets.

Removing is not masking: a masked channel still sends its batch-norm shift to the next layer, a removed one does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch_pruning
from torch import Tensor, nn

from bench.errors import UserError


class SampledConv2d(nn.Conv2d):
    """A convolution behind a channel sampler: it reads ``x[:, index]`` and leaves the stream itself whole (CP, 3.3).

    Input N x C x H x W with C the width of the stream; ``in_channels`` is the number of channels read.
    """

    index: Tensor

    @classmethod
    def on(cls, conv: nn.Conv2d, index: Sequence[int]) -> SampledConv2d:
        """``conv`` reduced to the input channels ``index`` (of the channels that it reads from its input)."""
        if conv.groups != 1:
            raise UserError("a channel sampler needs a convolution with groups=1")
        # indices are no weights: they have their values on ``meta`` too
        rows = torch.as_tensor(list(index), dtype=torch.long, device="cpu")
        sampled = cls(
            len(rows),
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        sampled.weight.data = conv.weight.data[:, rows.to(conv.weight.device)].clone()
        if conv.bias is not None and sampled.bias is not None:
            sampled.bias.data = conv.bias.data.clone()
        read = conv.index[rows.to(conv.index.device)] if isinstance(conv, SampledConv2d) else rows
        sampled.register_buffer("index", read if conv.weight.is_meta else read.to(conv.weight.device))
        return sampled.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to N x out_channels x H' x W'."""
        return super().forward(x.index_select(1, self.index))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts ``module`` where ``model`` has the submodule ``name``."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def sample_input(model: nn.Module, name: str, index: Sequence[int]) -> None:
    """Puts a channel sampler in front of the convolution ``name``; ``index`` are the input channels that it keeps."""
    replace_module(model, name, SampledConv2d.on(convolution(model, name), index))


def sample_stream(model: nn.Module, name: str, channels: Sequence[int]) -> None:
    """As :func:`sample_input`, but ``channels`` are those of the stream, also where a sampler stands there already.

    Raises :class:`UserError` for a channel that the convolution does not read.
    """
    conv = convolution(model, name)
    read = conv.index.tolist() if isinstance(conv, SampledConv2d) else range(conv.in_channels)
    place = {channel: at for at, channel in enumerate(read)}
    missing = [channel for channel in channels if channel not in place]
    if missing:
        raise UserError(f"{name}: it reads no channel {missing[0]} that a sampler could keep")
    sample_input(model, name, [place[channel] for channel in channels])


def convolution(model: nn.Module, name: str) -> nn.Conv2d:
    """The convolution called ``name``; raises :class:`UserError` where there is none."""
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise UserError(f"the network has no module {name!r}") from error
    if not isinstance(module, nn.Conv2d):
        raise UserError(f"{name!r} is a {type(module).__name__}, not a Conv2d: only convolutions can be pruned")
    return module


def remove_filters(model: nn.Module, input_shape: Sequence[int], name: str, removed: Sequence[int]) -> None:
    """Removes filters of the convolution ``name``, in place, with everything that depends on them.

    The batch norms behind it lose their entries, its readers the matching input channels.  ``input_shape`` is (C, H,
    W).  Raises :class:`UserError` where it would empty a layer or where the channels are tied to another layer's.
    """
    conv = convolution(model, name)
    if not len(removed):
        return
    if len(set(removed)) >= conv.out_channels:
        raise UserError(f"{name}: cannot remove all {conv.out_channels} filters, at least one must stay")
    # tracing needs gradients to exist and batch statistics to stay as they are
    training = [module for module in model.modules() if module.training]
    frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    model.eval().requires_grad_(True)
    try:
        _remove(model, input_shape, conv, name, removed)
    finally:
        for module in training:
            module.training = True
        for key in frozen:  # removal has put new parameters there
            model.get_parameter(key).requires_grad_(False)


def _remove(model: nn.Module, input_shape: Sequence[int], conv: nn.Conv2d, name: str, removed: Sequence[int]) -> None:
    example = torch.zeros(1, *input_shape, device=conv.weight.device, dtype=conv.weight.dtype)
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(
            model, example_inputs=example, unwrapped_parameters=_vectors(model)
        )
    group = graph.get_pruning_group(conv, torch_pruning.prune_conv_out_channels, idxs=sorted(set(removed)))
    producers = [
        dependency.target.name
        for dependency, _ in group
        if dependency.handler in (torch_pruning.prune_conv_out_channels, torch_pruning.prune_linear_out_channels)
    ]
    if len(producers) > 1:
        raise UserError(f"{name}: its channels are added to those of other layers and cannot be removed alone")
    group.prune()


def _vectors(model: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Parameters with one value a channel in modules that torch-pruning does not know (SSD's L2Norm)."""
    return [
        (parameter, 0)
        for module in model.modules()
        if getattr(module, "keeps_channels", False)
        for parameter in module.parameters(recurse=False)
    ]


def shrink(model: nn.Module, input_shape: Sequence[int], widths: Mapping[str, int]) -> None:
    """Removes filters until the convolutions have the given widths, in place; the first of each are kept.

    Raises :class:`UserError` for a width that a convolution cannot have.
    """
    for name, width in widths.items():
        filters = convolution(model, name).out_channels
        if not 1 <= width <= filters:
            raise UserError(f"{name}: width {width} is not between 1 and its {filters} filters")
        remove_filters(model, input_shape, name, range(width, filters))


def shrink_together(model: nn.Module, input_shape: Sequence[int], widths: Mapping[str, int]) -> None:
    """As :func:`shrink`, with one tracing for all convolutions, which takes a fraction of the time: for sizes.

    ``model`` is in evaluation mode afterwards.  Raises :class:`UserError` as :func:`shrink` and :func:`remove_filters`.
    """
    model.eval().requires_grad_(True)
    parameter = next(model.parameters())
    example = torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(
            model, example_inputs=example, unwrapped_parameters=_vectors(model)
        )
    filters = {key: module.out_channels for key, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    for name, width in widths.items():
        conv = convolution(model, name)
        if not 1 <= width <= conv.out_channels:
            raise UserError(f"{name}: width {width} is not between 1 and its {conv.out_channels} filters")
        if width < conv.out_channels:
            removed = list(range(width, conv.out_channels))
            graph.get_pruning_group(conv, torch_pruning.prune_conv_out_channels, idxs=removed).prune()
    for name, count in filters.items():
        if convolution(model, name).out_channels != widths.get(name, count):
            raise UserError(f"{name}: its channels are added to those of other layers and cannot be removed alone")


def add_biases(model: nn.Module, names: Sequence[str]) -> None:
    """Gives the convolutions a bias of zeros where they have none, in place."""
    for name in names:
        conv = convolution(model, name)
        if conv.bias is None:
            conv.bias = nn.Parameter(conv.weight.detach().new_zeros(conv.out_channels))


def structure(original: nn.Module, pruned: nn.Module) -> tuple[dict[str, list[int]], list[str]]:
    """What pruning has added to ``original``: samplers (the stream's channels, by name) and new biases.

    With the widths of the pruned convolutions it is all that makes one from the other.
    """
    before = dict(original.named_modules())
    samplers, biases = {}, []
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Conv2d):
            if isinstance(module, SampledConv2d):
                samplers[name] = [int(channel) for channel in module.index]
            if module.bias is not None and getattr(before.get(name), "bias", None) is None:
                biases.append(name)
    return samplers, biases
