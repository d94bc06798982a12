"""An embedded scale that separates methods: a scanned digit at random place, scale and rotation in a cluttered image.

The scans are those of :mod:`bench.data.digits` (scikit-learn's, 8x8).  Each image shows one of them on a textured
ground, among fragments of other scans, under noise.  Training and test images are drawn from different scans, fragments
included.  A test scan is drawn several times; its images are alike, so intervals take the scan for the unit.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.data.digits import TRAIN as DIGITS_TRAIN
from bench.data.images import ImageSet, MemorySplit
from bench.errors import UserError

SIDE = 32
TEST_SCANS, PER_TEST_SCAN, PER_TRAINING_SCAN = 400, 5, 3
SEED = 0


@dataclass(frozen=True)
class Hardness:
    """What makes the images hard.  Lengths in pixels, angles in radians, brightness in 0 to 1.

    ``digit`` and ``fragment`` bound the side that a whole scan would have, ``turn`` the digit's rotation either way.
    The digit is brighter than its ground by ``contrast``, a fragment by the share ``faint`` of that; each of the three
    colours by up to ``tint`` more or less.  ``texture`` is the deviation of each of the ground's three grains,
    ``noise`` that of each pixel.
    """

    digit: tuple[float, float] = (19.0, 27.0)
    turn: float = math.pi / 9.0
    contrast: tuple[float, float] = (0.5, 0.7)
    fragments: int = 6
    fragment: tuple[float, float] = (10.0, 17.0)
    faint: tuple[float, float] = (0.4, 0.7)
    tint: float = 0.3
    texture: float = 0.04
    noise: float = 0.08


@functools.cache
def clutter_images(size: int = SIDE, apart: bool = False) -> ImageSet:
    """4,191 training images of 1,397 scans and 2,000 test images of the other 400, 3 x 32 x 32, always the same.

    ``apart``: 3,111 training images without the 360 scans that ``digits`` is tested on, whose permutation is the same,
    so that a network can be trained on the one and tested on the other.  Raises :class:`UserError` for another
    ``size``: the clutter is drawn at 32x32.
    """
    if size != SIDE:
        raise UserError(f"clutter has images of {SIDE}x{SIDE}, not {size}x{size}: choose another --scale")
    from sklearn.datasets import load_digits  # a second and more, which most commands have no use for

    data = load_digits()
    scans = torch.from_numpy(data.images).float() / 16.0
    labels = torch.from_numpy(data.target).long()
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(scans), generator=generator)
    test, training = order[:TEST_SCANS], order[TEST_SCANS : DIGITS_TRAIN if apart else None]
    splits = []
    for own, times in ((training, PER_TRAINING_SCAN), (test, PER_TEST_SCAN)):
        shown = own.repeat_interleave(times)
        images = draw(scans[shown], scans[own], Hardness(), generator)
        units = shown if own is test else None
        splits.append(MemorySplit(images, labels[shown], (0.5,) * 3, (0.25,) * 3, pad=2, mirror=False, units=units))
    hasher = hashlib.sha256(order.numpy().tobytes())
    for split in splits:
        hasher.update(split.images.numpy().tobytes() + split.labels.numpy().tobytes())
    protocol = f"drawn at {SIDE}x{SIDE}, {PER_TEST_SCAN} test images a scan"
    name = "clutter, without the test scans of digits" if apart else "clutter"
    return ImageSet(name, hasher.hexdigest(), tuple("0123456789"), SIDE, splits[0], splits[1], protocol)


def draw(scans: Tensor, others: Tensor, hardness: Hardness, generator: torch.Generator) -> Tensor:
    """One image for each of ``scans`` (N x 8 x 8, 0 to 1): N x 3 x 32 x 32, uint8; fragments come from ``others``."""
    count = len(scans)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    canvas = _ground(count, hardness.texture, generator)
    contrast = uniform(*hardness.contrast, 1, 1, 1)
    ground = 0.5 - contrast / 2.0
    canvas = canvas + ground
    for _ in range(hardness.fragments):
        chosen = torch.randint(len(others), (count,), generator=generator)
        pieces = _cut(others[chosen], generator)
        side = uniform(*hardness.fragment)
        shift = torch.stack([uniform(-1.0, 1.0), uniform(-1.0, 1.0)], 1) * (SIDE / 2.0 - 2.0)
        alpha = _placed(pieces, side, uniform(-math.pi, math.pi), shift)
        strength = contrast * uniform(*hardness.faint, 1, 1, 1)
        canvas = canvas + alpha * strength * (1.0 + hardness.tint * uniform(-1.0, 1.0, 3, 1, 1))
    side = uniform(*hardness.digit)
    # the upright scan fits; of a turned one at most an empty corner leaves the image
    room = ((SIDE - side) / 2.0)[:, None]
    shift = torch.stack([uniform(-1.0, 1.0), uniform(-1.0, 1.0)], 1) * room
    alpha = _placed(scans, side, uniform(-hardness.turn, hardness.turn), shift)
    # the digit is painted over the fragments: it hides them and not they it
    canvas = canvas * (1.0 - alpha) + alpha * (ground + contrast * (1.0 + hardness.tint * uniform(-1.0, 1.0, 3, 1, 1)))
    canvas = canvas + hardness.noise * torch.randn(canvas.shape, generator=generator)
    return (255.0 * canvas.clamp(0.0, 1.0)).round().to(torch.uint8)


def _ground(count: int, deviation: float, generator: torch.Generator) -> Tensor:
    """``count`` x 3 x 32 x 32 of mean 0: noise of three grains, from blots of eight pixels to grains of two."""
    ground = torch.zeros(count, 3, SIDE, SIDE)
    for cells in (4, 8, 16):
        grains = torch.randn(count, 3, cells, cells, generator=generator)
        ground += F.interpolate(grains, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return deviation * ground


def _cut(scans: Tensor, generator: torch.Generator) -> Tensor:
    """Of each scan (N x 8 x 8) a window of 4x4, put into the middle: no fragment is a whole digit."""
    count = len(scans)
    corner = torch.randint(5, (2, count, 1), generator=generator)
    rows, columns = corner[0] + torch.arange(4), corner[1] + torch.arange(4)
    windows = scans[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return F.pad(windows, [2] * 4)


def _placed(scans: Tensor, side: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
    """Scans (N x 8 x 8) as N x 1 x 32 x 32: ``side`` pixels large, turned, their centres ``shift`` (N x 2) off."""
    scale = SIDE / side
    cosine, sine = scale * turn.cos(), scale * turn.sin()
    moved = shift * (2.0 / SIDE)
    # grid_sample asks where in the scan each pixel of the image lies: the inverse of the placement
    linear = torch.stack([torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)], 1)
    theta = torch.cat([linear, -(linear @ moved[:, :, None])], 2)
    grid = F.affine_grid(theta, [len(scans), 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(scans[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
