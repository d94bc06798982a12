"""The workflows: actions pinned by hash, commands that the command line knows, every paper in the nightly matrix."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import cli
from bench.data import EMBEDDED
from bench.planning import papers

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path).values() for step in job["steps"]]


def test_there_are_workflows() -> None:
    assert [path.name for path in FILES] == ["ci.yml", "nightly.yml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_actions_are_pinned_by_hash_and_say_their_version(path: Path) -> None:
    uses = [line.strip() for line in path.read_text().splitlines() if "uses:" in line]
    assert uses
    for line in uses:
        assert re.fullmatch(r"(- )?uses: actions/[a-z-]+(/[a-z]+)?@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_commands_are_ones_that_exist(path: Path) -> None:
    """The command line takes every ``bench`` command as written; scripts and environments are the project's."""
    for step in steps(path):
        for line in step.get("run", "").splitlines():
            words = shlex.split(line.replace("${{ matrix.paper }}", "thinet"))
            if words[0] == "bench":
                assert cli._parser().parse_args(words[1:]).command == words[1]
            elif words[0] == "bash":
                assert (ROOT / words[1]).is_file()
            elif words[0] == "tox":
                assert words[1] == "-e" and f"[testenv:{words[2]}]" in (ROOT / "tox.ini").read_text()
            else:
                given = ["--constraints", "constraints.txt", "--overrides", "overrides.txt"]
                install = ["python", "-m", "pip", "install"]
                uv = ["uv", "pip", "install", "--system", *given, "--editable", "."]
                assert words in (uv, [*install, "tox"], [*install, "uv"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_who_sees_a_secret(path: Path) -> None:
    """The night alone: no step that installs packages or checks out code, and no checkout leaves its token behind."""
    assert "env" not in yaml.safe_load(path.read_text()) and not any("env" in job for job in jobs(path).values())
    for step in steps(path):
        if "secrets." in str(step):
            assert step["run"].startswith("bench nightly ") and "secrets." not in step["run"]
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_a_night_that_waits_for_its_machine_holds_up_no_other() -> None:
    """Each job has its own group, and the one that needs a machine of ours is asked for by a variable."""
    path = ROOT / ".github" / "workflows" / "nightly.yml"
    assert "concurrency" not in yaml.safe_load(path.read_text())
    groups = {name: job["concurrency"]["group"] for name, job in jobs(path).items()}
    assert groups == {"embedded": "nightly-${{ matrix.paper }}", "gpu": "nightly-gpu"}
    assert [name for name, job in jobs(path).items() if "if" in job] == ["gpu"]


def test_a_night_is_not_cut_off_by_its_job() -> None:
    """The budget, five minutes behind it, and half an hour for what is beyond: packages, the cache, pages."""
    for job in jobs(ROOT / ".github" / "workflows" / "nightly.yml").values():
        (night,) = [step["run"] for step in job["steps"] if step.get("run", "").startswith("bench nightly")]
        assert job["timeout-minutes"] >= int(shlex.split(night)[-1]) + 5 + 30


def test_the_cache_is_tidied_before_it_is_saved() -> None:
    (job, _) = jobs(ROOT / ".github" / "workflows" / "nightly.yml").values()
    done = [step.get("run") or step["uses"].partition("@")[0] for step in job["steps"]]
    places = [next(k for k, one in enumerate(done) if one.startswith(what)) for what in ("bench nightly", "bench gc")]
    assert places[0] < places[1] < done.index("actions/cache/save")
    assert [step.get("if") for step in job["steps"] if step.get("run") == "bench gc"] == ["always()"]


def test_every_paper_that_has_embedded_rows_has_its_night() -> None:
    """A night of none would end as a mistake; the study of fine-tuning is about CIFAR-10 alone."""
    matrix = jobs(ROOT / ".github" / "workflows" / "nightly.yml")["embedded"]["strategy"]["matrix"]
    assert matrix["paper"] == sorted(set(papers()) - {"fine_tuning_study"})
    for name, paper in papers().items():
        embedded = any(row.scales is None or set(row.scales) & set(EMBEDDED) for row in paper.rows)
        assert embedded == (name in matrix["paper"]), name


def test_supported_pythons_are_tested() -> None:
    """Those that the README and the package's metadata promise."""
    matrix = jobs(ROOT / ".github" / "workflows" / "ci.yml")["ci"]["strategy"]["matrix"]["python"]
    assert matrix == ["3.11", "3.12", "3.13"]
    assert "Python 3.11 to 3.13" in (ROOT / "README.md").read_text()


def test_the_labels_of_our_own_runners_are_declared() -> None:
    """For actionlint, which knows GitHub's."""
    asked = {label for path in FILES for job in jobs(path).values() for label in _labels(job["runs-on"])}
    known = yaml.safe_load((ROOT / ".github" / "actionlint.yaml").read_text())["self-hosted-runner"]["labels"]
    assert asked - {"self-hosted", "linux", "ubuntu-latest"} == set(known)


def _labels(runs_on: str | list[str]) -> list[str]:
    return [runs_on] if isinstance(runs_on, str) else runs_on
