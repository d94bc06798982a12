"""Claims become rows: which two networks are compared, in which order, about which dense one, with which seeds."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import claims, contrasts, planning
from bench.claims import Claim
from bench.contrasts import claim_row
from bench.data import BOXES
from bench.measure.detection_steps import DetectionComparison
from bench.measure.steps import Evaluation, run_evaluated
from bench.models.recipe import Recipe
from bench.rows import Chain, Row, Setting
from bench.steps import DataValue, Kind, Step, make_step

RECIPE = Recipe("cifar_resnet20", {"num_classes": 10}, (3, 16, 16))


def named(name: str, seed: int) -> Step:
    return make_step(Kind.EVALUATE, name, run_evaluated, Evaluation(seed), [], device="cpu")


def row(name: str, seeds: tuple[int, ...] = (0, 1, 2), scales: tuple[str, ...] | None = None, shift: int = 0) -> Row:
    """A row whose evaluations are told by name and seed."""

    def chain(setting: Setting, recipe: Recipe) -> Chain:
        runs = [named(f"{name} {seed}", 100 * shift + seed) for seed in setting.seeds]
        return Chain([], [], runs, [named(f"dense {seed}", 1000 + seed) for seed in setting.seeds])

    return Row("Table 1", name, "cifar10", dense=lambda *_: RECIPE, chain=chain, seeds=seeds, scales=scales)


def claim(first: str = "A", second: str = "B") -> Claim:
    return Claim("a-beats-b", "toy", "A beats B", "Table 1", first, second, "Table 1", "top1", None, 0.5, "p. 1", True)


def setting(seeds: tuple[int, ...]) -> Setting:
    return Setting("digits", DataValue("content", {}), 10, 100, 50, "cpu", seeds, None)


def test_first_minus_second_about_the_dense_network_of_the_first() -> None:
    made = claim_row(claim(), [row("A", shift=1), row("B", shift=2)])
    assert (made.table, made.name, made.scale, made.seeds) == ("Claims", "a-beats-b", "cifar10", (0, 1, 2))
    assert made.chain is not None
    (step,) = made.chain(setting((0, 1)), RECIPE).records
    assert [parent.name for parent in step.parents] == ["A 0", "A 1", "B 0", "B 1", "dense 0", "dense 1"]


def test_detectors_are_contrasted_first_minus_second() -> None:
    made = claim_row(claim(), [replace(row("A", shift=1), data=BOXES), replace(row("B", shift=2), data=BOXES)])
    assert made.chain is not None and made.data == BOXES
    (step,) = made.chain(setting((0, 1)), RECIPE).records
    assert [parent.name for parent in step.parents] == ["A 0", "A 1", "B 0", "B 1"]
    assert step.params == DetectionComparison("difference")


@pytest.mark.parametrize("weights", [None, "sha"])
def test_the_second_row_is_made_of_its_own_network_in_the_same_setting(weights: str | None) -> None:
    asked = []

    def dense(scale: str, classes: int, given: bool) -> Recipe:
        asked.append((scale, classes, given))
        return replace(RECIPE, builder="cifar_resnet56")

    recipes = []

    def chain(setting: Setting, recipe: Recipe) -> Chain:
        recipes.append((setting.weights, recipe.builder))
        return Chain([], [], [named("B", 1)] * 3, [named("dense", 2)] * 3)

    made = claim_row(claim(), [row("A", shift=1), replace(row("B"), dense=dense, chain=chain)])
    assert made.chain is not None
    made.chain(replace(setting((0, 1, 2)), weights=weights), RECIPE)
    assert asked == [("digits", 10, weights is not None)]
    assert recipes == [(weights, "cifar_resnet56")]


def test_seeds_and_scales_are_the_common_ones() -> None:
    made = claim_row(claim(), [row("A", (0, 1, 2), ("digits", "cifar10")), row("B", (0,), ("cifar10",))])
    assert (made.seeds, made.scales) == ((0,), ("cifar10",))


def test_seeds_of_a_scale_are_the_common_ones_of_that_scale() -> None:
    first = replace(row("A", (0, 1, 2)), seeds_at={"clutter": (0, 1)})
    made = claim_row(claim(), [first, replace(row("B", (0, 1, 2)), seeds_at={"digits": (2,)})])
    assert made.seeds == (0, 1, 2)
    assert [made.seeds_on(scale) for scale in ("clutter", "digits", "cifar10")] == [(0, 1), (2,), (0, 1, 2)]


def test_a_pair_that_comes_back_for_every_seed_is_one_pair() -> None:
    def same(name: str) -> Row:
        one = named(name, 7 + len(name))
        return Row(
            "Table 1",
            name,
            "cifar10",
            dense=lambda *_: RECIPE,
            chain=lambda s, r: Chain([], [], [one] * len(s.seeds), [one] * len(s.seeds)),
        )

    made = claim_row(claim("A", "BB"), [same("A"), same("BB")])
    assert made.chain is not None
    (step,) = made.chain(setting((0, 1, 2)), RECIPE).records
    assert [parent.name for parent in step.parents] == ["A", "BB", "A"]


def test_a_row_that_cannot_run_gives_the_reason() -> None:
    absent = claim_row(claim("A", "nobody"), [row("A")])
    assert (absent.chain, absent.missing) == (None, "no row implements nobody")
    missing = Row("Table 1", "B", "imagenet", missing="method not implemented yet")
    assert claim_row(claim(), [row("A"), missing]).missing == "method not implemented yet: B"


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        # typed from the papers' notes: which row is claimed to be better
        ("cp-lasso-beats-first-k", "LASSO, uniform", "first k, uniform"),
        ("cp-lasso-beats-max-response", "LASSO, uniform", "max response, uniform"),
        ("cp-lasso-beats-weight-sum", "LASSO, uniform", "weight sum, uniform"),
        ("cp-enhanced-beats-plain", "Ours (enhanced)", "Ours"),
        ("cp-pruned-beats-scratch-resnet56", "Ours (fine-tuned)", "From scratch"),
        ("fbs-beats-static-4x", "FBS at d=0.5", "CP (LASSO) at 3.94x"),
        ("fbs-beats-slimming-2x", "FBS at d=0.7", "NS at 2.01x"),
        ("lcp-beats-dcp", "LCP, fine-tuned", "DCP, fine-tuned"),
    ],
)
def test_the_papers_claims_compare_the_rows_that_they_are_about(name: str, first: str, second: str) -> None:
    folder = Path(contrasts.__file__).parents[1] / "reproductions" / "registry"
    known = {one.claim: one for one in claims.load(folder)}
    assert (known[name].first, known[name].second) == (first, second)
    paper = planning.papers()[known[name].paper]
    made = next(one for one in paper.rows if (one.table, one.name) == ("Claims", name))
    assert made.missing is None and made.chain is not None
