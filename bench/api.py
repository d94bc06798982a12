"""Pruning a network of one's own: the papers' selection, reconstruction, removal and measurement, on any network.

The network must be traceable by torch.fx; the data are an image folder (or any :class:`ImageSet`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench.data.folder import image_folder
from bench.data.images import ImageSet
from bench.errors import UserError
from bench.measure import accuracy, macs
from bench.pruning import surgery
from bench.pruning.calibration import Sampling, because, calibrate, error_curves
from bench.pruning.faithful import copied
from bench.pruning.layerwise import LayerReport, Method, few_images
from bench.pruning.layerwise import prune as prune_layers
from bench.pruning.steps import ELIMINATION_RIDGE, calibration_images
from bench.pruning.widths import MacModel, error_driven, scaled
from bench.store import Record

METHODS = {"cp": "lasso", "exact": "exact", "thinet": "thinet", "max-response": "max response", "first-k": "first k",
           "weight-sum": "weight sum", "random": "random"}  # fmt: skip
WIDTHS = ("uniform", "error-driven")


@dataclass(frozen=True)
class Pruned:
    """A pruned network with what was measured on the test split, before and after, and a report for each layer.

    ``left_out`` names the layers that were not pruned because they do not compute what their class says, with the reason;
    ``warnings`` are what the calibration says about itself.
    """

    model: nn.Module
    layers: list[LayerReport]
    dense: macs.Macs
    pruned: macs.Macs
    records: list[Record]
    left_out: list[tuple[str, str]]
    warnings: list[str]

    @property
    def speedup(self) -> float:
        """Dense over pruned conv MACs."""
        return self.dense.total("conv") / self.pruned.total("conv")


def prune(
    model: nn.Module, data: ImageSet | Path | str, *, speedup: float = 2.0, method: str = "cp", widths: str = "uniform",
    size: int = 224, images: int = 5000, positions: int = 10, seed: int = 0, device: str = "cpu", progress: bool = True,
) -> Pruned:  # fmt: skip
    """Prunes a trained classifier to ``speedup`` times fewer conv MACs, without fine-tuning; ``model`` is not changed.

    ``method`` is one of ``METHODS``, ``widths`` one of ``WIDTHS``; ``data`` an image folder with train/ and test/ (or
    val/) or an :class:`ImageSet`; calibration uses at most ``images`` training images, ``positions`` outputs of each.
    Raises :class:`UserError` for a network, data or a target that cannot be handled.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if widths not in WIDTHS:
        raise UserError(f"unknown widths {widths!r}: choose one of {', '.join(WIDTHS)}")
    if not speedup > 1.0:
        raise UserError(f"a speed-up of {speedup:g} prunes nothing: give a number above 1")
    data = data if isinstance(data, ImageSet) else image_folder(Path(data), size, "short256", progress=progress)
    shape = (3, data.size, data.size)
    model = copied(model).cpu().eval()  # the user's own keeps its modes, flags and place
    check_outputs(model, shape, len(data.classes))
    dense = macs.count(model.cpu(), shape)
    sampling = Sampling(positions=positions, seed=seed)
    batches = calibration_images(data, images, seed, sampling.batch)
    calibration = calibrate(model, batches, sampling, device, progress=progress)
    sites = [site for site in calibration.sites if site.producer is not None]
    if not sites:
        raise UserError(
            f"no convolution's channels belong to it alone: nothing to prune{because(calibration.left_out)}"
        )
    channels = {site.reader: surgery.convolution(model, site.reader).in_channels for site in sites}
    mac_model = MacModel(dense.conv, sites, channels)
    if widths == "uniform":
        keep = scaled(mac_model, dict.fromkeys(channels, 1.0), speedup)
    else:
        keep = error_driven(mac_model, error_curves(model, calibration, ELIMINATION_RIDGE, progress=progress), speedup)
    smaller, layers = prune_layers(model, calibration, keep, Method(METHODS[method]), progress)
    before = accuracy.logits(model, data.test, device, progress=progress)
    after = accuracy.logits(smaller, data.test, device, progress=progress)
    records = [*accuracy.records(after, data.test.labels, seed), *accuracy.compare([after], [before], data.test.labels)]
    smaller = smaller.cpu()
    warnings = few_images(calibration, layers)
    return Pruned(smaller, layers, dense, macs.count(smaller, shape), records, calibration.left_out, warnings)


@torch.no_grad()
def check_outputs(model: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
    """Raises :class:`UserError` unless the network maps images of ``shape`` to at least ``classes`` logits each."""
    try:
        outputs = model.cpu().eval()(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(
            f"the network does not run on images of {shape[1]}x{shape[2]} ({reason}): give its input size with --size"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2 or outputs.shape[1] < classes:
        raise UserError(
            f"the network must give one row of at least {classes} logits for each image: the data have {classes} classes"
        )
