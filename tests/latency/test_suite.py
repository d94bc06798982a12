"""Names and suites: that they are found, share what they can, and quote the papers' times as printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import saved
from bench.commands import registry_folder
from bench.errors import UserError
from bench.latency import suite
from bench.latency.contestants import BACKWARD, DETECTIONS, FORWARD, Subject
from bench.latency.point import Point
from bench.latency.suite import Where
from bench.measure import macs
from bench.models.recipe import Recipe

FOLDER = registry_folder() / "latency"
CP4, CONV = "channel_pruning/table-1/vgg-16-4x-released-widths-fine-tuned", "thinet/table-1/thinet-conv"


def speedup(point: Point, name: str) -> float:
    """Conv MACs, dense over pruned."""
    recipe = next(one.recipe for one in point.networks if one.name == name)
    dense, small = (macs.count(r.build("meta"), r.input_shape).total("conv") for r in (point.dense.recipe, recipe))
    return dense / small


def test_the_suite_for_the_processor() -> None:
    """VGG-16 with the released widths of 4x (3.868x) and ThiNet-Conv (30.94 of 9.58 B), batch 1 and 8."""
    chunk, compiled = suite.suite("cpu", FOLDER, Where((1,), ("fp32",), "cpu"))
    assert [point.batch for point in chunk] == [1, 8]
    assert chunk[0].dense.recipe == Recipe("vgg16", {"num_classes": 1000}, (3, 224, 224))
    assert [one.name for one in chunk[0].networks] == [CP4, CONV]
    assert speedup(chunk[0], CP4) == pytest.approx(3.868, abs=5e-4)
    assert speedup(chunk[0], CONV) == pytest.approx(3.30, abs=0.05)
    assert all(point.layers and not point.compiled and point.dtype == "fp32" for point in chunk)
    assert [(point.batch, point.compiled, len(point.networks)) for point in compiled] == [(1, True, 1)]


def test_the_suite_for_the_gpu() -> None:
    """Everything that is asked of it at batch 1, 32 and 128 in tf32 and bf16; A/A first, and point by point.

    What is cut off is lost: every kind of network has its turn among the first.
    """
    chunks = suite.suite("gpu", FOLDER, Where((1,), ("fp32",), "cuda"))
    first = chunks[0][0]
    assert first.networks == () and first.dense.recipe.builder == "resnet50"
    assert all(len(chunk) == 1 and len(chunk[0].networks) <= 2 for chunk in chunks)
    early = [(point.dense.recipe.builder, point.batch) for (point,) in chunks[1:6]]
    assert early == [("vgg16", 32), ("resnet18", 1), ("ssd300_vgg16", 1), ("vgg16", 1), ("resnet50", 32)]
    # the layers of a batch of one are what it takes to start them
    assert {point.batch for (point,) in chunks if point.layers} == {32}
    seen = {(one.name, point.batch, point.dtype) for chunk in chunks for point in chunk for one in point.networks}
    release = "channel_pruning/table-1/vgg-16-{}x-released-widths-fine-tuned"
    wanted = [release.format(speed) for speed in (2, 4, 5)]
    wanted += [f"thinet/table-1/thinet-{name}" for name in ("conv", "gap", "tiny")]
    wanted += ["channel_pruning/table-6/ours", *(f"thinet/table-3/thinet-{share}" for share in (70, 50, 30))]
    wanted += ["fbs/table-1/fbs-at-d-0.7", "localization_aware_ssd/voc2007-ssd-vgg16/pruned"]
    for name in wanted:
        for batch in (1, 32, 128):
            for dtype in ("tf32", "bf16"):
                assert (name, batch, dtype) in seen, (name, batch, dtype)


def test_the_papers_own_tables() -> None:
    chunks = suite.suite("papers", FOLDER, Where((1,), ("fp32",), "cpu"))
    seen = {(one.name, point.batch, point.mode) for chunk in chunks for point in chunk for one in point.networks}
    ssd = "localization_aware_ssd/voc2007-ssd-vgg16/pruned"
    assert {(CP4, 32, FORWARD), (CONV, 32, BACKWARD), ("thinet/table-3/thinet-30", 32, BACKWARD)} <= seen
    assert {("fbs/table-1/fbs-at-d-0.6", 1, FORWARD), (ssd, 1, FORWARD), (ssd, 1, DETECTIONS)} <= seen


def test_published_times_are_ratios() -> None:
    """8.144 over 3.264 ms; 189.92 over 71.73 ms; with backward 189.92 + 407.56 over 29.51 + 55.83."""
    found = suite.quoted(FOLDER, registry_folder())
    assert found[CP4, FORWARD, 32].ratio == pytest.approx(8.144 / 3.264) and not found[CP4, FORWARD, 32].verified
    assert found["thinet/table-1/thinet-gap", FORWARD, 32].ratio == pytest.approx(189.92 / 71.73)
    tiny = found["thinet/table-1/thinet-tiny", BACKWARD, 32]
    assert tiny.ratio == pytest.approx((189.92 + 407.56) / (29.51 + 55.83)) and tiny.text == "7.00x†"


def test_names() -> None:
    (model,) = suite.subjects("cifar_resnet20")
    assert model.recipe.input_shape == (3, 32, 32)
    (row,) = suite.subjects("thinet-gap")
    assert row.name == "thinet/table-1/thinet-gap"
    whole = suite.subjects("thinet")
    assert {"thinet/table-1/thinet-tiny", "thinet/table-3/thinet-50"} <= {one.name for one in whole}
    assert len({str(one.recipe.to_json()) for one in whole}) == len(whole)  # each shape once
    with pytest.raises(UserError, match="saved network 'nothing'"):
        suite.subjects("nothing")
    with pytest.raises(UserError, match="--weights belong to a model"):
        suite.subjects("thinet-gap", weights="x")


def test_a_saved_network_brings_its_weights(tmp_path: Path) -> None:
    recipe = Recipe("cifar_resnet20", {"num_classes": 10, "width": 0.5}, (3, 16, 16)).removed({"layer1.0.conv1": 4})
    saved.save(recipe.build(), recipe, tmp_path / "net")
    (found,) = suite.subjects(str(tmp_path / "net"))
    assert found == Subject("net", recipe, str(tmp_path / "net"))
    ((point,),) = suite.grouped([found], Where((1,), ("fp32",), "cpu"))
    assert point.dense.recipe == recipe.base and point.networks == (found,)
    # 4 of 8 filters stay: 8 is no smaller
    ((point,),) = suite.grouped([found], Where((1,), ("fp32",), "cpu"), 8)
    assert point.networks == (found,)


def test_a_saved_network_is_timed_rounded_too(tmp_path: Path) -> None:
    recipe = Recipe("cifar_resnet20", {"num_classes": 10}, (3, 16, 16)).removed({"layer2.0.conv1": 13})
    saved.save(recipe.build(), recipe, tmp_path / "net")
    ((point,),) = suite.grouped(suite.subjects(str(tmp_path / "net")), Where((1,), ("fp32",), "cpu"), 8)
    plain, small = point.networks
    assert plain.weights == str(tmp_path / "net")
    assert small == Subject("net, rounded to 8", recipe.base.removed({"layer2.0.conv1": 16}))


def test_networks_of_one_dense_network_share_its_points() -> None:
    dense = Recipe("vgg16", {"num_classes": 10, "form": "cifar"}, (3, 32, 32))
    other = Recipe("cifar_resnet20", {"num_classes": 10}, (3, 32, 32))
    networks = [
        Subject("a", dense.removed({"features.0": 11})),
        Subject("b", other),
        Subject("c", dense.removed({"features.0": 16})),
    ]
    chunks = suite.grouped(networks, Where((1, 8), ("fp32", "bf16"), "cpu"), 8)
    assert [[(point.batch, point.dtype) for point in chunk] for chunk in chunks] == [
        [(1, "fp32"), (8, "fp32"), (1, "bf16"), (8, "bf16")]
    ] * 2
    # 16 filters are a multiple of 8 already
    assert [one.name for one in chunks[0][0].networks] == ["a", "a, rounded to 8", "c"]
    assert chunks[0][0].networks[1].recipe.widths == {"features.0": 8}
    assert chunks[1][0].networks == () and chunks[1][0].dense.name == "cifar_resnet20"


def test_mistakes() -> None:
    with pytest.raises(UserError, match="unknown suite 'tpu': choose one of cpu, gpu, papers"):
        suite.suite("tpu", FOLDER, Where((1,), ("fp32",), "cpu"))
    for where, text in (
        (Where((1,), ("tf32",), "cpu"), "tf32"),
        (Where((1,), ("fp32",), "cpu", ("hwc",)), "unknown layout 'hwc'"),
        (Where((1,), ("fp32",), "cpu", mode="backward"), "unknown mode"),
        (Where((0,), ("fp32",), "cpu"), "a batch needs an image"),
    ):
        with pytest.raises(UserError, match=text):
            suite.check(where)


def test_a_size_that_a_model_does_not_take_is_refused_before_anything_is_timed() -> None:
    with pytest.raises(UserError, match=r"vgg16 takes no images of 2x2 .* give another --size"):
        suite.subjects("vgg16", 2)
    (subject,) = suite.subjects("vgg16", 64)
    assert subject.recipe.input_shape == (3, 64, 64)


def test_networks_of_one_name_are_told_apart() -> None:
    """``bench prune`` calls its folders as one likes: a/pruned and b/pruned are two networks."""
    dense = Recipe("vgg16", {"num_classes": 10, "form": "cifar"}, (3, 32, 32))
    a, b = (Subject("pruned", dense.removed({"features.0": n}), f"/x/{p}/pruned") for n, p in ((8, "a"), (16, "b")))
    where = Where((1,), ("fp32",), "cpu")
    ((point,),) = suite.grouped([a, b, a], where)
    assert [one.name for one in point.networks] == ["a/pruned", "b/pruned"]
    ((point,),) = suite.grouped([a, a], where)
    assert [one.name for one in point.networks] == ["pruned"]
    same = Subject("pruned", b.recipe, "/y/a/pruned")
    with pytest.raises(UserError, match="two networks would be called 'a/pruned'"):
        suite.grouped([a, same], where)
    with pytest.raises(UserError, match="two networks would be called 'dense'"):
        suite.grouped([Subject("dense", a.recipe, "/x/dense")], where)
    # the dense network itself may be called so
    ((point,),) = suite.grouped([Subject("dense", dense, "/x/dense"), a], where)
    assert (point.dense.name, [one.name for one in point.networks]) == ("dense", ["pruned"])
