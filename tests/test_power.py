"""What can be decided at the size of the data: the rule by hand, and the power by simulated experiments."""

import json
import math

import numpy as np
import pytest

from bench import verdict
from bench.cli import main
from bench.registry import Published
from bench.report import power


def published(
    value: str,
    metric: str = "top1_err_increase",
    dataset: str = "CIFAR-10",
    unit: str = "pp",
    effect: float | None = None,
) -> Published:
    return Published(
        paper="toy",
        table="Table 1",
        row="ours",
        model="net",
        dataset=dataset,
        metric=metric,
        value=float(value),
        unit=unit,
        kind="accuracy",
        convention="",
        protocol="",
        direction="lower",
        tolerance=0.5,
        effect=effect,
        source="",
        verified=True,
        printed=value,
    )


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        # 1 point of effect and half of 6.5 % errors: 4.25 % of 10,000 images change
        (published("1.0", effect=1.0), 100 * math.sqrt(0.0425 / 10_000)),
        # the error itself says how many there are: 0.31 points and half of 6.51 %
        (published("6.51", "test_err", unit="%", effect=0.31), 100 * math.sqrt(0.03565 / 10_000)),
        # top-5 on ImageNet, an accuracy of 88.1 %: 1.8 points and half of 11.9 %
        (published("88.1", "top5_acc", "ImageNet", "%", 1.8), 100 * math.sqrt(0.0775 / 50_000)),
        # printed as a fraction
        (published("0.881", "top5_acc", "ImageNet", "", 0.018), math.sqrt(0.0775 / 50_000)),
        (published("68.7", "mAP", "VOC07 test", "%"), 0.36),
        (published("68.7", "top1_acc", "unheard of", "%"), None),
    ],
)
def test_the_spread_of_a_run_follows_the_rule(entry: Published, expected: float | None) -> None:
    assert power.spread(entry) == (None if expected is None else pytest.approx(expected, rel=1e-9))


def test_the_rule_is_that_of_paired_changes() -> None:
    """Simulated: 1 % of 10,000 images lost on balance, 4.25 % changed; the difference varies as the rule says."""
    rng = np.random.default_rng(0)
    lost, gained = (0.0425 + 0.01) / 2, (0.0425 - 0.01) / 2
    draws = rng.multinomial(10_000, [lost, gained, 1 - lost - gained], size=20_000)
    simulated = (100 * (draws[:, 0] - draws[:, 1]) / 10_000).std()
    assert power.spread(published("1.0", effect=1.0)) == pytest.approx(simulated, rel=0.02)


def test_half_widths_and_power_are_the_verdict_s(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = power.of_values([published("1.0", effect=1.0)])
    assert found.sigma is not None
    assert found.half_width(1) == pytest.approx(1.644854 * found.sigma * math.sqrt(2), rel=1e-6)
    assert found.half_width(3) == pytest.approx(2.919986 * found.sigma * math.sqrt(4 / 3), rel=1e-6)
    assert found.power(1) == verdict.power(found.published, found.sigma, 1)
    # a difference of 0.31 points on 10,000 images is too small to decide with one run or three
    small = power.of_values([published("0.31", effect=0.31)])[0]
    assert not small.decidable(1) and not small.decidable(3)
    assert found.decidable(1)


def test_the_command_counts_every_value_once(capsys: pytest.CaptureFixture[str]) -> None:
    """All registries, the study's empty one too; the totals of the table are those of the values in JSON."""
    assert main(["power", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert sorted(value) == [
        "channel_pruning",
        "discrimination_aware",
        "fbs",
        "fine_tuning_study",
        "gating_study",
        "localization_aware_ssd",
        "selection_study",
        "thinet",
        "versatile_filters",
    ]
    cifar = [one for powers in value.values() for one in powers if one["dataset"] == "CIFAR-10"]
    assert len(cifar) == 104
    assert main(["power"]) == 0
    line = next(li for li in capsys.readouterr().out.splitlines() if li.startswith("total") and "CIFAR-10" in li)
    counted = [one for one in cifar if one["verified"] and one["origin"] != "others"]
    assert len(counted) == 81  # 3 recollections and 20 of others are left out
    decidable = [str(sum(one["decidable"][runs] for one in counted)) for runs in ("1", "3")]
    assert line.split()[-4:] == ["81", *decidable, "23"]
    assert main(["power", "nobody"]) == 2
