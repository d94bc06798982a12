"""The MAC model against counting really pruned networks, and the choice of widths against brute force."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from bench.errors import UserError
from bench.measure.macs import count
from bench.models.recipe import Recipe
from bench.pruning.graph import Site, find_sites, trace
from bench.pruning.surgery import convolution, remove_filters, sample_input
from bench.pruning.widths import MacModel, error_driven, scaled

NETWORKS = {
    "vgg16": Recipe("vgg16", {"form": "cifar", "num_classes": 5, "width": 1 / 8}, (3, 32, 32)),
    "resnet18": Recipe("resnet18", {"num_classes": 5, "width": 1 / 8, "small_input": True}, (3, 16, 16)),
    "cifar_resnet20": Recipe("cifar_resnet20", {"width": 0.5}, (3, 32, 32)),
    "bottleneck": Recipe("bottleneck_resnet", {"width": 1 / 8, "blocks": [1, 2, 1, 2]}, (3, 32, 32)),
}


def modelled(name: str) -> tuple[nn.Module, list[Site], MacModel]:
    """The network on meta, its sites that belong to a branch or a producer, and the MAC model."""
    model = NETWORKS[name].build("meta")
    sites = [s for s in find_sites(model, trace(model)) if s.producer is not None or s.branch_end is not None]
    channels = {site.reader: convolution(model, site.reader).in_channels for site in sites}
    return model, sites, MacModel(count(model, NETWORKS[name].input_shape).conv, sites, channels)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(2))
def test_total_equals_the_count_of_the_pruned_network(name: str, seed: int) -> None:
    """Random widths at random sites, filters removed and samplers put in: conv MACs to the last one."""
    model, sites, costs = modelled(name)
    rng = np.random.default_rng(seed)
    keep = {s.reader: int(rng.integers(1, costs.channels[s.reader] + 1)) for s in sites if rng.random() < 0.7}
    assert keep
    for site in sites:
        left = keep.get(site.reader)
        if left is None:
            continue
        if site.producer is None:
            sample_input(model, site.reader, range(left))
        else:
            remove_filters(model, NETWORKS[name].input_shape, site.producer, range(left, costs.channels[site.reader]))
    counted = count(model, NETWORKS[name].input_shape).total("conv")
    assert costs.total(keep) == pytest.approx(counted, rel=1e-12)
    assert costs.speedup(keep) == pytest.approx(costs.dense / counted, rel=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_saving_is_the_difference_of_two_totals(name: str) -> None:
    _, sites, costs = modelled(name)
    rng = np.random.default_rng(1)
    keep = {site.reader: int(rng.integers(2, costs.channels[site.reader] + 1)) for site in sites}
    for site in sites:
        fewer = {**keep, site.reader: keep[site.reader] - 1}
        assert costs.saving(site.reader, keep) == pytest.approx(costs.total(keep) - costs.total(fewer), rel=1e-9)


def proportional(costs: MacModel, ratios: dict[str, float], factor: float) -> dict[str, int]:
    """Widths at one factor, written out."""
    return {
        reader: min(costs.channels[reader], max(1, round(factor * ratio * costs.channels[reader])))
        for reader, ratio in ratios.items()
    }


@pytest.mark.parametrize("speedup", [1.0, 1.3, 2.0, 3.5])
@pytest.mark.parametrize("name", ["vgg16", "bottleneck"])
def test_scaled_is_the_largest_factor_that_meets_the_target(name: str, speedup: float) -> None:
    """A scan over many factors, from large to small, finds the same widths."""
    _, sites, costs = modelled(name)
    rng = np.random.default_rng(2)
    ratios = {site.reader: float(rng.choice([1.0, 1.5])) for site in sites}
    found = scaled(costs, ratios, speedup)
    assert costs.speedup(found) >= speedup
    for factor in np.linspace(1.0, 0.0, 4001):
        widths = proportional(costs, ratios, float(factor))
        if costs.speedup(widths) >= speedup:
            assert found == widths or costs.total(found) > costs.total(widths)
            assert all(found[reader] >= width for reader, width in widths.items())
            break


def test_out_of_reach_targets_are_user_errors() -> None:
    _, sites, costs = modelled("bottleneck")
    least = costs.speedup({site.reader: 1 for site in sites})
    ratios = {site.reader: 1.0 for site in sites}
    curves = {site.reader: np.linspace(1.0, 0.0, costs.channels[site.reader]).tolist() for site in sites}
    for target in (least * 1.01, 1e9):
        with pytest.raises(UserError, match=f"out of reach.*{least:.2f}x"):
            scaled(costs, ratios, target)
        with pytest.raises(UserError, match=f"out of reach.*{least:.2f}x"):
            error_driven(costs, curves, target)
    assert costs.speedup(error_driven(costs, curves, least * 0.99)) >= least * 0.99


def sampled_layers(channels: list[int], macs_per_channel: int = 10) -> MacModel:
    """Independent layers, each behind a sampler: every channel of every layer costs the same."""
    names = [f"layer{i}" for i in range(len(channels))]
    sites = [Site(name, None, None, None, None, False) for name in names]
    costs = {name: macs_per_channel * c for name, c in zip(names, channels, strict=True)}
    return MacModel(costs, sites, dict(zip(names, channels, strict=True)))


@pytest.mark.parametrize("seed", range(6))
def test_error_driven_is_the_best_of_all_widths_for_convex_curves(seed: int) -> None:
    """Equal costs per channel and convex curves: the greedy choice is optimal, as all combinations show."""
    rng = np.random.default_rng(seed)
    channels = [4, 5, 6]
    costs = sampled_layers(channels)
    curves = {}
    for i, c in enumerate(channels):
        steps = np.sort(rng.uniform(0.0, 1.0, c - 1) * rng.uniform(0.2, 2.0))  # removals get dearer
        curves[f"layer{i}"] = np.concatenate([[0.0], np.cumsum(steps)])[::-1].tolist()
    for speedup in (1.01, 1.2, 1.5, 2.1, 3.0, 5.0):
        found = error_driven(costs, curves, speedup)
        assert costs.speedup(found) >= speedup
        spent = sum(curves[name][k - 1] for name, k in found.items())
        allowed = [
            dict(zip(curves, widths, strict=True))
            for widths in itertools.product(*(range(1, c + 1) for c in channels))
            if costs.speedup(dict(zip(curves, widths, strict=True))) >= speedup
        ]
        best = min(sum(curves[name][k - 1] for name, k in widths.items()) for widths in allowed)
        assert spent == pytest.approx(best, abs=1e-12)


def test_error_driven_weighs_errors_by_what_they_save() -> None:
    """Equal curves, one layer ten times as dear: only that one loses channels until the target is met."""
    sites = [Site(name, None, None, None, None, False) for name in ("dear", "cheap")]
    costs = MacModel({"dear": 1000, "cheap": 100}, sites, {"dear": 10, "cheap": 10})
    curve = np.linspace(0.9, 0.0, 10).tolist()
    # 1100 / 2 = 550: nine of the dear channels would save 900, six are enough
    assert error_driven(costs, {"dear": curve, "cheap": curve}, 2.0) == {"dear": 4, "cheap": 10}


def test_a_dear_channel_does_not_block_cheap_ones_behind_it() -> None:
    """The first layer's next channel costs 0.5, the four after it nothing; each of the second's costs 0.2.

    Four must go: the first layer's five for 0.5 are cheaper per channel than four of the second for 0.8.
    """
    costs = sampled_layers([6, 6])
    curves = {"layer0": [0.5, 0.5, 0.5, 0.5, 0.5, 0.0], "layer1": [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]}
    found = error_driven(costs, curves, 1.5)
    assert found == {"layer0": 2, "layer1": 6}


def test_saving_counts_reader_and_producer() -> None:
    """One channel between two convolutions costs both: 8x5x5x3x9 / 8 in the producer, 4x5x5x8x9 / 8 in the reader."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    sites = find_sites(model, trace(model))
    costs = MacModel(count(model, (3, 5, 5)).conv, sites, {"2": 8})
    assert costs.dense == 8 * 25 * 27 + 4 * 25 * 72
    assert costs.saving("2", {"2": 8}) == pytest.approx(25 * 27 + 4 * 25 * 9)
    assert torch.is_tensor(model(torch.zeros(1, 3, 5, 5)))
