"""Printed sizes decided from built networks: against closed forms, and against what the papers print."""

import functools
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from math import ceil
from pathlib import Path

import pytest

from bench import cache, planning, sizes
from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.pruning import surgery
from bench.registry import OtherConvention, Published, load
from bench.rows import Row
from reproductions import channel_pruning, fbs

FOLDER = Path(fbs.__file__).parent / "registry"
PAPERS = planning.papers()
VGG16 = channel_pruning.VGG_SHAPE

# M-CifarNet: inputs, filters and output side of its eight 3x3 convolutions (Gao et al. 2019, appendix)
MCIFARNET = [
    (3, 64, 30),
    (64, 64, 30),
    (64, 128, 15),
    (128, 128, 15),
    (128, 128, 15),
    (128, 192, 8),
    (192, 192, 8),
    (192, 192, 8),
]
CLASSIFIER = 192 * 10


@functools.cache
def decided(paper: str) -> list[sizes.Decided]:
    """A paper's printed sizes, counted once."""
    return sizes.of_paper(PAPERS[paper], load(paper, FOLDER))


def mcifarnet_macs(density: float, dense_inputs: tuple[int, ...] = ()) -> int:
    """MACs of gated M-CifarNet by hand: k = ceil(d C) filters of k inputs, a product for each pair and each output.

    ``dense_inputs`` are the layers in front of which a mask is lost.
    """
    total, read = CLASSIFIER, 3
    for number, (inputs, filters, side) in enumerate(MCIFARNET):
        read = inputs if number in dense_inputs else read
        kept = ceil(density * filters)
        total += 9 * read * kept * side * side + read * filters + side * side * filters
        read = kept
    return total


def test_the_counts_are_those_of_closed_forms() -> None:
    gated = fbs.MCIFARNET.gated(500, fbs.PAPER)
    assert sizes.size(gated, "macs", "conv+fc+gates") == mcifarnet_macs(0.5) == 44_276_032
    # dropout stands behind conv3 and conv6
    lost = mcifarnet_macs(0.5, dense_inputs=(4, 7))
    assert sizes.size(gated, "macs", "conv+fc+gates, masks lost at dropout") == lost == 57_905_472
    dense = sum(9 * inputs * filters * side * side for inputs, filters, side in MCIFARNET) + CLASSIFIER
    assert sizes.size(gated, "speedup", "conv+fc+gates") == Fraction(dense, mcifarnet_macs(0.5))
    assert sizes.size(gated, "macs_removed", "conv+fc+gates") == 100 - Fraction(100 * mcifarnet_macs(0.5), dense)
    # phi, rho and beta, where the batch norms had a scale and a shift
    filters = sum(filters for _, filters, _ in MCIFARNET)
    weights = sum(9 * inputs * filters for inputs, filters, _ in MCIFARNET)
    phi = sum(inputs * filters for inputs, filters, _ in MCIFARNET)
    rest = CLASSIFIER + 10
    growth = Fraction(weights + phi + 2 * filters + rest, weights + 2 * filters + rest)
    assert sizes.size(gated, "params_growth", "all") == growth
    assert sizes.size(gated, "params_reduction", "all") == 1 / growth


def test_the_conventions_of_a_plain_network() -> None:
    """VGG-16's published totals; fully connected layers hold 123,633,664 MACs and as many weights."""
    assert sizes.size(VGG16, "macs", "conv") == 15_346_630_656
    assert sizes.size(VGG16, "macs", "conv+fc") == 15_470_264_320
    assert sizes.size(VGG16, "macs", "2x conv+fc") == 30_940_528_640
    assert sizes.size(VGG16, "params", "all") == 138_357_544
    assert sizes.size(VGG16, "params", "weights") == 138_357_544 - 4_224 - 2 * 4096 - 1000
    assert sizes.size(VGG16, "memory", "fp32 weights") == Fraction(138_344_128, 262_144)
    half = VGG16.removed({"features.0": 32})
    removed = 9 * 224 * 224 * (3 * 32 + 32 * 64)
    assert sizes.size(half, "macs_removed", "conv") == Fraction(100 * removed, 15_346_630_656)
    assert sizes.size(half, "params_removed", "weights") == Fraction(100 * 9 * (3 * 32 + 32 * 64), 138_344_128)
    assert sizes.size(half, "speedup", "2x conv+fc") == Fraction(15_470_264_320, 15_470_264_320 - removed)


@pytest.mark.parametrize(
    ("recipe", "metric", "convention"),
    [
        (VGG16, "macs", "conv+fc+gates"),
        (VGG16, "macs", "unstated"),
        (VGG16, "params", "unstated"),
        (fbs.MCIFARNET.gated(500, fbs.PAPER), "macs", "conv+fc"),
        (fbs.MCIFARNET.gated(500, fbs.PAPER), "speedup", "conv"),
    ],
)
def test_a_network_that_cannot_be_counted_so_is_not(recipe: Recipe, metric: str, convention: str) -> None:
    with pytest.raises(OtherConvention, match="other convention"):
        sizes.size(recipe, metric, convention)


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown size 'flops': use one of macs, params"):
        sizes.size(VGG16, "flops", "conv")


def test_every_printed_size_of_channel_pruning_and_fbs_is_decided_or_says_why_not() -> None:
    assert {d.published.printed: str(d.verdict) for d in decided("channel_pruning")} == {
        "15346630656": "exact",
        "5.036310528": "exact",
    }
    found = {(d.published.row, d.published.printed, d.published.unit): str(d.verdict) for d in decided("fbs")}
    # what others report is in brackets
    others = [
        *(("FBS d=0.5 (rerun)", "3.93", "x"), ("FBS d=0.5 (rerun)", "1.11", "x"), ("FBS d=0.7 (rerun)", "2", "x")),
        ("baseline", "1.74", "1e8"),
    ]
    assert found == dict.fromkeys(others, "[exact]") | dict.fromkeys(
        [
            ("dense baseline (docs)", "174", "M"),
            ("FBS d=0.5 gate50 (docs)", "57", "M"),
            ("FBS at 90.50% top-1", "3.93", "x"),
            ("NS at 90.50% top-1", "1.19", "x"),
            ("NS+FBS at 90.50% top-1", "3.22", "x"),
            ("FBS d=0.7", "1.12", "G"),
            ("FBS d=0.7", "1.62", "x"),
            ("FBS", "1.98", "x"),
            ("slimmed + FBS d=0.6", "3.38", "G"),
        ],
        "exact",
    )
    for key in ("channel_pruning", "fbs", "localization_aware_ssd"):
        linked = {d.published for d in decided(key)}
        left = [entry for entry in load(key, FOLDER) if entry.kind == "size" and entry not in linked]
        assert all(entry.undecidable for entry in left)
        assert not any(d.published.undecidable for d in decided(key))
    reasons = Counter(e.undecidable for e in load("fbs", FOLDER) if e.kind == "size" and e.undecidable)
    assert reasons == {
        "other method's network": 4,
        "network not published": 4,
        "follows from a rounded value": 1,
    }


def published(printed: str, convention: str = "conv+fc", **changes: object) -> Published:
    """A printed size of the row "ours" in Table 1."""
    fields: dict[str, object] = {
        "paper": "toy",
        "table": "Table 1",
        "row": "ours",
        "model": "",
        "dataset": "",
        "metric": "FLOPs",
        "unit": "G",
        "value": float(printed),
        "kind": "size",
        "convention": convention,
        "protocol": "",
        "direction": "exact",
        "tolerance": None,
        "source": "",
        "verified": True,
        "printed": printed,
    }
    return Published(**(fields | changes))  # type: ignore[arg-type]


def test_a_row_s_sizes_are_judged_in_the_published_convention_and_unit() -> None:
    row = Row("Table 1", "ours", "imagenet", VGG16, sizes={"macs": [("ours", "FLOPs")]})
    for printed, convention, verified, expected in (
        ("15.47", "conv+fc", True, "exact"),
        ("30.94", "2x conv+fc", True, "exact"),
        ("30.94", "conv+fc", True, "wrong"),  # it was printed in another convention than stated
        ("15.34", "conv", True, "exact"),  # cut
        ("15.35", "conv", True, "exact"),  # rounded
        ("15.36", "conv", True, "wrong"),
        ("15.47", "unstated", True, "other convention"),
        ("15.47", "conv+fc", False, "[exact]"),
    ):
        (decided,) = sizes.of_row(row, [published(printed, convention, verified=verified)])
        assert str(decided.verdict) == expected
        assert (decided.value is None) == (expected == "other convention")


def test_links_must_find_one_size_each() -> None:
    row = Row("Table 1", "ours", "imagenet", VGG16, sizes={"macs": [("ours", "FLOPs")]})
    with pytest.raises(ValueError, match="no published size 'FLOPs' of 'ours'"):
        sizes.of_row(row, [])
    with pytest.raises(ValueError, match="no published size"):
        sizes.of_row(row, [published("15.47", kind="check")])
    with pytest.raises(LookupError, match="2 published values match"):
        sizes.of_row(row, [published("15.47"), published("15.47", model="other")])
    assert len(sizes.of_row(replace(row, sizes={"macs": [("ours", "FLOPs", "")]}), [published("15.47")])) == 1
    with pytest.raises(ValueError, match="there is no network of the paper's shape"):
        sizes.of_row(replace(row, shape=None), [published("15.47")])
    paper = replace(PAPERS["fbs"], rows=[row, replace(row, name="again")])
    with pytest.raises(ValueError, match="again: FLOPs of ours is linked twice"):
        sizes.of_paper(paper, [published("15.47")])


def test_filters_removed_together_leave_the_network_that_one_by_one_leaves() -> None:
    """The same tensors by name and shape; ties and impossible widths are refused."""
    recipe = Recipe("cifar_preact_resnet20", {}, (3, 32, 32)).removed({"layer1.0.conv1": 3, "layer3.1.conv1": 20})
    together = recipe.base.build("meta")
    surgery.shrink_together(together, recipe.input_shape, recipe.widths)
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (together, recipe.build("meta"))]
    assert shapes[0] == shapes[1]
    for widths, said in (({"layer1.0.conv2": 3}, "cannot be removed alone"), ({"layer1.0.conv1": 17}, "width 17")):
        with pytest.raises(UserError, match=said):
            surgery.shrink_together(recipe.base.build("meta"), recipe.input_shape, widths)


def test_verdicts_are_remembered_for_the_sources_and_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again nothing is built; another registry or other sources are asked anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paper, published = PAPERS["fbs"], load("fbs", FOLDER)
    assert len(decided("fbs")) > 10
    assert sizes.decided(paper, published) == decided("fbs")
    asked: list[int] = []
    monkeypatch.setattr(sizes, "of_paper", lambda *given: asked.append(1) or [])
    assert sizes.decided(paper, published) == decided("fbs") and not asked
    assert sizes.decided(paper, [replace(published[0], source="another"), *published[1:]]) == []
    monkeypatch.setattr(cache, "sources", lambda: "others")
    assert sizes.decided(paper, published) == [] and len(asked) == 2


def test_a_network_is_built_once_for_all_that_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = Recipe.build
    monkeypatch.setattr(Recipe, "build", lambda self, device="cpu": built.append(self) or build(self, device))
    small = Recipe("cifar_resnet20", {"num_classes": 7}, (3, 24, 24)).removed({"layer1.0.conv1": 5})
    for metric, convention in (("macs", "conv"), ("macs", "2x conv+fc"), ("speedup", "conv"), ("params", "all")):
        sizes.size(small, metric, convention)
    assert built == [small.base, small.base]
