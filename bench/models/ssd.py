"""SSD (Liu et al., ECCV 2016) built from mmdet's parts: SSD300 on VGG-16 and on ResNet-50, and a narrow one for scenes.

The network is mmdet's backbone, neck and head under their own names (so mmdet's checkpoints fit), behind a ``forward``
that takes images only: torch.fx can trace it, torch-pruning can prune it, and MACs are those of the network without
NMS.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from bench.errors import UserError
from bench.mmcv_ops import install

# pixel statistics (RGB, 0 to 255): of the Caffe VGG-16 that SSD starts from (unit scale), and ImageNet's
CAFFE_MEAN, CAFFE_STD = (123.675, 116.28, 103.53), (1.0, 1.0, 1.0)
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@functools.cache
def registry() -> Any:
    """mmdet's registry of models with ours; mmdet takes seconds to import, so this happens when it is first needed."""
    install()
    import mmdet.models
    from mmdet.registry import MODELS

    class BenchSSDHead(mmdet.models.SSDHead):  # type: ignore[misc]
        """mmdet's head; its ``predict`` asks for ``loss_cls``, which SSDHead never sets (mmdet issues 11063, 11305)."""

        loss_cls = None

    MODELS.register_module(module=BenchSSDHead)
    MODELS.register_module(module=NarrowVGG)
    return MODELS


class SSD(nn.Module):
    """A single-stage detector: N x 3 x H x W to the class maps, then the box maps, finest first.

    ``mean`` and ``std`` (RGB, 0 to 255) normalise pixels in :meth:`normalised`; ``size`` is the input's side.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        neck: dict[str, Any],
        head: dict[str, Any],
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        models = registry()
        # mmdet's parts build parts of their own by name; a Runner in the same process has set another scope
        with DefaultScope.overwrite_default_scope("mmdet"):
            self.backbone, self.neck = models.build(backbone), models.build(neck)
            self.bbox_head = models.build(ConfigDict(head))  # its settings are read as attributes
        # it scales channels one by one, though by a norm over all: pruning may pass through it
        self.neck.l2_norm.keeps_channels = True
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Class maps (N x anchors*(classes+1) x h x w) of all levels, then box maps (N x anchors*4 x h x w)."""
        scores, boxes = self.bbox_head(self.neck(self.backbone(x)))
        return (*scores, *boxes)

    def normalised(self, pixels: Tensor) -> Tensor:
        """RGB pixels (N x 3 x H x W, 0 to 255) as the network wants them."""
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        return (pixels.float() - mean) / std

    def loss(self, maps: Sequence[Tensor], samples: Sequence[Any]) -> dict[str, Tensor]:
        """SSD's two losses (``loss_cls`` and ``loss_bbox``, scalars) for the maps of :meth:`forward`.

        ``samples`` are mmdet's data samples with ground truth, in the pixels of the network's input.
        """
        half = len(maps) // 2
        metas = [sample.metainfo for sample in samples]
        truths = [sample.gt_instances for sample in samples]
        losses = self.bbox_head.loss_by_feat(list(maps[:half]), list(maps[half:]), truths, metas)
        return {name: torch.stack([value.sum() for value in values]).sum() for name, values in losses.items()}

    def detections(self, maps: Sequence[Tensor], samples: Sequence[Any]) -> list[Any]:
        """Boxes after NMS for each image (mmdet InstanceData: bboxes, scores, labels), in the original's pixels."""
        half = len(maps) // 2
        metas = [sample.metainfo for sample in samples]
        found: list[Any] = self.bbox_head.predict_by_feat(
            list(maps[:half]), list(maps[half:]), batch_img_metas=metas, rescale=True
        )
        return found

    def default_boxes(self, device: torch.device | str = "cpu") -> Tensor:
        """All default boxes (K x 4, corners, in the pixels of the network's input), level by level."""
        generator = self.bbox_head.prior_generator
        sides = [math.ceil(self.size / stride[0]) for stride in generator.strides]
        return torch.cat(generator.grid_priors([(side, side) for side in sides], device=device))

    @torch.no_grad()
    def initialise(self) -> None:
        """Fresh weights as mmdet's SSD300 has them: He normal in the backbone, Xavier uniform behind it."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                if name.startswith("backbone"):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif module is self.neck.l2_norm:
                nn.init.constant_(self.neck.l2_norm.weight, self.neck.l2_norm.scale)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


def _head(num_classes: int, channels: Sequence[int], anchors: dict[str, Any]) -> dict[str, Any]:
    """mmdet's configuration of the SSD head (its ssd300.py): matching at IoU 0.5, three negatives for a positive."""
    return dict(
        type="BenchSSDHead",
        num_classes=num_classes,
        in_channels=tuple(channels),
        anchor_generator=dict(type="SSDAnchorGenerator", scale_major=False, **anchors),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
        train_cfg=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.0,
                ignore_iof_thr=-1,
                gt_max_assign_all=False,
            ),
            sampler=dict(type="PseudoSampler"),
            smoothl1_beta=1.0,
            allowed_border=-1,
            pos_weight=-1,
            neg_pos_ratio=3,
            debug=False,
        ),
        test_cfg=dict(
            nms_pre=1000, nms=dict(type="nms", iou_threshold=0.45), min_bbox_size=0, score_thr=0.02, max_per_img=200
        ),
    )


def _anchors300(num_classes: int) -> dict[str, Any]:
    """SSD300's default boxes; the smallest are 0.2 of the side on VOC and 0.15 on COCO (Liu et al., 3.1 and 3.4)."""
    smallest = 0.2 if num_classes <= 20 else 0.15
    return dict(
        input_size=300,
        basesize_ratio_range=(smallest, 0.9),
        strides=[8, 16, 32, 64, 100, 300],
        ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]],
    )


def _build(
    backbone: dict[str, Any],
    neck: dict[str, Any],
    head: dict[str, Any],
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> SSD:
    model = SSD(backbone, neck, head, size, mean, std)
    # L2Norm's weight is made by a constructor that knows nothing of torch.device's context
    return model.to(torch.empty(0).device)


def ssd300_vgg16(num_classes: int = 20) -> nn.Module:
    """SSD300 on VGG-16 with fc6 and fc7 as dilated convolutions: 26,285,486 parameters for 20 classes."""
    backbone = dict(
        type="SSDVGG",
        depth=16,
        with_last_pool=False,
        ceil_mode=True,
        out_indices=(3, 4),
        out_feature_indices=(22, 34),
    )
    channels = (512, 1024, 512, 256, 256, 256)
    neck = dict(
        type="SSDNeck",
        in_channels=(512, 1024),
        out_channels=channels,
        level_strides=(2, 2, 1, 1),
        level_paddings=(1, 1, 0, 0),
        l2_norm_scale=20,
    )
    head = _head(num_classes, channels, _anchors300(num_classes))
    return _build(backbone, neck, head, 300, CAFFE_MEAN, CAFFE_STD)


def ssd300_resnet50(num_classes: int = 20) -> nn.Module:
    """SSD300 on ResNet-50's C3 and C4, with the six maps and default boxes of the VGG-16 form.

    The publication does not say which stages it reads; C4 at 19x19 in the place of fc7 keeps SSD300's geometry.
    """
    backbone = dict(
        type="ResNet",
        depth=50,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2),
        norm_eval=False,
    )
    channels = (512, 1024, 512, 256, 256, 256)
    neck = dict(
        type="SSDNeck",
        in_channels=(512, 1024),
        out_channels=channels,
        level_strides=(2, 2, 1, 1),
        level_paddings=(1, 1, 0, 0),
        l2_norm_scale=20,
    )
    head = _head(num_classes, channels, _anchors300(num_classes))
    return _build(backbone, neck, head, 300, IMAGENET_MEAN, IMAGENET_STD)


class NarrowVGG(nn.Module):
    """VGG's pattern with batch norm for small images: 3x3 convolutions in pairs, a pooling behind each pair.

    ``widths`` are the filters of eight convolutions; the first strides by two.  Gives the maps at stride 8 and 16.
    """

    def __init__(self, widths: Sequence[int] = (24, 32, 48, 64, 96, 96, 128, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for place, width in enumerate(widths):
            if place in (2, 4, 6):
                layers.append(nn.MaxPool2d(2))
            layers += [
                nn.Conv2d(inputs, width, 3, 2 if place == 0 else 1, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            inputs = width
        self.features = nn.Sequential(*layers)
        self.fine = 3 * 6 + 2 - 1  # the ReLU behind the sixth convolution, two poolings before it

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """N x 3 x H x W to maps of H/8 and H/16."""
        fine = x
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place == self.fine:
                fine = x
        return fine, x


def narrow_ssd(num_classes: int = 10, size: int = 160, widths: Sequence[int] | None = None) -> nn.Module:
    """SSD in about 0.9 M parameters for the embedded scale: maps of 20, 10, 5 and 3 cells for 160x160 images.

    Default boxes have sides of 16 to 130 pixels at any input size, which must be a multiple of 16.
    """
    if size % 16:
        raise UserError(f"an input of {size}x{size} does not fit the narrow SSD: give a multiple of 16")
    widths = tuple(widths or (24, 32, 48, 64, 96, 96, 128, 128))
    channels = (widths[5], widths[7], 128, 128)
    neck = dict(
        type="SSDNeck",
        in_channels=channels[:2],
        out_channels=channels,
        level_strides=(2, 2),
        level_paddings=(1, 1),
        l2_norm_scale=20,
        norm_cfg=dict(type="BN"),
    )
    cells = [size // 8, size // 16]
    for _ in range(2):
        cells.append((cells[-1] + 1) // 2)
    anchors = dict(
        input_size=size,
        strides=[math.ceil(size / count) for count in cells],
        min_sizes=[16, 32, 56, 90],
        max_sizes=[32, 56, 90, 130],
        ratios=[[2], [2, 3], [2, 3], [2]],
    )
    head = _head(num_classes, channels, anchors)
    return _build(dict(type="NarrowVGG", widths=widths), neck, head, size, IMAGENET_MEAN, IMAGENET_STD)
