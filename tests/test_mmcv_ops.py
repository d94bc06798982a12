"""mmcv's operations over torchvision's, called through mmcv.ops: against loops, finite differences, mmcv's docs."""

from __future__ import annotations

import importlib
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench import mmcv_ops
from bench.errors import UserError

mmcv_ops.install()
import mmcv  # noqa: E402
from mmcv.ops import RoIAlign, batched_nms, nms, nms_match, roi_align, soft_nms  # noqa: E402

PRESENT = sys.modules["mmcv._ext"]


def random_boxes(seed: int, count: int, whole: bool = False) -> tuple[Tensor, Tensor]:
    """Crowded boxes (count x 4, corners) with distinct scores; ``whole`` pixels as in the VOC devkit."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 30 + 1], dim=1)
    scores = (torch.randperm(count, generator=generator) + 1.0) / (count + 1)
    return boxes.round() if whole else boxes, scores


def plain_iou(a: list[float], b: list[float], offset: float) -> float:
    """Intersection over union with sides x2 - x1 + offset, in double precision."""
    wide = min(a[2], b[2]) - max(a[0], b[0]) + offset
    tall = min(a[3], b[3]) - max(a[1], b[1]) + offset
    both = max(wide, 0.0) * max(tall, 0.0)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return both / (sum(areas) - both)


def plain_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    """Greedy suppression: the best box stays, those that overlap it by more than the threshold go, and so on."""
    rows, values = boxes.double().tolist(), scores.tolist()
    left = sorted(range(len(rows)), key=lambda i: -values[i])
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if plain_iou(rows[best], rows[i], offset) <= threshold]
    return kept


def plain_soft_nms(
    boxes: Tensor, scores: Tensor, threshold: float, sigma: float, floor: float, method: str, offset: int
) -> tuple[list[int], list[float]]:
    """Bodla et al. 2017, figure 2: take the best box, rescore the others by f(IoU), drop those below the floor."""
    rows, values = boxes.double().tolist(), scores.double().tolist()
    left, order, final = list(range(len(rows))), [], []
    while left:
        best = max(left, key=lambda i: values[i])
        left.remove(best)
        order.append(best)
        final.append(values[best])
        for i in left:
            overlap = plain_iou(rows[best], rows[i], offset)
            if method == "gaussian":
                values[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                values[i] *= 1.0 - overlap if method == "linear" else 0.0
        left = [i for i in left if values[i] >= floor]
    return order, final


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 25),
    offset=st.integers(0, 1),
    whole=st.booleans(),
    threshold=st.sampled_from([0.0612, 0.3171, 0.5237, 0.7531]),
)
def test_nms_is_greedy(seed: int, count: int, offset: int, whole: bool, threshold: float) -> None:
    """The same places in the same order, and boxes with their scores, for continuous and for whole pixels."""
    boxes, scores = random_boxes(seed, count, whole)
    found, places = nms(boxes, scores, threshold, offset)
    assert places.tolist() == plain_nms(boxes, scores, threshold, offset)
    assert torch.equal(found, torch.cat([boxes, scores[:, None]], dim=1)[places])


def test_offset_decides_between_two_boxes() -> None:
    """A box inside the right part of another: IoU 4/10 of continuous sides, 5/11 of pixels, on both sides of 0.43."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 0.5], [6.0, 0.0, 10.0, 0.5]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.43, offset=0)[1].tolist() == [0, 1]  # 4 / 10
    assert nms(boxes, scores, 0.43, offset=1)[1].tolist() == [0]  # 5 / 11


def test_nms_by_score_and_count() -> None:
    """mmcv's own filter by score and limit on the count, over our operation; the input is left as it was."""
    boxes, scores = random_boxes(3, 40)
    before = boxes.clone()
    expected = [i for i in plain_nms(boxes, scores, 0.4, 1) if scores[i] > 0.3]
    assert nms(boxes, scores, 0.4, 1, score_threshold=0.3)[1].tolist() == expected
    assert nms(boxes, scores, 0.4, 1, max_num=4)[1].tolist() == plain_nms(boxes, scores, 0.4, 1)[:4]
    assert torch.equal(boxes, before)


def test_nms_of_mmcv_s_documentation() -> None:
    """The example in mmcv.ops.nms: seven boxes, three are kept."""
    boxes = torch.tensor(
        [
            [49.1, 32.4, 51.0, 35.9],
            [49.3, 32.9, 51.0, 35.3],
            [49.2, 31.8, 51.0, 35.4],
            [35.1, 11.5, 39.1, 15.7],
            [35.6, 11.8, 39.3, 14.2],
            [35.3, 11.5, 39.9, 14.5],
            [35.2, 11.7, 39.7, 15.7],
        ]
    )
    scores = torch.tensor([0.9, 0.9, 0.5, 0.5, 0.5, 0.4, 0.3])
    found, places = nms(boxes.numpy(), scores.numpy(), 0.6)
    assert len(found) == len(places) == 3


def test_batched_nms_is_nms_class_by_class() -> None:
    """What SSD's head calls: no box suppresses a box of another class."""
    boxes, scores = random_boxes(5, 60)
    labels = torch.arange(60) % 3
    expected = []
    for label in range(3):
        places = (labels == label).nonzero().flatten()
        expected += places[plain_nms(boxes[places], scores[places], 0.45, 0)].tolist()
    found, kept = batched_nms(boxes, scores, labels, dict(type="nms", iou_threshold=0.45))
    assert kept.tolist() == sorted(expected, key=lambda i: -float(scores[i]))
    torch.testing.assert_close(found, torch.cat([boxes, scores[:, None]], dim=1)[kept])


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 18),
    offset=st.integers(0, 1),
    method=st.sampled_from(["naive", "linear", "gaussian"]),
    threshold=st.sampled_from([0.1234, 0.3171, 0.6177]),
    sigma=st.sampled_from([0.2, 0.5, 1.3]),
    floor=st.sampled_from([1e-3, 0.05, 0.31]),
)
def test_soft_nms_as_published(
    seed: int, count: int, offset: int, method: str, threshold: float, sigma: float, floor: float
) -> None:
    boxes, scores = random_boxes(seed, count)
    order, final = plain_soft_nms(boxes, scores, threshold, sigma, floor, method, offset)
    before = scores.clone()
    found, places = soft_nms(boxes, scores, threshold, sigma, floor, method, offset)
    assert places.tolist() == order
    assert torch.equal(found[:, :4], boxes[order])
    torch.testing.assert_close(found[:, 4].tolist(), final, rtol=1e-4, atol=1e-6)
    assert torch.equal(scores, before)


def test_naive_soft_nms_is_nms() -> None:
    boxes, scores = random_boxes(7, 40)
    kept = soft_nms(boxes, scores, 0.4, min_score=1e-6, method="naive")[1].tolist()
    assert kept == plain_nms(boxes, scores, 0.4, 0)


def test_soft_nms_of_mmcv_s_documentation() -> None:
    """The example in mmcv.ops.soft_nms, boxes of zero area among them: five of six are kept."""
    boxes = torch.tensor([[4.0, 3, 5, 3], [4, 3, 5, 4], [3, 1, 3, 1], [3, 1, 3, 1], [3, 1, 3, 1], [3, 1, 3, 1]])
    scores = torch.tensor([0.9, 0.9, 0.5, 0.5, 0.4, 0.0])
    found, places = soft_nms(boxes.numpy(), scores.numpy(), 0.6, sigma=0.5)
    assert len(found) == len(places) == 5


def bilinear(plane: list[list[float]], y: float, x: float) -> float:
    """RoIAlign's interpolation: zero further than one cell outside the map, else the nearest edge."""
    height, width = len(plane), len(plane[0])
    if y < -1.0 or y > height or x < -1.0 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = plane[top][left] * (1 - dx) + plane[top][right] * dx
    lower = plane[bottom][left] * (1 - dx) + plane[bottom][right] * dx
    return upper * (1 - dy) + lower * dy


def plain_roi_align(
    features: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """He et al. 2017: the mean of ``ratio`` x ``ratio`` regular samples in each cell (0: as many as map cells)."""
    planes = features.tolist()
    result = torch.zeros(len(rois), features.shape[1], *size, dtype=features.dtype)
    for k, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0.0) for corner in corners)
        tall, wide = y2 - y1, x2 - x1
        if not aligned:
            tall, wide = max(tall, 1.0), max(wide, 1.0)
        cell_y, cell_x = tall / size[0], wide / size[1]
        samples_y, samples_x = (ratio or math.ceil(cell_y)), (ratio or math.ceil(cell_x))
        for c, plane in enumerate(planes[int(image)]):
            for row in range(size[0]):
                for column in range(size[1]):
                    total = sum(
                        bilinear(
                            plane,
                            y1 + (row + (i + 0.5) / samples_y) * cell_y,
                            x1 + (column + (j + 0.5) / samples_x) * cell_x,
                        )
                        for i in range(samples_y)
                        for j in range(samples_x)
                    )
                    result[k, c, row, column] = total / max(samples_y * samples_x, 1)
    return result


# the second image first; inside, under one cell, over the edge, far outside
ROIS = torch.tensor(
    [[1, 3.1, 2.2, 21.7, 17.9], [0, 8.0, 8.0, 9.3, 8.9], [0, -9.5, -3.0, 30.5, 14.2], [1, 70.0, 70.0, 90.0, 80.0]],
    dtype=torch.float64,
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
def test_roi_align_by_loops(aligned: bool, ratio: int) -> None:
    features = torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(ratio), dtype=torch.float64)
    for scale, size in ((0.25, (3, 2)), (0.31, (2, 4))):
        found = roi_align(features, ROIS, size, scale, ratio, "avg", aligned)
        torch.testing.assert_close(found, plain_roi_align(features, ROIS, size, scale, ratio, aligned))


def test_roi_align_of_no_boxes() -> None:
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    found = roi_align(features, torch.zeros(0, 5), (2, 2), 1.0, 2, "avg", True)
    assert found.shape == (0, 3, 2, 2)
    found.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))  # type: ignore[arg-type]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_s_gradient_by_finite_differences(aligned: bool, ratio: int) -> None:
    features = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda f: roi_align(f, ROIS[:3], (3, 2), 0.25, ratio, "avg", aligned), (features,), fast_mode=False
    )


def test_roi_align_s_gradient_does_not_need_contiguous_memory() -> None:
    """The gradient of a permuted output is not contiguous; it must equal the one by the chain rule on a copy."""
    found = []
    for copied in (False, True):
        features = torch.arange(60.0).reshape(1, 3, 4, 5).requires_grad_()
        out = roi_align(features, ROIS[1:3].float(), (2, 2), 0.25, 2, "avg", True)
        weights = torch.arange(float(out.numel())).reshape(2, 2, 2, 3)
        out = out.permute(0, 2, 3, 1)
        (out.contiguous() * weights if copied else out * weights).sum().backward()
        found.append(features.grad)
    torch.testing.assert_close(*found)


def test_what_is_missing_says_so_when_it_is_called() -> None:
    """Names can be imported (mmcv asks for all of them); calling one is the user's error, in one line."""
    with pytest.raises(UserError, match=r"nms_match.*MMCV_WITH_OPS") as caught:
        nms_match(torch.rand(4, 5), 0.5)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="'deform_conv_forward'"):
        PRESENT.deform_conv_forward(torch.zeros(1), stride=1)
    with pytest.raises(UserError, match="pool_mode='avg'"):
        RoIAlign((2, 2), 1.0, 2, "max")(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5))
    with pytest.raises(AttributeError):
        PRESENT.__wrapped__  # noqa: B018  # introspection must see an ordinary module


def test_installing_twice_changes_nothing() -> None:
    mmcv_ops.install()
    assert sys.modules["mmcv._ext"] is PRESENT
    assert importlib.import_module("mmcv._ext") is PRESENT


def test_a_compiled_extension_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module _ext in mmcv's own folder, as a build would leave it, is what Python finds after install()."""
    (tmp_path / "_ext.py").write_text("compiled = True\n")
    monkeypatch.setattr(mmcv, "__path__", [str(tmp_path), *mmcv.__path__])
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.setattr(mmcv, "_ext", None, raising=False)
    importlib.invalidate_caches()
    mmcv_ops.install()
    assert "mmcv._ext" not in sys.modules
    assert importlib.import_module("mmcv._ext").compiled
    mmcv_ops.install()
    assert sys.modules["mmcv._ext"].compiled


def test_without_an_extension_ours_is_put_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    mmcv_ops.install()
    module = sys.modules["mmcv._ext"]
    assert isinstance(module, types.ModuleType) and module is not PRESENT
    assert module.nms is mmcv_ops.nms


def test_opencv_without_its_libraries_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"libgl1 libglib2\.0-0") as caught:
        mmcv_ops.install()
    assert "\n" not in str(caught.value)
