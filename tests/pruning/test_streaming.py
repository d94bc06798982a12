"""Calibration images and responses that do not lie in memory give what those in memory give, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import bench.data.stream
from bench.data.images import FileSplit, MemorySplit
from bench.data.stream import ImageStream
from bench.errors import UserError
from bench.models.resnet import bottleneck_resnet
from bench.pruning.calibration import Calibration, Sampling, calibrate, error_curves
from bench.pruning.layerwise import Method, prune
from bench.pruning.rows import RowFile, squares_about_mean
from bench.pruning.surgery import sample_input
from bench.stages import Stages


def files(root: Path, count: int, side: int = 40) -> FileSplit:
    generator = np.random.default_rng(0)
    listed = []
    for number in range(count):
        path = root / f"{number}.png"
        Image.fromarray(generator.integers(0, 256, (side, side + number, 3), dtype=np.uint8)).save(path)
        listed.append((path, number % 2))
    return FileSplit(listed, 32, "short256")


@pytest.mark.parametrize("resident", [0, 10**9])
def test_a_stream_gives_the_split_s_own_batches(tmp_path: Path, resident: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a temporary file and from memory; every file is decoded once, whatever is read afterwards."""
    monkeypatch.setattr(bench.data.stream, "_RESIDENT", resident)
    split = files(tmp_path, 11)
    places = [7, 3, 10, 0, 1, 2, 5]
    expected = [split.batch(places[i : i + 3]) for i in (0, 3, 6)]
    stream = ImageStream(split, places, 3)
    for path, _ in split.files:
        path.unlink()
    assert (len(stream), stream.images) == (3, 7)
    for turn in (0, 2, 1, 0):
        assert torch.equal(stream[turn], expected[turn])
    assert all(torch.equal(a, b) for a, b in zip(stream, expected, strict=True))
    assert torch.equal(stream[-1], expected[-1])


def test_a_stream_of_images_in_memory_and_of_broken_files(tmp_path: Path) -> None:
    pixels = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    split = MemorySplit(pixels, torch.zeros(5, dtype=torch.long), (0.5,) * 3, (0.5,) * 3, pad=0, mirror=False)
    stream = ImageStream(split, [4, 2, 0], 2)
    torch.testing.assert_close(torch.cat(list(stream)), pixels[[4, 2, 0]] / 127.5 - 1)
    broken = files(tmp_path, 4)
    broken.files[3][0].write_bytes(b"none")
    with pytest.raises(UserError, match=r"3\.png"):
        ImageStream(broken, range(4), 2)


def test_rows_in_a_file_are_the_rows(tmp_path: Path) -> None:
    rows, added = torch.randn(2, 1000, 7)
    for path in (None, tmp_path / "rows"):
        file, other = RowFile(7, path), RowFile(7)
        for part in rows.split(300):
            file.append(part)
        other.append(added)
        assert file.shape == (1000, 7)
        assert torch.equal(file[250:950], rows[250:950]) and file[1000:].shape == (0, 7)
        whole = (rows + added).double().numpy()
        expected = float(((whole - whole.mean(0)) ** 2).sum())
        assert squares_about_mean(file, other, chunk=128) == pytest.approx(expected, rel=1e-5)
        assert squares_about_mean(rows, added) == pytest.approx(expected, rel=1e-5)


def network() -> nn.Module:
    torch.manual_seed(0)
    return bottleneck_resnet(num_classes=3, width=1 / 16, blocks=(1, 1, 1, 1)).eval()


SAMPLING = dict(positions=4, batch=5, held_out=0.25)


def half(calibration: Calibration, model: nn.Module) -> dict[str, int]:
    sites = [site for site in calibration.sites if site.producer is not None]
    return {site.reader: model.get_submodule(site.reader).in_channels // 2 for site in sites}  # type: ignore[operator]


def assert_same(first: nn.Module, second: nn.Module) -> None:
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_pruning_is_the_same_from_memory_and_from_files(tmp_path: Path) -> None:
    """Images streamed from files and responses in files, against everything in memory."""
    split, model = files(tmp_path, 23), network()
    images = split.batch(list(range(23)))
    plain = calibrate(model, images, Sampling(**SAMPLING), progress=False)  # type: ignore[arg-type]
    stream = ImageStream(split, range(23), 5)
    filed = calibrate(model, stream, Sampling(**SAMPLING, resident=0), progress=False)  # type: ignore[arg-type]
    assert all(isinstance(found.response, RowFile) for found in filed.responses.values())
    keep = half(plain, model)
    assert_same(prune(model, plain, keep, Method(), False)[0], prune(model, filed, keep, Method(), False)[0])
    one, two = (error_curves(model, calibration, 1e-4, progress=False) for calibration in (plain, filed))
    assert one.keys() == two.keys()
    for reader, curve in one.items():
        assert two[reader] == pytest.approx(curve, rel=1e-5, abs=1e-9)


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_a_calibration_goes_on_behind_what_it_has_left(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, model = files(tmp_path, 12), network()
    stream = ImageStream(split, range(12), 5)
    sampling = Sampling(**SAMPLING)  # type: ignore[arg-type]
    whole = calibrate(model, stream, sampling, progress=False)
    own, visited = bench.pruning.calibration._responses, []

    def counted(model_: nn.Module, walk: object, site: object, *rest: object) -> object:
        if len(visited) == after:
            raise Stop
        visited.append(site)
        return own(model_, walk, site, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("bench.pruning.calibration._responses", counted)
    with pytest.raises(Stop):
        calibrate(model, stream, sampling, progress=False, spool=tmp_path / "spool")
    monkeypatch.setattr("bench.pruning.calibration._responses", lambda *a: (visited.append(a[2]), own(*a))[1])
    visited.clear()
    again = calibrate(model, stream, sampling, progress=False, spool=tmp_path / "spool")
    assert len(visited) == len(whole.sites) - after
    for reader, expected in whole.responses.items():
        found = again.responses[reader]
        assert torch.equal(found.positions, expected.positions)
        assert torch.equal(found.response[:], expected.response[:])
        assert (found.shortcut is None) == (expected.shortcut is None)
        if expected.shortcut is not None and found.shortcut is not None:
            assert torch.equal(found.shortcut[:], expected.shortcut[:])


@pytest.mark.parametrize("kind", ["plain", "biases", "sampled"])
def test_a_pruning_goes_on_behind_the_last_layer(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the reconstruction has added biases or a sampler was there before; as a run without a stop.

    Up to rounding: values behind pruned layers are computed again by the smaller layers, instead of cut from the
    larger.
    """
    torch.manual_seed(1)
    model: nn.Module = network()
    if kind == "sampled":
        sample_input(model, "layer2.0.conv1", range(1, 16, 2))
    if kind == "biases":
        layers = [nn.Conv2d(c, d, 3, bias=False) for c, d in ((3, 8), (8, 9), (9, 10), (10, 6))]
        relus = [part for layer in layers for part in (layer, nn.ReLU())]
        model = nn.Sequential(*relus, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    images = torch.randn(16, 3, 32, 32)
    calibration = calibrate(model, images, Sampling(**SAMPLING), progress=False)  # type: ignore[arg-type]
    keep = half(calibration, model)
    whole, reports = prune(model, calibration, keep, Method(), False)
    own, calls = bench.pruning.layerwise._prune_site, []

    def stopping(*arguments: object) -> object:
        if len(calls) == 2:
            raise Stop
        calls.append(1)
        return own(*arguments)  # type: ignore[arg-type]

    stages = Stages(tmp_path / "stages", "key")
    monkeypatch.setattr("bench.pruning.layerwise._prune_site", stopping)
    with pytest.raises(Stop):
        prune(model, calibration, keep, Method(), False, stages)
    monkeypatch.setattr("bench.pruning.layerwise._prune_site", lambda *a: (calls.append(1), own(*a))[1])
    found, again = prune(model, calibration, keep, Method(), False, Stages(tmp_path / "stages", "key"))
    assert len(calls) == len(reports)
    assert [(report.reader, report.kept) for report in again] == [(report.reader, report.kept) for report in reports]
    assert [report.error for report in again] == pytest.approx([report.error for report in reports], rel=1e-4)
    torch.testing.assert_close(found(images), whole(images), rtol=1e-4, atol=1e-5)
    fresh, _ = prune(model, calibration, keep, Method(), False, Stages(tmp_path / "stages", "another key"))
    assert len(calls) == 2 * len(reports)
    assert_same(fresh, whole)


_RUN = """
import json, resource, sys
import torch, torchvision
from bench import api
from bench.data.images import FileSplit, ImageSet

class Invented(FileSplit):
    def __init__(self, count):
        super().__init__([(None, place % 3) for place in range(count)], 224, "short256")
    def pixels(self, places):
        made = [torch.Generator().manual_seed(place) for place in places]
        return torch.stack([torch.randint(256, (3, 224, 224), generator=g, dtype=torch.uint8) for g in made])

torch.manual_seed(0)
data = ImageSet("invented", "0", ("a", "b", "c"), 224, Invented(int(sys.argv[1])), Invented(8), "none")
api.prune(torchvision.models.resnet50(num_classes=3), data, speedup=1.5, progress=False)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2))
"""


@pytest.mark.skipif("BENCH_MEMORY" not in os.environ, reason="ten minutes alone on the machine: set BENCH_MEMORY=1")
@pytest.mark.slow
def test_resnet50_at_224_stays_below_2_gb_and_does_not_grow_with_the_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """32 images more add next to nothing to the peak; as floats with responses they would add a tenth of a GB."""
    peaks = []
    for count in (16, 48):
        done = subprocess.run(
            [sys.executable, "-c", _RUN, str(count)], capture_output=True, text=True, check=False, env={**os.environ}
        )
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(json.loads(done.stdout.splitlines()[-1]))
    with capsys.disabled():
        print(f"\nResNet-50, 224x224, pruned with 16 and 48 images: peaks of {peaks[0]:.2f} and {peaks[1]:.2f} GB")
    assert max(peaks) < 2.0
    assert peaks[1] - peaks[0] < 0.05
