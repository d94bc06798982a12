"""What is timed: a network in the forms in which a user would deploy it, each proved to compute the same.

Batch norms folded into the convolutions, channels-last layout, ``torch.compile``, a gated network that skips.  The
fastest form of the dense network is "dense (best)"; the pruned network gets its own best form.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import saved
from bench.errors import UserError
from bench.gating.fresh import normalise
from bench.gating.layer import gated_layers
from bench.latency.folding import fold
from bench.measure import macs
from bench.measure.latency import Network
from bench.models import weights
from bench.models.recipe import Recipe

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = ("nchw", "nhwc")
FORWARD, BACKWARD, DETECTIONS = "forward", "forward+backward", "detections"
MODES = (FORWARD, BACKWARD, DETECTIONS)
# by how much the outputs of a form may differ from those of the network as it is, of the largest one
TOLERANCE = {"fp32": 2e-3, "tf32": 5e-2, "bf16": 2e-1}


@dataclass(frozen=True)
class Form:
    """One way to run a network; ``skipped``: a gated network that computes the winners only."""

    folded: bool = False
    layout: str = "nchw"
    compiled: bool = False
    skipped: bool = False

    @property
    def name(self) -> str:
        """In words; ``as it is`` for the plain network."""
        words = ["folded"] if self.folded else []
        words += ["skipping"] if self.skipped else []
        words += ["channels-last"] if self.layout == "nhwc" else []
        words += ["compiled"] if self.compiled else []
        return ", ".join(words) or "as it is"


AS_IT_IS = Form()


@dataclass(frozen=True)
class Subject:
    """A network by its recipe; its weights are those of ``weights`` (a saved network's folder, or a state dict) or
    fresh ones of a seed, which take the same time.
    """

    name: str
    recipe: Recipe
    weights: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "recipe": self.recipe.to_json(), "weights": self.weights}

    def about(self) -> dict[str, Any]:
        """The same for records, which name a file of weights and not where it lies."""
        return {**self.to_json(), "weights": None if self.weights is None else Path(self.weights).name}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Subject:
        """The inverse of :meth:`to_json`."""
        return cls(value["name"], Recipe.from_json(value["recipe"]), value["weights"])

    def build(self, seed: int) -> nn.Module:
        """The network on the CPU in evaluation mode.  Raises :class:`UserError` for weights that do not fit."""
        if self.weights is not None and saved.is_saved(Path(self.weights)):
            return saved.load(self.weights).eval()
        torch.manual_seed(seed)
        model = self.recipe.build()
        if self.weights is not None:
            weights.load(model, Path(self.weights))
        elif gated_layers(model):  # fresh weights get the statistics of some images, as training would give them
            with torch.no_grad():
                normalise(model, torch.randn(16, *self.recipe.input_shape))
        return model.eval()

    @property
    def gated(self) -> bool:
        """Whether it chooses channels for each image."""
        return self.recipe.last("gate") is not None


def forms(model: nn.Module, gated: bool, mode: str, layouts: Sequence[str], compiled: bool) -> list[Form]:
    """The forms that make sense for a network, the plain one first; nothing is folded that has no batch norm.

    Training keeps its batch norms; a gated network skips instead.
    """
    if gated:
        return [AS_IT_IS, Form(skipped=True)] if mode == FORWARD else [AS_IT_IS]
    folded = mode != BACKWARD and any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    found = [AS_IT_IS]
    for layout in layouts:
        found += [Form(folded, layout)]
        found += [Form(folded, layout, True)] if compiled and mode == FORWARD else []
    return list(dict.fromkeys(found))


def prepared(model: nn.Module, form: Form, mode: str, dtype: str, device: str) -> tuple[Network, Network]:
    """``model`` (left as it is) in a form, ready to be called with nchw images on ``device``, and what is checked.

    The second gives the outputs that are compared: the same network, of a detector without its post-processing, where
    equal scores may change their places.
    """
    number = DTYPES[dtype]
    body = _skipping(copy.deepcopy(model)) if form.skipped else copy.deepcopy(model)
    if form.folded:
        body = fold(body)
    body = body.to(device=device, dtype=number)
    if form.layout == "nhwc":
        body = body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    call: Network = training(body) if mode == BACKWARD else body
    if form.compiled:
        torch._dynamo.config.recompile_limit = 256  # type: ignore[attr-defined]  # networks of one class are no recompilations
        call = torch.compile(body)
    checked = call
    if mode == DETECTIONS:
        call = _detecting(body)
    if form.layout == "nhwc":
        return _channels_last(call), _channels_last(checked)
    return call, checked


def _skipping(model: nn.Module) -> nn.Module:
    # imported where it is needed: its compiler takes seconds to load
    from bench.gating.skip import SkippedNetwork

    return SkippedNetwork(model)


def _channels_last(network: Network) -> Network:
    """The images are brought into the layout as part of the call."""
    return lambda x: network(x.contiguous(memory_format=torch.channels_last))


def body_of(model: nn.Module, form: Form, dtype: str, device: str) -> nn.Module:
    """The module behind a form without compilation, for looking at its layers."""
    body = fold(copy.deepcopy(model)) if form.folded else copy.deepcopy(model)
    body = body.to(device=device, dtype=DTYPES[dtype])
    if form.layout == "nhwc":
        body = body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return body


def training(model: nn.Module) -> Network:
    """Forward and backward of one batch: cross-entropy against the first class, gradients of all weights.

    Running statistics of batch norms are computed with, but never moved, so that the network stays what it was.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0

    def step(x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            model.zero_grad(set_to_none=True)
            output = model(x.clone() if x.is_inference() else x)
            loss = F.cross_entropy(output, torch.zeros(len(x), dtype=torch.long, device=x.device))
            loss.backward()  # type: ignore[no-untyped-call]
        return output.detach()  # type: ignore[no-any-return]

    return step


def _detecting(model: nn.Module) -> Network:
    """A detector with its post-processing (decoding, NMS): boxes of every image, in the pixels of the input."""

    def run(x: Tensor) -> Tensor:
        side = x.shape[-2:]
        meta = {"img_shape": side, "ori_shape": side, "scale_factor": (1.0, 1.0)}
        samples = [SimpleNamespace(metainfo=meta) for _ in range(len(x))]
        found = model.detections([value.float() for value in model(x)], samples)  # type: ignore[operator]
        return torch.cat([torch.cat([one.bboxes, one.scores[:, None]], 1) for one in found])

    return run


def outputs(network: Network, x: Tensor) -> Tensor:
    """A network's outputs as one float32 vector on the CPU; dropout, where it is on, draws the same each time."""
    torch.manual_seed(0)
    with torch.inference_mode():
        found = network(x)
    parts = [found] if isinstance(found, Tensor) else list(found)
    return torch.cat([part.detach().float().flatten().cpu() for part in parts])


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two output vectors, relative to the largest output; infinite for other shapes."""
    if one.shape != other.shape:
        return float("inf")
    scale = max(float(other.abs().max()), 1e-12)
    return float((one - other).abs().max()) / scale


def digest(model: nn.Module) -> str:
    """sha256 of the weights and buffers: names, shapes and bits."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


@torch.no_grad()
def skips_right(model: nn.Module, x: Tensor) -> bool:
    """Whether a gated network that skips computes what it does as it is, but for rounding: asked in float64.

    In lower precision another channel wins here and there, and everything behind it is another number.
    """
    from bench.gating.timing import same_in_float64  # it loads the same compiler

    return same_in_float64(copy.deepcopy(model).to(x.device), x)


def mac_count(subject: Subject, model: nn.Module) -> dict[str, float]:
    """MACs of one image by convention; of a gated network with its gates, as the densities alone tell."""
    if subject.gated:
        from bench.measure import dynamic  # it loads what reads images

        total = float(dynamic.expected(model, subject.recipe.input_shape).totals[0])
        return {"conv+fc+gates": total}
    counted = macs.count(model, subject.recipe.input_shape)
    return {name: float(counted.total(name)) for name in ("conv", "conv+fc")}


def check_dtype(dtype: str, device: str) -> None:
    """Raises :class:`UserError` for a number format that the device does not have."""
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: choose among {', '.join(DTYPES)}")
    if dtype == "tf32" and not device.startswith("cuda"):
        raise UserError("tf32 is a mode of NVIDIA GPUs: choose fp32 or bf16 on the CPU")


def set_precision(dtype: str) -> None:
    """TF32 on for ``tf32``, off otherwise; cuDNN chooses its algorithms by measuring them."""
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    torch.backends.cudnn.benchmark = True
