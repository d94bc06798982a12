"""mmcv's compiled operations over torchvision's, so that mmdet runs where nothing was compiled.

mmdet imports ``mmcv.ops``, which imports the compiled module ``mmcv._ext``; for a current torch there is none, and
compiling takes a quarter of an hour where it works at all.  What SSD and Faster R-CNN use of it are NMS, soft NMS and
RoIAlign, and torchvision has these.  :func:`install` puts a module in the place of ``mmcv._ext`` that answers with
them; every other operation exists too, as mmcv demands on import, and says what is missing when it is called.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import io
import sys
import types
from typing import Any

import torch
import torchvision
from torch import Tensor

from bench.errors import UserError

_NAME = "mmcv._ext"
_NAIVE, _LINEAR, _GAUSSIAN = 0, 1, 2


def install() -> None:
    """Makes ``import mmdet`` work, and imports it; puts nothing in the place of an extension that was compiled.

    Raises :class:`UserError` where OpenCV, which mmcv imports, lacks its system libraries.
    """
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"OpenCV cannot be loaded ({error}): install its system libraries (Debian: apt-get install libgl1 "
            "libglib2.0-0)"
        ) from error
    if _NAME not in sys.modules and importlib.util.find_spec(_NAME) is None:
        sys.modules[_NAME] = _Extension(_NAME)
    if "mmdet.datasets" not in sys.modules:
        # it prints what optional packages it lacks, which would end up in our JSON
        with contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module("mmdet.datasets")


class _Extension(types.ModuleType):
    """Stands for ``mmcv._ext``: four operations, and an error for each of the others when it is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.nms, self.softnms = nms, softnms
        self.roi_align_forward, self.roi_align_backward = roi_align_forward, roi_align_backward

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise UserError(
                f"mmcv's operation {name!r} needs its compiled extension: build onedl-mmcv with MMCV_WITH_OPS=1, or "
                "use a model without it"
            )

        return missing


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Places of the boxes (N x 4, corners) that greedy suppression keeps, by falling score.

    ``offset`` 1 measures sides as x2 - x1 + 1, the integer pixels of the VOC devkit.
    """
    if offset:
        boxes = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    return torchvision.ops.nms(boxes, scores, iou_threshold)  # type: ignore[no-any-return]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft NMS (Bodla et al. 2017): boxes that overlap a better one lose score; below ``min_score`` they go.

    ``method`` is 0 (dropped), 1 (score times 1 - IoU) above ``iou_threshold``, or 2 (times exp(-IoU^2 / sigma)).
    Writes box and score (N x 5) of what is kept into ``dets`` and returns their places, in the order of choice.
    """
    larger = boxes + boxes.new_tensor([0.0, 0.0, float(offset), float(offset)])
    left, current = torch.arange(len(boxes)), scores.clone()
    chosen: list[int] = []
    while len(left):
        best = int(current[left].argmax())
        place = int(left[best])
        dets[len(chosen), :4], dets[len(chosen), 4] = boxes[place], current[place]
        chosen.append(place)
        left = torch.cat([left[:best], left[best + 1 :]])
        overlap = torchvision.ops.box_iou(larger[place][None], larger[left])[0]
        if method == _GAUSSIAN:
            weight = torch.exp(-overlap.square() / sigma)
        else:
            weight = torch.where(overlap >= iou_threshold, 1.0 - overlap if method == _LINEAR else 0.0, 1.0)
        current[left] = current[left] * weight
        left = left[current[left] >= min_score]
    return torch.tensor(chosen, dtype=torch.long)


def roi_align_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (He et al. 2017) by averages: ``rois`` K x 5 (image, corners) into ``output`` K x C x height x width."""
    if pool_mode != 1:
        raise UserError("RoIAlign by maxima needs mmcv's compiled extension: use pool_mode='avg'")
    output.copy_(
        torchvision.ops.roi_align(
            features, rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """The gradient of :func:`roi_align_forward` with respect to the features, into ``grad_input`` (B x C x H x W)."""
    size = (aligned_height, aligned_width)
    shape, grad = grad_input.shape, grad_output.contiguous()
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(grad, rois, spatial_scale, *size, *shape, sampling_ratio, aligned)
    )
