"""Both evaluation protocols of ImageNet in one row, on a folder of images in its layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from bench import planning, runner
from bench.chains import under_protocols
from bench.measure import protocols
from bench.models.checkpoint import checkpoint, network
from bench.models.recipe import Recipe
from bench.planning import Job
from bench.rows import Chain, Paper, Row, Setting
from bench.steps import Context, Kind, Source, Step, make_step
from bench.store import Result, Store
from bench.train.fit import seed_everything

SIDE = 72
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def recipe(scale: str, classes: int, given: bool) -> Recipe:
    return Recipe("cifar_resnet20", {"num_classes": classes, "width": 0.25}, (3, SIDE, SIDE))


@dataclass(frozen=True)
class Made:
    """The recipe and the seed of its fresh weights."""

    recipe: Recipe
    seed: int


@torch.no_grad()
def run_made(context: Context, parents: list[Result], params: Made) -> Result:
    """A network that tells half of the row's own test images from the others: no training is needed for that."""
    seed_everything(params.seed)
    model = params.recipe.build().eval()
    test = context.data().test
    margins = model(test.batch(list(range(len(test))))).diff(dim=1)[:, 0].sort().values
    model.get_submodule("linear").bias[0] += margins[len(test) // 2 - 1 : len(test) // 2 + 1].mean()
    return checkpoint(model, params.recipe)


def made(setting: Setting, recipe: Recipe, seed: int, other: int = 0) -> Step:
    params = Made(recipe, seed + other)
    return make_step(Kind.PRUNE, f"made {params.seed}", run_made, params, data=setting.data, device="cpu")


def pruned(setting: Setting, recipe: Recipe, parent: Step, seed: int) -> Step:
    return made(setting, recipe, seed, other=1)


def folder(root: Path) -> None:
    """Two classes of wide pictures with noise of coarse grain, so that it counts what a crop leaves."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 1), ("val", 16)):
        for name in ("n01", "n02"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(256, (4, 10, 3), generator=generator, dtype=torch.uint8)
                image = Image.fromarray(pixels.numpy()).resize((200, 80), Image.Resampling.BILINEAR)
                image.save(root / part / name / f"{number:02}.png")


def by_hand(root: Path, protocol: str) -> Tensor:
    """The test images as PIL resizes them, cut in the middle."""
    side, found = round(SIDE * 256 / 224), []
    for path in sorted((root / "val").rglob("*.png")):
        image = Image.open(path)
        wide = side if protocol == "squash256" else int(side * image.width / image.height)
        image = image.resize((wide, side), Image.Resampling.BICUBIC)
        left, top = round((wide - SIDE) / 2), round((side - SIDE) / 2)
        image = image.crop((left, top, left + SIDE, top + SIDE))
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(SIDE, SIDE, 3).permute(2, 0, 1)
        found.append((pixels / 255.0 - MEAN) / STD)
    return torch.stack(found)


def test_a_row_has_a_column_for_each_protocol(tmp_path: Path) -> None:
    root, out = tmp_path / "pictures", tmp_path / "runs"
    folder(root)
    further = {name: Source(protocol=name) for name in protocols.PROTOCOLS}

    def chain(setting: Setting, recipe: Recipe) -> Chain:
        return under_protocols(setting, recipe, dense=made, prune=pruned)

    row = Row("Table 1", "both", "imagenet", None, None, recipe, chain, seeds=(0,), further=lambda scale: further)
    paper = Paper("toy", "A toy", "nobody", [row], [])
    job = Job(out=out, scale=str(root), data=tmp_path, progress=False, device="cpu")
    (planned,) = planning.plan(paper, paper.rows, job)
    (outcome,) = runner.run([planned], job, Store(out))
    assert outcome.file is not None
    value = json.loads(outcome.file.read_text())
    found = {record["metric"]: record["value"] for record in value["records"]}
    labels = torch.arange(2).repeat_interleave(16)
    assert planned.chain is not None
    store, accuracies = Store(out), {}
    (small,) = planned.chain.networks
    dense = planned.chain.records[0].parents[1].parents[0]
    for name in protocols.PROTOCOLS:
        inputs = by_hand(root, name)
        for what, step in (("small", small), ("dense", dense)):
            result = store.load(step.key)
            assert result is not None
            with torch.no_grad():
                hits = network(result)[0].eval()(inputs).argmax(1) == labels
            accuracies[what, name] = 100.0 * float(hits.double().mean())
        assert found[f"top1_acc_{name}"] == pytest.approx(accuracies["small", name])
        change = accuracies["small", name] - accuracies["dense", name]
        assert found[f"top1_change_{name}"] == pytest.approx(change)
    # the protocols do not say the same here
    assert found["top1_acc_short256"] != found["top1_acc_squash256"]
    assert found["top1_change_short256"] != found["top1_change_squash256"]
    told = {name: data["protocol"] for name, data in value["setting"]["further"].items()}
    assert told == {"short256": "short256", "squash256": "squash256"}


def test_data_without_protocols_have_none_of_the_columns(tmp_path: Path) -> None:
    def chain(setting: Setting, recipe: Recipe) -> Chain:
        assert setting.further == {}
        return Chain([], [])

    further = {name: Source(protocol=name) for name in protocols.PROTOCOLS}
    row = Row("Table 1", "both", "imagenet", None, None, recipe, chain, seeds=(0,), further=lambda scale: further)
    job = Job(out=tmp_path, scale="digits", progress=False, device="cpu")
    (planned,) = planning.plan(Paper("toy", "A toy", "nobody", [row], []), [row], job)
    assert planned.chain is not None


def test_the_dense_network_has_no_change() -> None:
    """By hand: three of four right under the protocol; a reference with one right less gives a quarter."""
    right = torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    less = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 9.0]])
    labels = torch.zeros(4, dtype=torch.long)
    made = [Result(arrays={"logits": logits, "labels": labels}, facts={"of": None}) for logits in (right, less)]
    same = protocols.run_under(None, [made[0], made[0]], protocols.Under("squash256")).records
    assert [(record.metric, record.value) for record in same] == [("top1_acc_squash256", 75.0)]
    both = protocols.run_under(None, made, protocols.Under("squash256")).records
    values = {record.metric: record.value for record in both}
    assert values == {"top1_acc_squash256": 75.0, "top1_change_squash256": 25.0}
