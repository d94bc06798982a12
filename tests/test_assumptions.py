"""What is assumed of a user's network can be seen and set, and a network that it does not suit says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bench import api
from bench.api import Inputs
from bench.assumptions import read_classes, relabelled, three, warnings
from bench.data.images import ImageSet
from bench.errors import UserError

NAMES = ("ant", "bee", "cat", "dog")
LEVELS = (30.0, 90.0, 150.0, 210.0)  # the classes' brightness


def bright(root: Path, train: int = 30, test: int = 15, darker: float = 1.0) -> Path:
    """Four classes by brightness, with noise, 16 x 16; ``darker`` divides it all."""
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for name, level in zip(NAMES, LEVELS, strict=True):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(generator.normal(level, 15, (16, 16, 3)), 0, 255) / darker
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{number}.png")
    return root


class Nearest(nn.Module):
    """A network that knows the classes' brightness in 0 to 1 under its own normalisation, by construction.

    The logit of class k is -(b - level_k)^2 + b^2 = 2 b level_k - level_k^2 of the mean brightness b: linear in it, so
    the network is exact for inputs normalised with ``mean`` and ``std`` alone.  ``order`` says which output is a class.
    """

    def __init__(
        self, mean: float, std: float, outputs: int = 4, order: tuple[int, ...] = (0, 1, 2, 3), darker: float = 1.0
    ) -> None:
        super().__init__()
        # the channels pass on the brightness, shifted so that ReLU keeps all of it
        self.enter, self.next = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, outputs)
        levels = torch.tensor(LEVELS) / 255.0 / darker
        with torch.no_grad():
            self.enter.weight.fill_(std / 3)
            self.enter.bias.fill_(mean + 10.0)  # type: ignore[union-attr]
            self.next.weight.fill_(1 / 6)
            self.next.bias.zero_()  # type: ignore[union-attr]
            self.head.weight.zero_()
            self.head.bias.fill_(-1e4)
            for label, output in enumerate(order):
                self.head.weight[output] = 2 * levels[label] / 6
                self.head.bias[output] = -levels[label].square() - 20 * levels[label]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.next(torch.relu(self.enter(x)))).mean((2, 3)))


def run(model: nn.Module, root: Path, **options: Any) -> tuple[api.Pruned, list[str]]:
    lines: list[str] = []
    found = api.prune(
        model.eval(), root, size=16, speedup=1.2, method="exact", progress=False, tell=lines.append, **options
    )
    return found, lines


def top1(found: api.Pruned) -> float:
    return found.dense_records[0].value


@pytest.mark.parametrize(
    ("mean", "std", "name"),
    [(0.5, 0.5, "-1 to 1"), (0.0, 1.0, "0 to 1"), (0.0, 1 / 255, "0 to 255")],
)
def test_the_normalisation_is_found_and_stated(tmp_path: Path, mean: float, std: float, name: str) -> None:
    found, lines = run(Nearest(mean, std), bright(tmp_path))
    assert top1(found) > 95.0
    assert found.inputs["normalisation"].startswith(f"found: {name} (")
    assert (found.inputs["mean"], found.inputs["std"]) == ([mean] * 3, [std] * 3)
    assert not found.warnings
    assert "dense network: top1_acc" in lines[1] and lines[0].startswith("inputs: mean")
    assert found.facts()["inputs"] == found.inputs


def test_the_training_images_own_statistics_are_tried(tmp_path: Path) -> None:
    root = bright(tmp_path, darker=5.0)
    pixels = np.concatenate([np.asarray(Image.open(path)).reshape(-1) for path in (root / "train").rglob("*.png")])
    mean, std = float(pixels.mean() / 255), float(pixels.std() / 255)
    found, _ = run(Nearest(mean, std, darker=5.0), root)
    assert found.inputs["normalisation"].startswith("found: the training images' own (") and top1(found) > 95.0
    assert found.inputs["mean"] == pytest.approx([mean] * 3, abs=0.003)
    assert found.inputs["std"] == pytest.approx([std] * 3, rel=0.02)


def test_a_given_normalisation_is_used_whatever_the_accuracy(tmp_path: Path) -> None:
    model = Nearest(0.3, 0.9)
    right, _ = run(model, bright(tmp_path), mean=0.3, std=[0.9] * 3)
    assert top1(right) > 95.0 and right.inputs["normalisation"] == "given" and not right.warnings
    wrong, lines = run(model, tmp_path, mean=0.9, std=0.01)
    assert top1(wrong) <= 30.0
    assert len(wrong.warnings) == 1 and "no better than guessing (25.0 %)" in wrong.warnings[0]
    assert f"warning: {wrong.warnings[0]}" in lines


def test_imagenet_s_stays_where_nothing_is_clearly_better(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found, _ = run(nn.Sequential(*model, nn.Linear(6, 4)), bright(tmp_path, train=4))
    assert found.inputs["normalisation"].startswith("assumed: ImageNet's")
    assert found.inputs["mean"] == [0.485, 0.456, 0.406]


def test_classes_in_another_order_are_told_and_can_be_given(tmp_path: Path) -> None:
    """Outputs 0, 1, 2, 3 are dog, ant, cat, bee: 25 % in alphabetical order, all of it in the given one."""
    model = Nearest(0.5, 0.5, order=(1, 3, 2, 0))
    found, _ = run(model, bright(tmp_path), mean=0.5, std=0.5)
    assert top1(found) == 25.0
    told = [line for line in found.warnings if "another order" in line]
    assert len(told) == 1 and "ant = output 1, bee = output 3, dog = output 0" in told[0] and "100.0 %" in told[0]
    found, _ = run(model, tmp_path, mean=0.5, std=0.5, classes=["dog", "ant", "cat", "bee"])
    assert top1(found) > 95.0 and not found.warnings
    assert found.inputs["classes"] == ["dog", "ant", "cat", "bee"] and found.inputs["classes_from"] == "given"


def test_more_outputs_than_classes_are_told_and_can_be_named(tmp_path: Path) -> None:
    model = Nearest(0.5, 0.5, outputs=9, order=(5, 6, 7, 2))
    found, _ = run(model, bright(tmp_path), mean=0.5, std=0.5)
    assert top1(found) == 0.0
    assert any("has 9 outputs, the data 4 classes" in line for line in found.warnings)
    (tmp_path / "names.txt").write_text("-\n-\ndog\n-\n-\nant\nbee\ncat\n-\n")
    found, _ = run(model, tmp_path, mean=0.5, std=0.5, classes=str(tmp_path / "names.txt"))
    assert top1(found) > 95.0 and not found.warnings


def test_a_right_network_gets_no_warning_and_noise_none_of_another_order() -> None:
    """Logits that know nothing, 200 sets of them: an order chosen on them is not believed."""
    generator = torch.Generator().manual_seed(0)
    told = 0
    for _ in range(200):
        labels = torch.randint(5, (60,), generator=generator)
        found = warnings(torch.randn(60, 5, generator=generator), labels, Inputs(), "abcde")
        told += any("another order" in line for line in found)
    assert told <= 2
    assert warnings(torch.eye(5)[labels], labels, Inputs(), "abcde") == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(mean=(0.5,) * 3), "both --mean and --std"),
        (dict(mean=(123.0, 117.0, 104.0), std=(1.0,) * 3), "divide by 255"),
        (dict(mean=(0.5,) * 3, std=(0.0,) * 3), "std above 0"),
        (dict(mean=(0.5, 0.5), std=(0.5, 0.5)), "three numbers"),
        (dict(mean=(float("nan"),) * 3, std=(0.5,) * 3), "three numbers"),
        (dict(interpolation="cubic"), "bicubic"),
        (dict(protocol="crop"), "short256"),
        (dict(classes=("ant", "bee", "ant")), "'ant' twice"),
    ],
)
def test_options_that_make_no_sense_get_one_line(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Inputs(**options)


def test_class_lists(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a b\n\n c \n")
    assert read_classes(str(tmp_path / "list")) == ("a b", "c")
    assert read_classes("x, y,z") == ("x", "y", "z")
    with pytest.raises(UserError, match="no file and no list"):
        read_classes("absent.txt")
    assert three(0.5) == (0.5, 0.5, 0.5) and three(None) is None


def test_class_lists_that_do_not_fit_the_data(tmp_path: Path) -> None:
    from bench.data.folder import image_folder

    data: ImageSet = image_folder(bright(tmp_path, train=1, test=1), 16, "short256", progress=False)
    with pytest.raises(UserError, match="does not name 'cat'"):
        relabelled(data, ["ant", "bee", "dog", "cow"], 4)
    with pytest.raises(UserError, match="names 5 outputs, the network has 4"):
        relabelled(data, [*NAMES, "cow"], 4)
    with pytest.raises(UserError, match="at least 4 logits"):
        relabelled(data, None, 3)
    moved = relabelled(data, ["dog", "-", "cat", "bee", "ant"], 5)
    assert moved.test.labels.tolist() == [4, 3, 2, 0] and data.test.labels.tolist() == [0, 1, 2, 3]
