"""The code behind a step: sources are edited, and the keys of a plan say what would run again."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import code
from bench.data.identity import value_of
from bench.rows import Row, Setting
from bench.steps import DataValue, Step, in_order
from reproductions import channel_pruning, fbs, localization_aware_ssd

ROOT = Path(__file__).parent.parent
Edit = tuple[str, str, str]

WORDS: list[Edit] = [
    ("bench/errors.py", "class UserError", "# a comment\nclass UserError"),
    ("bench/train/fit.py", "def train(", "# a comment\ndef train("),
    ("bench/train/fit.py", '"""Trains a classifier on ``split``', '"""Trains on ``split``'),
    ("bench/train/fit.py", "lower the learning rate", "choose a lower learning rate"),
    ("bench/pruning/selection.py", "raise UserError(", "raise UserError('Note: ' + "),
    ("bench/measure/accuracy.py", '"top-1', '"Top-1'),
    ("bench/store.py", "free some and run", "make room and run"),
    ("reproductions/localization_aware_ssd.py", 'CRITERIA = "Criteria at equal', 'CRITERIA = "Methods at equal'),
    ("reproductions/localization_aware_ssd.py", '"alpha, m and the size', '"The values of alpha, m and the size'),
]
RIDGE = ("bench/pruning/reconstruction.py", "RIDGES = (", "RIDGES = (1e-7, ")
AUGMENTATION = ("bench/data/augment.py", "draws < 0.5", "draws < 0.4")
INTERVAL = ("bench/measure/statistics.py", "_LEAST_SHARE = 0.1", "_LEAST_SHARE = 0.2")
# the steps that say something over several networks
OVER_SEEDS = ("compared(", "summarised(")
NORMALISATION = ("bench/data/digits.py", "(0.5,) * 3, (0.5,) * 3", "(0.4,) * 3, (0.5,) * 3")
RESIZE = ("bench/data/digits.py", 'mode="bilinear", align_corners=False', 'mode="nearest"')


def copied(place: Path, *edits: Edit) -> Path:
    """A copy of the sources with (file, old, new) replaced."""
    for package in ("bench", "reproductions"):
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, old, new in edits:
        text = (place / file).read_text()
        assert old in text, (file, old)
        (place / file).write_text(text.replace(old, new))
    return place


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes the walk read the sources of another folder."""
    cached = (code._reached, code._module, code._references, code._text)
    original = code._path

    def read_from(place: Path) -> None:
        for function in cached:
            function.cache_clear()

        def path(module: str) -> Path | None:
            found = original(module)
            inside = found is not None and found.is_relative_to(ROOT) and not found.is_relative_to(ROOT / "tests")
            return place / found.relative_to(ROOT) if found is not None and inside else found

        monkeypatch.setattr(code, "_path", path)

    yield read_from
    for function in cached:
        function.cache_clear()


def digits_from(place: Path) -> DataValue:
    """The value of the digits as the sources in ``place`` make them."""
    spec = importlib.util.spec_from_file_location("edited_digits", place / "bench/data/digits.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return value_of(module.digits_images(16))


def rows_steps(rows: list[Row], setting: Setting) -> list[Step]:
    leaves: list[Step] = []
    for row in rows:
        assert row.dense is not None and row.chain is not None
        chain = row.chain(setting, row.dense(setting.scale, 10, setting.weights is not None))
        leaves += [*chain.networks, *chain.records]
    return in_order(leaves)


def keys(place: Path) -> list[dict[str, str]]:
    """Keys by name of the steps of Table 8, of the same with given weights, of Figure 3a, and of SSD's criteria."""
    digits = digits_from(place)
    setting = Setting("digits", digits, 10, 1437, 360, "cpu", (0,), None)
    cp = [row for row in channel_pruning.paper().rows if row.table == channel_pruning.TABLE8]
    figure = [row for row in fbs.paper().rows if row.table == fbs.FIGURE3]
    boxes = [row for row in localization_aware_ssd.paper().rows if row.table == localization_aware_ssd.CRITERIA]
    scenes = replace(setting, scale="scenes", data=DataValue("scenes", "scenes"), train_images=400)
    plans = [(cp, setting), (cp, replace(setting, weights="w")), (figure, setting), (boxes, scenes)]
    return [{step.name: step.key for step in rows_steps(rows, where)} for rows, where in plans]


def differing(base: list[dict[str, str]], found: list[dict[str, str]]) -> list[set[str]]:
    assert [set(plan) for plan in base] == [set(plan) for plan in found]
    return [{name for name in old if old[name] != new[name]} for old, new in zip(base, found, strict=True)]


def marked(plan: dict[str, str], *marks: str) -> set[str]:
    found = {name for name in plan if any(mark in name for mark in marks)}
    assert found, marks
    return found


@pytest.fixture(scope="module")
def base() -> list[dict[str, str]]:
    """The keys of the sources as they are."""
    return keys(ROOT)


def test_words_run_nothing_again(base: list[dict[str, str]], sources: Any, tmp_path: Path) -> None:
    """A comment, a docstring, the text of an error, a heading of a column or of a table, a deviation."""
    sources(copied(tmp_path / "copy", *WORDS))
    assert differing(base, keys(tmp_path / "copy")) == [set()] * 4


def test_code_runs_again_what_depends_on_it(base: list[dict[str, str]], sources: Any, tmp_path: Path) -> None:
    """The ridge, the augmentation, the intervals, the normalisation, the resize: exactly the steps behind each."""
    cp, given, figure, _ = base

    def changed(name: str, edit: Edit) -> list[set[str]]:
        place = copied(tmp_path / name, edit)
        sources(place)
        return differing(base, keys(place))

    # all pruning by reconstruction and what follows; no dense network, no network from scratch, no gates
    assert changed("ridge", RIDGE)[:3] == [marked(cp, "pruned("), marked(given, "pruned("), marked(figure, "pruned(")]
    # all that was trained; with given weights only what was fine-tuned; detectors have an augmentation of their own
    tuned = marked(given, "fine-tuned(", "distilled(", "from scratch")
    assert changed("augmentation", AUGMENTATION) == [set(cp), tuned, set(figure), set()]
    compared = [marked(plan, *OVER_SEEDS) for plan in base[:3]]
    assert changed("interval", INTERVAL)[:3] == compared
    for name, edit in (("normalisation", NORMALISATION), ("resize", RESIZE)):
        assert changed(name, edit) == [set(cp), set(given) - {"dense(cifar_resnet20)"}, set(figure), set()]


def plan(place: Path) -> list[dict[str, str]]:
    """The keys of Table 8 by name, as the command tells them with the sources in ``place``."""
    arguments = ["run", "channel_pruning", "--table", "Table 8", "--scale", "digits", "--seed", "0", "--plan", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(place)}
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=True)
    return [{step["step"]: step["key"] for step in json.loads(done.stdout)["steps"]}]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What a copy without edits plans."""
    return plan(copied(tmp_path_factory.mktemp("base")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edits", "again"), [(WORDS, ()), ([RIDGE], ("pruned(",)), ([INTERVAL], OVER_SEEDS), ([NORMALISATION], ("(",))]
)
def test_the_plan_of_an_edited_copy(
    edits: list[Edit], again: tuple[str, ...], planned: list[dict[str, str]], tmp_path: Path
) -> None:
    """The same through the command: a copy of the package is edited and ``--plan --json`` read in its own process."""
    (found,) = differing(planned, plan(copied(tmp_path, *edits)))
    assert found == (marked(planned[0], *again) if again else set())


def test_the_protocol_is_in_the_keys(tmp_path: Path) -> None:
    """``--protocol`` on a folder of images at 224: other keys for all that reads it."""
    from bench.data.images import FileSplit, ImageSet

    values = []
    for protocol in ("short256", "squash256"):
        part = FileSplit([(tmp_path / "a.png", 0)], 224, protocol)
        values.append(value_of(ImageSet("x", "f", ("a",), 224, part, part, protocol)))
    assert values[0].plain != values[1].plain and values[0].training != values[1].training


# --------------------------------------------------------------------------------------------------------------------
# The walk through definitions, on modules written here


def package(place: Path, **files: str) -> None:
    for name, text in files.items():
        (place / f"{name}.py").write_text(text)


def hashes(place: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> str:
    """The hash behind ``first:run`` of these files, which import one another by name."""
    package(place, **files)
    monkeypatch.setattr(code, "_path", lambda module: next(iter(place.glob(f"{module}.py")), None))
    for function in (code._reached, code._module, code._references, code._text):
        function.cache_clear()
    try:
        return code.reached(["first:run"]).hash
    finally:
        for function in (code._reached, code._module, code._references, code._text):
            function.cache_clear()


FIRST = (
    "import second\nfrom third import helper as h, TABLE\nLIMIT = 3\n"
    "def run():\n    return second.add(LIMIT) + h()\ndef other():\n    return 1\n"
)
SECOND = "import fourth\ndef add(x):\n    return x + 1\ndef unused():\n    return fourth.value\n"
THIRD = "TABLE = {1: 2}\ndef helper():\n    'doc'\n    return TABLE[1]\n"


@pytest.mark.parametrize(
    ("name", "old", "new", "counts"),
    [
        ("first", "LIMIT = 3", "LIMIT = 4", True),
        ("first", "return 1", "return 2", False),
        ("second", "x + 1", "x + 2", True),
        ("second", "fourth.value", "fourth.other", False),
        ("third", "{1: 2}", "{1: 3}", True),
        ("third", "'doc'", "'another'", False),
        ("third", "TABLE = {", "print('on import')\nTABLE = {", True),
        ("first", "def other", "# words\ndef other", False),
        ("first", "return second.add(LIMIT) + h()", "return h() + second.add(LIMIT)", True),
        ("first", "def run():", "def run():\n    import fourth\n    fourth.value", True),
    ],
)
def test_definitions_are_followed_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str, counts: bool
) -> None:
    files = {"first": FIRST, "second": SECOND, "third": THIRD, "fourth": "value = 1\nother = 2\n"}
    before = hashes(tmp_path, monkeypatch, **files)
    assert old in files[name]
    after = hashes(tmp_path, monkeypatch, **{**files, name: files[name].replace(old, new)})
    assert (after != before) == counts


def test_a_package_that_hands_on_its_own_module_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``from .net import Net`` in a package means its own module, also where package and module have one name."""

    def found(module: str) -> Path | None:
        base = tmp_path.joinpath(*module.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)

    def the_hash(value: int) -> str:
        (tmp_path / "net").mkdir(exist_ok=True)
        (tmp_path / "net" / "__init__.py").write_text("from .net import Net\nfrom . import parts\n")
        (tmp_path / "net" / "net.py").write_text(f"from .parts import SIZE\nclass Net:\n    size = SIZE + {value}\n")
        (tmp_path / "net" / "parts.py").write_text("SIZE = 1\n")
        (tmp_path / "first.py").write_text(
            "from net import Net\nimport net.net\ndef run():\n    return Net, net.parts\n"
        )
        for function in (code._reached, code._module, code._references, code._text):
            function.cache_clear()
        return code.reached(["first:run"]).hash

    monkeypatch.setattr(code, "_path", found)
    try:
        assert the_hash(1) == the_hash(1) != the_hash(2)
        assert ("net.parts", "SIZE") in code.reached(["first:run"]).definitions
    finally:
        for function in (code._reached, code._module, code._references, code._text):
            function.cache_clear()


def test_what_an_installer_put_anywhere_is_no_code_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``pip install --target``: what its record names is a package; what lies beside that is not."""
    for folder in ("target", "own"):
        for name in (f"{folder}_package/__init__", f"{folder}_package/inner/__init__", f"{folder}_package/inner/part"):
            (tmp_path / folder / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / f"{name}.py").write_text("def run():\n    pass\n")
        (tmp_path / folder / f"{folder}_single.py").write_text("def run():\n    pass\n")
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    for folder, names in (("target", ("target_package/__init__.py", "target_single.py")), ("own", ("other.py",))):
        (tmp_path / folder / "package-1.0.dist-info").mkdir()
        (tmp_path / folder / "package-1.0.dist-info" / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    for module in ("package", "package.inner", "package.inner.part", "single"):
        for folder, ours in (("target", False), ("own", True)):
            name = f"{folder}_{module}"
            importlib.import_module(name)
            assert (code._path(name) is not None) is ours, name


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("raise ValueError('a')", "raise ValueError('b')", False),
        ("raise ValueError('a')", "raise TypeError('a')", True),
        ("assert x, 'a'", "assert x, 'b'", False),
        ("assert x, 'a'", "assert not x, 'a'", True),
    ],
)
def test_the_text_of_an_error_is_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, counts: bool
) -> None:
    text = f"def run(x):\n    {old}\n"
    before = hashes(tmp_path, monkeypatch, first=text)
    assert (hashes(tmp_path, monkeypatch, first=text.replace(old, new)) != before) == counts


def test_what_is_plumbing_exists() -> None:
    for name in code.PLUMBING:
        path = ROOT / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
