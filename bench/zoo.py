"""The networks that several papers prune, at the papers' scale and at the others, and how they are trained there."""

from __future__ import annotations

from collections.abc import Callable

from bench.models.recipe import Recipe
from bench.models.vgg import CONVS, batch_norm_convs
from bench.protocols import ANY, cosine, lookup
from bench.train.schedule import Schedule

# the embedded scales, and the side of the images that the narrow ResNets take there
EMBEDDED = {"digits": 16, "clutter": 32}
# the network at a scale, with so many classes, for the user's weights or for others
Network = Callable[[str, int, bool], Recipe]


def vgg16(scale: str, classes: int, given: bool) -> Recipe:
    """VGG-16: the papers' on large images; the CIFAR form on 32x32, half as wide, with batch norm (as that form is
    trained everywhere); a quarter of the width, without, at the embedded scales.
    """
    if scale in EMBEDDED:
        return Recipe("vgg16", {"num_classes": classes, "form": "cifar", "width": 0.25}, (3, 32, 32))
    if scale == "cifar10":
        return Recipe("vgg16_bn", {"num_classes": classes, "form": "cifar", "width": 0.5}, (3, 32, 32))
    return Recipe("vgg16", {"num_classes": classes}, (3, 224, 224))


def resnet50(scale: str, classes: int, given: bool) -> Recipe:
    """ResNet-50: v1 (Caffe stride) with the user's weights, v1.5 with torchvision's, a small bottleneck on digits."""
    if scale == "digits":
        return Recipe("bottleneck_resnet", {"num_classes": classes, "width": 0.25, "blocks": [2, 2, 2, 2]}, (3, 16, 16))
    if scale == "cifar10":
        return Recipe("resnet50", {"num_classes": classes, "caffe_stride": True, "small_input": True}, (3, 32, 32))
    return Recipe("resnet50", {"num_classes": classes, "caffe_stride": given}, (3, 224, 224))


def resnet56(scale: str, classes: int, given: bool) -> Recipe:
    """ResNet-56 at 32x32; ResNet-20 stands for it on digits (16x16), and at half its width on clutter."""
    if scale in EMBEDDED:
        width = {"width": 0.5} if scale == "clutter" else {}
        return Recipe("cifar_resnet20", {"num_classes": classes, **width}, (3, EMBEDDED[scale], EMBEDDED[scale]))
    return Recipe("cifar_resnet56", {"num_classes": classes}, (3, 32, 32))


def vgg_layers(recipe: Recipe) -> dict[str, str]:
    """VGG-16's module names by the papers' (conv1_1 and so on)."""
    return batch_norm_convs() if recipe.builder == "vgg16_bn" else CONVS


# (scale, network): how the dense network is trained where the user gives no weights; None: torchvision has them
TRAINING: dict[tuple[str, str], Schedule | None] = {
    ("imagenet", ANY): None,
    # chosen once, for dense networks of 88 to 95 % in a minute or two each; without batch norm SGD spends half of the
    # epochs on the plateau at the start, the more the narrower
    ("clutter", "vgg16"): cosine(16, 0.002, 64, weight_decay=0.01, clip=1.0, optimizer="AdamW"),
    ("clutter", ANY): cosine(8, 0.1, 64),
    # without batch norm the narrow VGG needs its gradients clipped to leave the plateau at the start
    ("digits", "vgg16"): cosine(20, 0.05, 64, clip=1.0),
    ("digits", ANY): cosine(8, 0.05, 64),
    # ours, as long as two cores allow in little more than an hour
    (ANY, "vgg16_bn"): cosine(16, 0.1, 128),
    # ResNet-56: He et al. 2016, section 4.2
    (ANY, ANY): Schedule(164, 0.1, 128, weight_decay=1e-4, shape="steps", milestones=(82, 123)),
}


def training(scale: str, recipe: Recipe) -> Schedule | None:
    """The entry of :data:`TRAINING`."""
    return lookup(TRAINING, scale, recipe)


def from_scratch(scale: str, recipe: Recipe) -> Schedule:
    """How a shape is trained from fresh weights: as the dense network is, on ImageNet as torchvision's references are.

    torchvision references/classification, README: 90 epochs, batch 256, the rate (0.1; VGG without batch norm 0.01)
    divided by ten every 30 epochs, weight decay 1e-4; with crops of random size and shape (:mod:`bench.chains`).
    """
    schedule = training(scale, recipe)
    if schedule is not None:
        return schedule
    lr = 0.01 if recipe.builder == "vgg16" else 0.1
    return Schedule(epochs=90, lr=lr, batch=256, weight_decay=1e-4, shape="steps", milestones=(30, 60))
