"""Properties of pruning over many small networks: traced == given, removed == masked, refitted == given, nothing changed."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.pruning.calibration import Sampling, calibrate
from bench.pruning.faithful import copied, run_graph
from bench.pruning.graph import find_sites, trace
from bench.pruning.layerwise import Method, prune
from bench.pruning.surgery import remove_filters

sys.path.insert(0, str(Path(__file__).parent))
from zoo import images, network

NUMBERS = range(48)
EXACT = 1e-5  # of the largest output


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def given(model: nn.Module, x: Tensor) -> Tensor:
    """What the network itself computes, on images of its own (it may change them)."""
    return copy.deepcopy(model)(x.clone())  # type: ignore[no-any-return]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_traced_network_is_the_given_one(number: int) -> None:
    model, x = network(number), images(4)
    assert distance(run_graph(model, trace(model), x), given(model, x)) <= EXACT


@pytest.mark.parametrize("number", NUMBERS)
def test_removing_is_masking_with_the_norm_s_scale_and_shift(number: int) -> None:
    model, x = network(number), images(3)
    sites = [site for site in find_sites(model, trace(model)) if site.producer is not None]
    masked, removed = copied(model), copied(model)
    for place, site in enumerate(sites):
        filters = model.get_submodule(site.producer).out_channels  # type: ignore[arg-type]
        gone = sorted(torch.randperm(filters, generator=torch.Generator().manual_seed(place))[: filters // 2].tolist())
        norm = site.producer.rpartition(".")[0] + ".n" + site.producer[-1]  # type: ignore[union-attr]
        names = [site.producer, *([norm] if norm in dict(model.named_modules()) else [])]
        with torch.no_grad():
            for name in names:
                for parameter in masked.get_submodule(name).parameters():  # type: ignore[arg-type]
                    parameter[gone] = 0.0
        remove_filters(removed, (3, 8, 8), site.producer, gone)  # type: ignore[arg-type]
    assert distance(given(removed, x), given(masked, x)) <= EXACT


def test_the_zoo_has_sites_of_every_kind() -> None:
    """Otherwise the properties would be about nothing."""
    found = [find_sites(model, trace(model)) for model in map(network, NUMBERS)]
    assert sum(any(site.producer for site in sites) for sites in found) >= 40
    assert sum(any(site.shortcut for site in sites) for sites in found) >= 15


@pytest.mark.parametrize("number", NUMBERS)
def test_refitting_without_removal_computes_the_same_and_the_given_network_stays(number: int) -> None:
    """Every fold, fit and unfold of every site, at once; the answer is known: the network itself."""
    model, x = network(number), images(40)
    before, outputs = copy.deepcopy(model.state_dict()), given(model, x)
    flags = {name: vars(module).get("inplace") for name, module in model.named_modules()}
    calibration = calibrate(model, x, Sampling(positions=20, batch=20), progress=False)
    refitted, reports = prune(model, calibration, {}, Method(refit=True), progress=False)
    assert reports
    assert distance(given(refitted, x), outputs) <= 1e-4  # of a least squares
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: vars(module).get("inplace") for name, module in model.named_modules()} == flags
    assert {name: vars(module).get("inplace") for name, module in refitted.named_modules()} == flags
