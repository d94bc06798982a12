"""The step that prunes: its record is about the layers that lose channels."""

import pytest
import torch

from bench.data.images import ImageSet, MemorySplit
from bench.models.checkpoint import checkpoint
from bench.models.recipe import Recipe
from bench.pruning.calibration import Sampling
from bench.pruning.layerwise import Method
from bench.pruning.steps import Fixed, Pruning, run_pruned
from bench.steps import Context
from bench.store import Result

RECIPE = Recipe("cifar_resnet20", {"num_classes": 10, "width": 0.25}, (3, 16, 16))
KEEP = {"layer1.0.conv1": 2, "layer2.1.conv1": 4}


def images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8, generator=generator)
    split = MemorySplit(pixels, torch.arange(60) % 10, (0.5,) * 3, (0.25,) * 3, pad=0, mirror=False)
    return ImageSet("noise", "0", tuple("abcdefghij"), 16, split, split, "16x16")


def pruned(refit: bool) -> Result:
    torch.manual_seed(0)
    data = images()
    dense = checkpoint(RECIPE.build(), RECIPE)
    params = Pruning(Method("exact", refit=refit), Fixed(KEEP), Sampling(positions=5, batch=20), None)
    return run_pruned(Context(lambda: data, "cpu", False, parents=("dense",)), [dense], params)


def test_the_held_out_error_is_that_of_the_pruned_layers() -> None:
    """Refitting the others too must not change which layers are averaged: they are easy and would flatter."""
    for refit, layers in ((False, 2), (True, 9)):
        found = pruned(refit)
        reports = found.facts["layers"]
        assert len(reports) >= layers
        lost = [layer["held_out_error"] for layer in reports if len(layer["kept"]) < layer["channels"]]
        assert len(lost) == 2
        (record,) = [record for record in found.records if record.metric == "held_out_error"]
        assert record.value == pytest.approx(100.0 * sum(lost) / 2)
        every = [layer["held_out_error"] for layer in reports]
        assert not refit or record.value != pytest.approx(100.0 * sum(every) / len(every))
