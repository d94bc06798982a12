"""The parts of the suite, each against a plain way to the same result: ratios of processor time in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from detections import Image, devkit, draw
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from sklearn.linear_model import Lasso, LinearRegression
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from bench.commands import declared, registry_folder
from bench.measure import macs
from bench.measure.detection import Detections, MatchTable, voc_records
from bench.pruning.exact import eliminate
from bench.pruning.moments import Moments
from bench.pruning.reconstruction import Sampled, reconstruct
from bench.pruning.selection import Layer, select
from bench.report import load, render
from bench.report.tables import build_all, long

Array = NDArray[np.float64]
Check = Callable[[str, float], None]
CHANNELS, OUTPUTS, KEEP, ROWS = 64, 64, 32, 4000
ROOT = Path(__file__).parent.parent.parent


def seconds(function: Callable[[], object], rounds: int = 3) -> float:
    """Processor time of the best round."""
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        function()
        found.append(time.process_time() - begin)
    return min(found)


def layer() -> tuple[Array, Array, Array]:
    """Patches (rows x 576) of correlated channels, the responses (rows x 64) and the weights (64 x 64 x 9)."""
    generator = np.random.default_rng(0)
    hidden = generator.standard_normal((ROWS, 16)) @ generator.standard_normal((16, CHANNELS)) / 4.0
    x = np.maximum(hidden[:, :, None] + 0.5 * generator.standard_normal((ROWS, CHANNELS, 9)), 0.0).reshape(ROWS, -1)
    weight = generator.standard_normal((OUTPUTS, CHANNELS, 9)) / 24.0
    return x, x @ weight.reshape(OUTPUTS, -1).T, weight


def moments_of(x: Array, y: Array) -> Moments:
    found = Moments(x.shape[1], y.shape[1])
    found.add(torch.from_numpy(x), torch.from_numpy(y))
    return found


def test_moments_against_the_products_of_doubles(benchmark: BenchmarkFixture, kept_up: Check) -> None:
    """As the network gives them, in single precision and batches; the plain way has all rows as doubles at once."""
    x, y, _ = layer()
    batches = [(torch.from_numpy(a).float(), torch.from_numpy(b).float()) for a, b in zip(
        np.array_split(x, 8), np.array_split(y, 8), strict=True)]  # fmt: skip
    whole = [torch.cat(parts).numpy().astype(np.float64) for parts in zip(*batches, strict=True)]

    def ours() -> Moments:
        found = Moments(x.shape[1], y.shape[1])
        for a, b in batches:
            found.add(a, b)
        found.centred()
        return found

    def plain() -> tuple[Array, Array, Array]:
        a, b = whole
        return a.T @ a, a.T @ b, np.square(b).sum(0)

    np.testing.assert_allclose(ours().xx.numpy(), plain()[0], rtol=1e-9, atol=1e-6)
    ratio = seconds(plain) / seconds(ours)
    benchmark.pedantic(ours, rounds=3)
    kept_up("over plain products", ratio)


def test_the_lasso_path_against_bisecting_lambda(benchmark: BenchmarkFixture, kept_up: Check) -> None:
    """Given the moments, and for the plain way given the channels' contributions of 400 rows, flattened."""
    x, y, weight = layer()
    moments = moments_of(x, y)
    z = np.einsum("rck,nck->rnc", x[:400].reshape(400, CHANNELS, 9), weight).reshape(-1, CHANNELS)
    target, kernels = y[:400].reshape(-1), torch.from_numpy(weight).reshape(OUTPUTS, CHANNELS, 3, 3)

    def plain() -> int:
        solver, low, high = Lasso(warm_start=True), 0.0, 1e-3

        def count(alpha: float) -> int:
            solver.set_params(alpha=alpha).fit(z, target)
            return int((solver.coef_ != 0).sum())

        while count(high) > KEEP:
            high *= 2.0
        for _ in range(40):
            middle = (low + high) / 2.0
            found = count(middle)
            if KEEP <= found <= 1.1 * KEEP:
                break
            low, high = (middle, high) if found > KEEP else (low, middle)
        return found

    def ours() -> list[int]:
        return select("lasso", Layer(moments, kernels, torch.zeros(OUTPUTS)), KEEP)

    assert len(ours()) == KEEP and KEEP <= plain() <= 1.1 * KEEP
    ratio = seconds(plain) / seconds(ours)
    benchmark.pedantic(ours, rounds=3)
    kept_up("over bisecting", ratio)


def test_exact_elimination_against_a_regression_for_each_candidate(benchmark: BenchmarkFixture, kept_up: Check) -> None:
    """The plain way makes its first two removals; the others are extrapolated from its time for a candidate."""
    x, y, _ = layer()
    centred = moments_of(x, y).centred()
    xx, xy = centred.xx.numpy(), centred.xy.numpy()
    amount = 1e-6 * centred.scale * np.eye(9 * CHANNELS)
    removed: list[int] = []
    begin, tried = time.process_time(), 0
    for _ in range(2):
        explained = {}
        for candidate in set(range(CHANNELS)) - set(removed):
            left = [c for c in range(CHANNELS) if c != candidate and c not in removed]
            columns = (np.array(left)[:, None] * 9 + np.arange(9)).reshape(-1)
            block = np.ix_(columns, columns)
            explained[candidate] = float((xy[columns] * np.linalg.solve(xx[block] + amount[block], xy[columns])).sum())
            tried += 1
        removed.append(max(explained, key=explained.__getitem__))
    plain = (time.process_time() - begin) / tried * sum(CHANNELS - gone for gone in range(CHANNELS - KEEP))
    assert eliminate(centred, CHANNELS, CHANNELS - 2, 1e-6).order == removed
    ratio = plain / seconds(lambda: eliminate(centred, CHANNELS, KEEP, 1e-6))
    benchmark.pedantic(lambda: eliminate(centred, CHANNELS, KEEP, 1e-6), rounds=3)
    kept_up("over regressions", ratio)
    assert ratio >= 10.0


def test_reconstruction_against_least_squares_of_the_rows(benchmark: BenchmarkFixture, kept_up: Check) -> None:
    x, y, _ = layer()
    sampled, kept = Sampled(moments_of(x, y)), list(range(KEEP))
    columns = slice(0, 9 * KEEP)

    def ours() -> Array:
        return reconstruct(sampled, kept, (3, 3), ridges=(1e-9,)).weight.flatten(1).numpy()

    def plain() -> Array:
        return LinearRegression().fit(x[:, columns], y).coef_

    np.testing.assert_allclose(ours(), plain(), atol=1e-5)
    ratio = seconds(plain) / seconds(ours)
    benchmark.pedantic(ours, rounds=3)
    kept_up("over least squares", ratio)
    assert ratio >= 2.0


def test_counting_macs_against_torch_s_counter(benchmark: BenchmarkFixture, kept_up: Check) -> None:
    """Ours counts in two ways that must agree, and by layer; torch's the operations alone."""
    model, x = resnet50().eval(), torch.zeros(1, 3, 224, 224)

    def plain() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        return counter.get_total_flops()

    assert macs.count(model, (3, 224, 224)).total("2x") == plain()
    ratio = seconds(plain) / seconds(lambda: macs.count(model, (3, 224, 224)))
    benchmark.pedantic(lambda: macs.count(model, (3, 224, 224)), rounds=3)
    kept_up("of torch's counter", ratio)


def plain_map(found: Sequence[Detections], truths: Sequence[Image]) -> float:
    """Mean AP of the images as they are listed, by the devkit's rules."""
    values = [devkit(found, truths, label, "11points") for label in range(3)]
    return float(np.mean([value for value in values if value is not None]))


@torch.no_grad()
def test_average_precision_with_its_interval_against_evaluating_each_resample(
    benchmark: BenchmarkFixture, kept_up: Check
) -> None:
    """The plain way evaluates two of the 1,000 lists of images; the others are extrapolated."""
    found, truths = draw(0, images=100)
    names = ("a", "b", "c", "d")
    assert MatchTable.build(found, truths, names).ap("11points")[0] == pytest.approx(plain_map(found, truths), abs=1e-9)
    plain = 1000 / 2 * seconds(lambda: [plain_map(found, truths) for _ in range(2)], 1)
    ratio = plain / seconds(lambda: voc_records([found], truths, names, [0], "11points"))
    benchmark.pedantic(lambda: voc_records([found], truths, names, [0], "11points"), rounds=3)
    kept_up("over evaluating each", ratio)
    assert ratio >= 20.0


def test_rendering_against_pandas(benchmark: BenchmarkFixture, kept_up: Check) -> None:
    """Four formats of every table of a page; pandas writes the same long tables as CSV and HTML."""
    lines = load.read(ROOT / "results", registry_folder(), {"fbs": declared()["fbs"]})["fbs"]
    tables = build_all(lines, [])
    frames = [pd.DataFrame(long(table)) for table in tables]

    def ours() -> list[str]:
        ways = (render.markdown, render.csv_text, render.latex, render.html_page)
        return [way(table) for table in tables for way in ways]

    def plain() -> list[object]:
        return [text for frame in frames for text in (frame.to_csv(index=False), frame.to_html(index=False))]

    assert sum(map(len, map(long, tables))) == sum(map(len, frames)) > 100
    ratio = seconds(plain) / seconds(ours)
    benchmark.pedantic(ours, rounds=3)
    kept_up("of pandas", ratio)
