"""Detectors' training and batches: repeatable, resumed, in two processes; boxes and colours by images drawn here."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import children
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.data.annotations import DetectionSplit
from bench.data.scenes import scenes_detection
from bench.data.voc import voc_folder
from bench.errors import UserError
from bench.models.capture import captured
from bench.models.recipe import Recipe
from bench.models.ssd import CAFFE_MEAN, SSD
from bench.train.cropping import MinIoUCrop
from bench.train.detector import Batches, Detector, batches, detect, fit_detector, training_pipeline
from bench.train.fit import seed_everything
from bench.train.schedule import Schedule

SIZE, POSITION = 64, "backbone.features.17"
RECIPE = Recipe("narrow_ssd", {"num_classes": 10, "size": SIZE, "widths": [4, 4, 6, 6, 8, 8, 8, 8]}, (3, SIZE, SIZE))
SCHEDULE = Schedule(epochs=2, lr=2e-3, batch=4, shape="cosine", clip=10.0, optimizer="AdamW")


@functools.cache
def scenes() -> DetectionSplit:
    """All training scenes, read once."""
    return scenes_detection(SIZE, progress=False).train


def few(count: int = 8) -> DetectionSplit:
    """The first training scenes."""
    whole = scenes()
    (build,) = whole.builders
    return DetectionSplit(
        whole.annotations[:count], [lambda pipeline, training: build(pipeline, training).get_subset(list(range(count)))]
    )


@pytest.fixture(scope="module")
def split() -> DetectionSplit:
    return few()


def network(seed: int = 3) -> SSD:
    seed_everything(seed)
    net = RECIPE.build()
    assert isinstance(net, SSD)
    return net


def state(*nets: nn.Module) -> Tensor:
    """Every parameter and buffer in one vector."""
    return torch.cat([value.flatten().double() for net in nets for value in net.state_dict().values()])


class Mean(nn.Module):
    """An auxiliary network: the squared mean of each channel, weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, features: Tensor, samples: list[Any]) -> dict[str, Tensor]:
        return {"loss_ac": (features.mean((0, 2, 3)).square() * self.weight).sum() + 0.0 * len(samples)}


def fitted(
    split: DetectionSplit, work: Path, seed: int = 0, start: int = 3, schedule: Schedule = SCHEDULE, **more: Any
) -> SSD:
    net = network(start)
    fit_detector(
        net, split, schedule, seed, work, "cpu", "training", mirror=False, zoom_out=1.0, progress=False, **more
    )
    return net


@pytest.fixture(scope="module")
def undisturbed(split: DetectionSplit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Path]:
    """The weights after two epochs with an auxiliary network, and the work folder."""
    work, auxiliary = tmp_path_factory.mktemp("work"), Mean()
    net = fitted(split, work, auxiliary=auxiliary, position=POSITION)
    return state(net, auxiliary), work


def test_the_seed_decides_everything(split: DetectionSplit, undisturbed: tuple[Tensor, Path], tmp_path: Path) -> None:
    auxiliary = Mean()
    again = fitted(split, tmp_path / "again", auxiliary=auxiliary, position=POSITION)
    assert torch.equal(state(again, auxiliary), undisturbed[0])
    other = fitted(split, tmp_path / "other", seed=1, auxiliary=auxiliary, position=POSITION)
    assert not torch.equal(state(other), state(again))


def test_stopped_after_an_epoch_and_resumed_equals_undisturbed(
    split: DetectionSplit, undisturbed: tuple[Tensor, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power goes in the second epoch; another process starts from other weights and other random states."""
    forward, calls = Detector.forward, []

    def fragile(self: Detector, *args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # two batches an epoch
            raise KeyboardInterrupt
        return forward(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "forward", fragile)
        with pytest.raises(KeyboardInterrupt):
            fitted(split, tmp_path, auxiliary=Mean(), position=POSITION)
    assert torch.load(tmp_path / "checkpoint.pth", weights_only=False)["meta"]["epoch"] == 1
    auxiliary = Mean()
    nn.init.normal_(auxiliary.weight)
    net = fitted(split, tmp_path, start=99, auxiliary=auxiliary, position=POSITION)
    assert torch.equal(state(net, auxiliary), undisturbed[0])


def test_a_finished_training_is_only_loaded(
    split: DetectionSplit, undisturbed: tuple[Tensor, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the last epoch and the storing of its result: nothing is trained again."""
    monkeypatch.setattr(Detector, "forward", lambda *args, **more: pytest.fail("trained on"))
    auxiliary = Mean()
    net = fitted(split, undisturbed[1], start=99, auxiliary=auxiliary, position=POSITION)
    assert torch.equal(state(net, auxiliary), undisturbed[0])


def test_training_moves_both_networks_and_leaves_them_ready(undisturbed: tuple[Tensor, Path], tmp_path: Path) -> None:
    auxiliary = Mean()
    net = fitted(few(4), tmp_path, auxiliary=auxiliary, position=POSITION, schedule=Schedule(1, 1e-2, 4))
    assert not net.training and not auxiliary.training
    assert not torch.equal(auxiliary.weight.detach(), torch.ones(8))
    before = dict(network().named_parameters())
    # the layers of the fine map: four images may have nothing for the coarser ones to learn from
    fine = [name for name in before if name.startswith("backbone") and int(name.split(".")[2]) < 18]
    assert fine and all(not torch.equal(net.get_parameter(name), before[name]) for name in fine)
    assert not net.get_submodule(POSITION)._forward_hooks


def test_the_loss_of_both_networks_is_a_sum(split: DetectionSplit) -> None:
    """L_f = L_a + L_c + L_r by mmengine's sum of all losses, against the parts computed one by one."""
    net, auxiliary = network().eval(), Mean()
    pixels, samples = next(batches(split, SIZE, [0, 1], 2, boxes=True))
    images = net.normalised(pixels)
    whole = Detector(net, auxiliary, POSITION)
    losses = whole(pixels, samples)
    total, _ = whole.parse_losses(losses)
    own = net.loss(net(images), samples)
    with captured(net, POSITION) as seen:
        net(images)
    expected = own["loss_cls"] + own["loss_bbox"] + auxiliary(seen[0], samples)["loss_ac"]
    torch.testing.assert_close(total, expected)
    assert set(losses) == {"loss_cls", "loss_bbox", "auxiliary_loss_ac"}
    assert float(own["loss_cls"]) > 0 and float(own["loss_bbox"]) > 0
    alone, _ = Detector(net).parse_losses(Detector(net)(pixels, samples))
    torch.testing.assert_close(alone, own["loss_cls"] + own["loss_bbox"])


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bf16")
def test_one_step_in_bf16_is_nearly_that_in_fp32(tmp_path: Path) -> None:
    """mmdet's losses too take what autocast gives; the weights stay in fp32."""
    steps = []
    for amp in (False, True):
        (tmp_path / str(amp)).mkdir()
        one = Schedule(1, 1e-3, 4, momentum=0.0, amp=amp)
        net = fitted(few(4), tmp_path / str(amp), schedule=one)
        assert all(weight.dtype == torch.float32 for weight in net.parameters())
        steps.append(state(net) - state(network()))
    full, mixed = steps
    assert 1e-4 < float((mixed - full).norm() / full.norm()) < 0.1


def test_a_loss_that_is_no_number_ends_in_one_line(split: DetectionSplit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learning rate") as caught:
        fitted(split, tmp_path, schedule=Schedule(epochs=9, lr=1e30, batch=4))
    assert "\n" not in str(caught.value)


def test_one_batch_is_enough(tmp_path: Path) -> None:
    """A set no larger than the batch, for one epoch: one iteration, by the schedule of the stages."""
    net = fitted(few(4), tmp_path, schedule=replace(SCHEDULE, epochs=1))
    assert not torch.equal(state(net), state(network()))


def test_a_network_can_be_built_after_a_training(undisturbed: tuple[Tensor, Path]) -> None:
    """mmengine's Runner leaves a default scope behind, in which mmdet's parts must still be found."""
    assert type(network().bbox_head.assigner.iou_calculator).__name__ == "BboxOverlaps2D"


# --------------------------------------------------------------------------------------------------------------------
# Batches


def devkit(folder: Path, image: np.ndarray, boxes: list[tuple[int, int, int, int, int]]) -> DetectionSplit:
    """A VOC folder with one image (H x W x 3, RGB) for training; boxes are xmin, ymin, xmax, ymax, difficult."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for stem, part in (("one", "trainval"), ("two", "test")):
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text(f"{stem}\n")
        Image.fromarray(image).save(folder / "JPEGImages" / f"{stem}.jpg", quality=100, subsampling=0)
        objects = "".join(
            f"<object><name>thing</name><difficult>{hard}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for x1, y1, x2, y2, hard in boxes
        )
        height, width = image.shape[:2]
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return voc_folder(folder, SIZE, "drawn", progress=False).train


def test_boxes_shrink_with_their_image_and_red_stays_red(tmp_path: Path) -> None:
    """An image of 100x50 at 40x40: x by 0.4, y by 0.8; VOC counts pixels from one; difficult objects are apart."""
    red = np.zeros((50, 100, 3), dtype=np.uint8)
    red[..., 0] = 250
    split = devkit(tmp_path, red, [(11, 6, 61, 31, 0), (21, 11, 41, 21, 1)])
    ((pixels, (sample,)),) = list(batches(split, 40, [0], 4, boxes=True))
    assert pixels.shape == (1, 3, 40, 40)
    assert [round(float(channel.float().mean())) for channel in pixels[0]] == [
        pytest.approx(250, abs=3),
        pytest.approx(0, abs=3),
        pytest.approx(0, abs=3),
    ]
    torch.testing.assert_close(sample.gt_instances.bboxes, torch.tensor([[10 * 0.4, 5 * 0.8, 60 * 0.4, 30 * 0.8]]))
    assert sample.gt_instances.labels.tolist() == [0]
    torch.testing.assert_close(
        sample.ignored_instances.bboxes, torch.tensor([[20 * 0.4, 10 * 0.8, 40 * 0.4, 20 * 0.8]])
    )
    assert isinstance(sample.gt_instances.bboxes, Tensor)
    assert tuple(sample.img_shape) == tuple(sample.pad_shape) == tuple(sample.batch_input_shape) == (40, 40)
    assert sample.ori_shape == (50, 100) and sample.scale_factor == pytest.approx((0.4, 0.8))
    net = network().eval()
    channels = net.normalised(pixels)[0].mean((1, 2))
    torch.testing.assert_close(channels[0], torch.tensor((250 / 255 - 0.485) / 0.229), rtol=0.02, atol=0.02)
    torch.testing.assert_close(channels[2], torch.tensor(-0.406 / 0.225), rtol=0.02, atol=0.02)


def test_for_evaluation_no_ground_truth_is_resized(tmp_path: Path) -> None:
    split = devkit(tmp_path, np.zeros((50, 100, 3), dtype=np.uint8), [(11, 6, 61, 31, 0)])
    ((_, (sample,)),) = list(batches(split, 40, [0], 4))
    assert len(sample.gt_instances) == 0


def test_batches_come_in_the_order_asked_for(split: DetectionSplit) -> None:
    places = [5, 0, 3, 3, 7]
    found = list(batches(split, SIZE, places, 2, boxes=True))
    assert [len(samples) for _, samples in found] == [2, 2, 1]
    ids = [sample.img_id for _, samples in found for sample in samples]
    assert ids == [split.annotations[place].image_id for place in places]
    for place, sample in zip(places, [s for _, samples in found for s in samples], strict=True):
        truth = split.annotations[place]
        torch.testing.assert_close(sample.gt_instances.bboxes, truth.boxes[~truth.difficult] * SIZE / 160)
        assert torch.equal(sample.gt_instances.labels, truth.labels[~truth.difficult])


@pytest.mark.parametrize("zoom_out", [1.0, 2.0])
def test_augmented_boxes_lie_where_the_object_is(tmp_path: Path, zoom_out: float) -> None:
    """A white rectangle on the mean's grey, cropped, zoomed, mirrored and recoloured: its box follows the pixels."""
    image = np.zeros((100, 120, 3), dtype=np.uint8) + np.array([round(value) for value in CAFFE_MEAN], dtype=np.uint8)
    image[20:50, 15:75] = 255
    split = devkit(tmp_path, image, [(16, 21, 75, 50, 0)])
    net = network()
    dataset = split.dataset(training_pipeline(net, True, zoom_out), training=True)
    flips = []
    for seed in range(40):
        pixels, (sample,) = Batches(dataset, seed)[[0]]
        grey = pixels[0].float().mean(0)
        bright = grey > (grey.max() + grey.min()) / 2
        rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
        seen = torch.stack([columns[0], rows[0], columns[-1], rows[-1]]).float()
        assert pixels.shape == (1, 3, SIZE, SIZE)
        # one pixel of the image may be three of the crop; another place, side or size would be further off
        assert float((sample.gt_instances.bboxes - seen).abs().max()) < 4.5
        flips.append(bool(sample.flip))
    assert 8 < sum(flips) < 32


def test_digits_are_not_mirrored(split: DetectionSplit) -> None:
    dataset = split.dataset(training_pipeline(network(), False, 1.0), training=True)
    assert not any(sample.flip for seed in range(4) for sample in Batches(dataset, seed)[list(range(8))][1])


def test_a_batch_is_the_same_in_whatever_process_it_is_made(split: DetectionSplit) -> None:
    """Augmentation follows from seed, epoch and place alone; here, before and after other batches, in workers."""
    data = Batches(split.dataset(training_pipeline(network(), True, 2.0), training=True), 0)
    chunks = [[0, 1], [2, 3], [1, 0], [4, 5]]
    seed_everything(1)
    here = [data[chunk][0] for chunk in reversed(chunks)][::-1]
    seed_everything(2)
    loader = DataLoader(data, sampler=chunks, batch_size=None, num_workers=2)  # type: ignore[arg-type]
    for one, (other, _) in zip(here, loader, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(Batches(data.dataset, 1)[[0, 1]][0], here[0])
    assert torch.equal(here[2][[1, 0]], here[0])  # whatever the neighbours


def test_zooming_out_fills_with_the_mean_s_colour(split: DetectionSplit) -> None:
    """The border that Expand adds, after our change to RGB, is the network's mean: zero once normalised."""
    net = network()
    steps = training_pipeline(net, False, 4.0)
    assert steps[2]["type"] == "mmdet.Expand" and isinstance(steps[3], MinIoUCrop)
    data = Batches(split.dataset([*steps[:3], steps[-1] | {"meta_keys": ("img_id", "img_shape")}], training=True), 0)
    borders = []
    for place in range(8):
        pixels, (sample,) = data[[place]]
        if sample.img_shape != (160, 160):
            corner = (
                pixels[0, :, -1, -1] if bool((pixels[0, :, -1] == pixels[0, :, -1, -1:]).all()) else pixels[0, :, 0, 0]
            )
            borders.append(net.normalised(corner[None, :, None, None]).flatten())
    assert len(borders) >= 2
    for border in borders:
        torch.testing.assert_close(border, torch.zeros(3), rtol=0, atol=0.02)


# --------------------------------------------------------------------------------------------------------------------
# Detection


def test_detections_do_not_depend_on_the_batch_and_are_in_the_image_s_pixels(split: DetectionSplit) -> None:
    net = network().eval()
    with torch.no_grad():
        for conv in net.bbox_head.cls_convs:
            conv[0].bias.normal_(0.0, 1.5)
    by_one, by_three = (detect(net, split, "cpu", batch=batch, progress=False) for batch in (1, 3))
    assert len(by_one) == len(by_three) == 8
    for one, three in zip(by_one, by_three, strict=True):
        torch.testing.assert_close(one.scores, three.scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(one.labels, three.labels)
        torch.testing.assert_close(one.boxes, three.boxes, rtol=1e-4, atol=1e-2)
    # by hand for one image: mmdet's boxes in the pixels of the input, enlarged from 64 to 160
    pixels, samples = next(batches(split, SIZE, [2], 1))
    with torch.no_grad():
        maps = net(net.normalised(pixels))
    half = len(maps) // 2
    (plain,) = net.bbox_head.predict_by_feat(
        list(maps[:half]), list(maps[half:]), batch_img_metas=[samples[0].metainfo], rescale=False
    )
    torch.testing.assert_close(by_one[2].boxes, plain.bboxes * (160 / SIZE), rtol=1e-3, atol=1e-2)
    assert float(by_one[2].boxes.max()) > SIZE


# --------------------------------------------------------------------------------------------------------------------
# Two processes


def _together(folder: Path) -> None:
    """Trains with the other process and keeps the parameters."""
    net, auxiliary = network(), Mean()
    fit_detector(
        net, few(), SCHEDULE, 0, folder / "work", "cpu", "training", auxiliary=auxiliary, position=POSITION,
        mirror=False, zoom_out=1.0, progress=False,
    )  # fmt: skip
    parameters = torch.cat([p.detach().flatten() for p in (*net.parameters(), *auxiliary.parameters())])
    torch.save(parameters, folder / f"rank{os.environ['RANK']}")


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path) -> None:
    """With gloo on the CPU: both processes end with the same weights, which are not the fresh ones."""
    fresh = torch.cat([p.detach().flatten() for p in (*network().parameters(), *Mean().parameters())])
    children.two_ranks(_together, tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}") for rank in (0, 1))
    assert torch.equal(first, second)
    assert bool((first[:108] != fresh[:108]).all()) and bool((first[-8:] != 1).all())  # 4 filters of 3x3x3; Mean
    assert torch.load(tmp_path / "work" / "checkpoint.pth", weights_only=False)["meta"]["epoch"] == 2
