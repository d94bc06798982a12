"""The two steps of a stage, with the loops that they call replaced: what reaches them, and what the loss is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.models.checkpoint import checkpoint
from bench.models.recipe import Recipe
from bench.pruning.calibration import Sampling
from bench.pruning.greedy import Greedy
from bench.steps import Context
from bench.store import Result
from bench.train.detection_steps import Augmenting
from bench.train.schedule import Schedule
from reproductions import localization_aware_ssd as lcp

SIZE, POSITION = 64, "backbone.features.17"
TINY = Recipe("narrow_ssd", {"num_classes": 5, "size": SIZE, "widths": [4, 4, 6, 6, 8, 8, 8, 8]}, (3, SIZE, SIZE))
SCHEDULE = Schedule(2, 1e-3, 4)
# images 1 and 4 show nothing that is not difficult
DIFFICULT = [[False], [True], [False, True], [False], [], [False], [False]]
USABLE = [0, 2, 3, 5, 6]


def data() -> SimpleNamespace:
    annotations = [SimpleNamespace(difficult=torch.tensor(flags, dtype=torch.bool)) for flags in DIFFICULT]
    train = SimpleNamespace(annotations=annotations)
    return SimpleNamespace(train=train, test=None)


def context(images: SimpleNamespace) -> Context:
    return Context(lambda: images, "cpu", False, Path("nowhere"), workers=2, label="the label")


def parent() -> Result:
    torch.manual_seed(0)
    return checkpoint(TINY.build(), TINY)


def flat(state: Any) -> Tensor:
    return torch.cat([value.flatten().double() for value in state.values()])


@pytest.mark.parametrize("localization", [True, False])
def test_the_detector_and_the_auxiliary_network_are_trained_together(
    localization: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def fit(net: Any, split: Any, *arguments: Any, **named: Any) -> list[Any]:
        calls.append((net, split, arguments, named))
        with torch.no_grad():
            named["auxiliary"].classify.weight.fill_(7.0)
        return []

    monkeypatch.setattr(lcp, "fit_detector", fit)
    images, start = data(), parent()
    params = lcp.AuxiliaryTraining(POSITION, localization, SCHEDULE, 3, Augmenting(False, 2.0))
    found = []
    for drawn in (0, 1):  # what was drawn before does not matter
        torch.manual_seed(drawn)
        found.append(lcp.run_auxiliary(context(images), [start], params))
    assert torch.equal(flat(found[0].arrays), flat(found[1].arrays))
    assert torch.equal(flat(found[0].state), flat(start.state))
    net, split, arguments, named = calls[0]
    assert split is images.train and net.size == SIZE
    assert arguments == (SCHEDULE, 3, Path("nowhere"), "cpu", "the label")
    auxiliary = named.pop("auxiliary")
    assert isinstance(auxiliary, lcp.Auxiliary) and auxiliary.localization == localization
    assert named == {"position": POSITION, "mirror": False, "zoom_out": 2.0, "workers": 2, "progress": False}
    assert float(found[0].arrays["classify.weight"].min()) == 7.0  # as it was trained


@pytest.mark.parametrize("localization", [True, False])
def test_the_selection_reads_images_with_objects_and_the_trained_auxiliary_network(
    localization: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def calibration_of(where: Any, net: Any, sampling: Any, producers: Sequence[str], places: Sequence[int]) -> Any:
        asked.update(sampling=sampling, producers=producers, places=places)
        sites = [SimpleNamespace(producer=name, reader=f"after {name}") for name in producers]
        return SimpleNamespace(sites=sites, sampling=sampling)

    def batches(split: Any, size: int, places: Sequence[int], batch: int, boxes: bool) -> Any:
        asked["batches"] = (size, list(places), batch, boxes)
        chunks = [places[i : i + batch] for i in range(0, len(places), batch)]
        return iter([(None, [torch.tensor(float(place)) for place in chunk]) for chunk in chunks])

    def prune_stage(net: Any, calibration: Any, keep: Any, greedy: Any, end: str, loss: Any, progress: bool) -> Any:
        asked.update(keep=keep, greedy=greedy, end=end, loss=loss)
        return net, []

    seen: list[tuple[lcp.Auxiliary, list[float]]] = []

    def forward(self: lcp.Auxiliary, features: Tensor, samples: Sequence[Tensor]) -> dict[str, Tensor]:
        seen.append((self, [float(sample) for sample in samples]))
        return {"loss_ac": features.sum(), "loss_ar": 10 * features.sum()}

    for name, fake in (("batches", batches), ("prune_stage", prune_stage)):
        monkeypatch.setattr(lcp, name, fake)
    monkeypatch.setattr(lcp.pruning, "calibration_of", calibration_of)
    monkeypatch.setattr(lcp.Auxiliary, "forward", forward)
    start = parent()
    net = TINY.build()
    auxiliary = lcp.Auxiliary(net, POSITION, localization)  # type: ignore[arg-type]
    with torch.no_grad():
        auxiliary.classify.weight.fill_(7.0)
    start.arrays.update(auxiliary.state_dict())
    keep = {"backbone.features.7": 3, "backbone.features.10": 4}
    sampling, greedy = Sampling(positions=9, batch=2, seed=1), Greedy(alpha=0.5)
    params = lcp.StageSelection(POSITION, localization, keep, greedy, 3, sampling)
    found = lcp.run_selected(context(data()), [start], params)
    drawn = torch.randperm(5, generator=torch.Generator().manual_seed(1))[:3].tolist()
    places = [USABLE[place] for place in drawn]
    assert (asked["sampling"], asked["producers"], asked["places"]) == (sampling, list(keep), places)
    assert asked["batches"] == (SIZE, places, 2, True)
    assert asked["keep"] == {"after backbone.features.7": 3, "after backbone.features.10": 4}
    assert (asked["greedy"], asked["end"]) == (greedy, POSITION)
    assert found.recipe is not None and Recipe.from_json(found.recipe).widths == keep
    # the loss of a mini-batch is the sum of the terms on its own images, by the network that was trained, frozen
    for batch, expected in ((0, places[:2]), (1, places[2:])):
        assert float(asked["loss"](batch, torch.ones(1, 2))) == 2.0 + 20.0
        used, samples = seen[-1]
        assert samples == [float(place) for place in expected]
        assert float(used.classify.weight.min()) == 7.0 and used.localization == localization
        assert not used.training and not any(p.requires_grad for p in used.parameters())
