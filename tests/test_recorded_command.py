"""From the command line to the setting and back: a choice arrives where it counts, and a page's command repeats it."""

from __future__ import annotations

import shlex
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.data
from bench import cli, commands, planning, runner
from bench.data.images import ImageSet, MemorySplit
from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.planning import Job, Planned
from bench.report.load import Declared, command
from bench.rows import Chain, Paper, Row, Setting
from bench.steps import Context, Kind, make_step
from bench.store import Result, Store, file_digest

ID = "toy/table-1/only"
DECLARED = Declared("Table 1 (toy)", "only", 0, "imagenet", seeds=(0, 1, 2), seeds_at={"clutter": (0,)})


@dataclass(frozen=True)
class Number:
    """A number."""

    number: int = 0


def run_known(context: Context, parents: list[Result], params: Number) -> Result:
    """Knows something."""
    return Result(facts={"known": True})


def parsed(line: str) -> Namespace:
    words = shlex.split(line)
    assert words[0] == "bench"
    return cli._parser().parse_args(words[1:])


def described(scale: str = "imagenet", **changes: Any) -> dict[str, Any]:
    """A setting as row files hold it."""
    data = {"name": scale, "fingerprint": "f", "protocol": changes.pop("protocol", "short256")}
    known = {"scale": scale, "folder": False, "data": data, "seeds": [0, 1, 2], "weights": None, "device": "cpu"}
    return {**known, **changes}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (described(), {}),
        (described(seeds=[0]), {"seed": 0}),
        (described(seeds=[7]), {"seed": 7}),
        (described(weights={"file": "my net.pth", "sha256": "1"}), {"weights": Path("my net.pth")}),
        (described(protocol="squash256"), {"protocol": "squash256"}),
        (described("digits", protocol="upscaled"), {"scale": "digits"}),
        # a scale may have seeds of its own; a folder of that name has not
        (described("clutter", protocol="drawn", seeds=[0]), {"scale": "clutter"}),
        (described("clutter", protocol="drawn", seeds=[3]), {"scale": "clutter", "seed": 3}),
        (described("clutter", folder=True, seeds=[0]), {"scale": "clutter", "seed": 0}),
        (described("my photos", folder=True), {"scale": "my photos"}),
        (described(amp=True), {"amp": True}),
        (described(paper_schedule=True), {"paper_schedule": True}),
        (described(strict=True), {"strict_data": True}),
        (described(device="cuda"), {"device": "cuda"}),
        (described(chosen_device=True), {"device": "cpu"}),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_a_recorded_command_parsed_back_is_the_same_choice(
    setting: dict[str, Any], expected: dict[str, Any], whole: bool
) -> None:
    options = parsed(command(ID, setting, DECLARED, whole))
    assert (options.command, options.paper) == ("run", ["toy"])
    assert (options.row, options.table) == ((None, "Table 1 (toy)") if whole else (ID, None))
    plain = {"seed": None, "weights": None, "protocol": "short256", "scale": None, "amp": False, "strict_data": False,
             "paper_schedule": False, "device": "auto"}  # fmt: skip
    assert {name: getattr(options, name) for name in plain} == plain | expected


def test_a_seed_that_is_the_row_s_own_needs_no_word() -> None:
    assert parsed(command(ID, described(seeds=[0]), replace(DECLARED, seeds=(0,)))).seed is None


# --------------------------------------------------------------------------------------------------------------------
# From the command line to the job


def test_every_option_reaches_the_job(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.touch()
    line = (
        f"bench run toy --scale digits --seed 0 --weights {file} --protocol squash256 --workers 3 --amp --strict-data "
        "--paper-schedule "
        f"--reuse-times --out {tmp_path / 'there'} --data {tmp_path / 'sets'} --device cpu"
    )
    job = commands.job_of(parsed(line))
    assert replace(job, progress=False) == Job(
        out=tmp_path / "there", data=tmp_path / "sets", scale="digits", device="cpu", seed=0, weights=file,
        protocol="squash256", workers=3, amp=True, paper_schedule=True, strict=True, reuse_times=True, progress=False,
    )  # fmt: skip
    plain = commands.job_of(parsed("bench run toy"))
    assert (plain.seed, plain.weights, plain.protocol, plain.scale) == (None, None, "short256", None)
    assert (plain.amp, plain.paper_schedule, plain.strict, plain.reuse_times, plain.workers) == (False,) * 4 + (0,)


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--amp", "amp"),
        ("--paper-schedule", "paper_schedule"),
        ("--strict-data", "strict"),
        ("--reuse-times", "reuse_times"),
    ],
)
def test_a_switch_is_one_choice(flag: str, name: str) -> None:
    plain = commands.job_of(parsed("bench run toy"))
    assert commands.job_of(parsed(f"bench run toy {flag}")) == replace(plain, **{name: True})


def test_every_option_of_bench_prune_reaches_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        """The function was called."""

    found: dict[str, Any] = {}

    def prune(model: str, data: Path, **named: Any) -> None:
        found.update(named, model=model, data=data)
        raise Reached

    monkeypatch.setattr(commands.api, "prune", prune)
    line = (
        "bench prune my:net --data photos --speedup 3 --method thinet --widths error-driven --size 64 --images 123 "
        "--seed 5 "
        "--mean 0.1,0.2,0.3 --std 0.4,0.5,0.6 --interpolation bilinear --classes a,b --protocol squash --weights w.pth "
        f"--out {tmp_path} --workers 2 --device cpu --json"
    )
    with pytest.raises(Reached):
        commands.prune(parsed(line))
    assert found == {
        "model": "my:net", "data": Path("photos"), "speedup": 3.0, "method": "thinet", "widths": "error-driven",
        "size": 64, "images": 123, "seed": 5, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
        "interpolation": "bilinear", "classes": "a,b", "protocol": "squash", "weights": Path("w.pth"), "out": tmp_path,
        "workers": 2, "device": "cpu", "progress": False,
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# From the job to the row's setting


def images(count: int, test: int) -> ImageSet:
    train, other = (
        MemorySplit(torch.zeros(n, 3, 8, 8, dtype=torch.uint8), torch.zeros(n).long(), (0.5,) * 3, (0.5,) * 3, 1, False)
        for n in (count, test)
    )
    return ImageSet("digits", "f", ("a", "b", "c"), 8, train, other, "8x8")


def planned(job: Job, monkeypatch: pytest.MonkeyPatch) -> tuple[Planned, list[Any], list[Any]]:
    """One row in the job's setting, what the row's network was asked with, and what data were loaded."""
    asked: list[Any] = []
    loaded: list[Any] = []

    def dense(scale: str, classes: int, given: bool) -> Recipe:
        asked.append((scale, classes, given))
        return Recipe("cifar_resnet20", {"num_classes": classes, "width": 0.25}, (3, 8, 8))

    def load(*arguments: Any) -> ImageSet:
        loaded.append(arguments)
        return images(5, 3)

    monkeypatch.setattr(bench.data, "load", load)
    row = Row("Table 1", "only", "digits", dense=dense, chain=lambda setting, recipe: Chain([], []), seeds=(0, 1, 2))
    paper = Paper("toy", "A toy", "nobody", [row], [])
    (entry,) = planning.plan(paper, [row], job)
    return entry, asked, loaded


@pytest.mark.parametrize(("seed", "seeds"), [(None, (0, 1, 2)), (0, (0,)), (4, (4,))])
def test_a_seed_is_honoured_where_it_is_given(
    seed: int | None, seeds: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(out=tmp_path, device="cpu", seed=seed, progress=False)
    entry, asked, loaded = planned(job, monkeypatch)
    assert entry.setting is not None
    value = entry.setting.data
    assert entry.setting == Setting("digits", value, 3, 5, 3, "cpu", seeds, None, False)
    assert value.plain and value.training and value.plain != value.training
    assert asked[-1] == ("digits", 3, False)
    assert loaded == [("digits", Path("data"), 8, "short256", False, False, None)]
    described_ = runner.description(entry, job)
    assert described_ == {
        "scale": "digits", "folder": False, "seeds": list(seeds), "weights": None, "device": "cpu",
        "data": {"name": "digits", "fingerprint": "f", "protocol": "8x8"},
    }  # fmt: skip


def test_weights_protocol_and_mixed_precision_reach_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"weights")
    job = Job(out=tmp_path, data=tmp_path, device="cpu", weights=file, protocol="squash256", amp=True, strict=True,
              progress=False)  # fmt: skip
    entry, asked, loaded = planned(job, monkeypatch)
    assert entry.setting is not None
    assert (entry.setting.weights, entry.setting.amp) == (file_digest(file), True)
    assert asked[-1] == ("digits", 3, True)
    assert loaded == [("digits", tmp_path, 8, "squash256", False, True, None)]
    found = runner.description(entry, job)
    assert found["weights"] == {"file": "w.pth", "sha256": file_digest(file)} and found["amp"] is True
    assert found["strict"] is True
    # and comes back as the same choice
    row = entry.row
    again = parsed(command(entry.id, found, Declared(row.table, row.name, 0, row.scale, seeds=row.seeds)))
    assert (again.weights, again.amp, again.strict_data, again.seed) == (Path("w.pth"), True, True, None)


@pytest.mark.parametrize(
    ("asked", "gpu"), [("auto", False), ("cpu", False), ("auto", True), ("cpu", True), ("cuda", True)]
)
def test_a_recorded_command_measures_on_the_device_of_the_job(
    asked: str, gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsed back where the job ran, whether it has a GPU or not; there, what nobody had to say is not said."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    job = Job(out=tmp_path, device=asked, strict=True, progress=False)
    entry, _, _ = planned(job, monkeypatch)
    found = runner.description(entry, job)
    row = entry.row
    line = command(entry.id, found, Declared(row.table, row.name, 0, row.scale, seeds=row.seeds))
    again = commands.job_of(parsed(line))
    chosen = ("device", "seed", "scale", "weights", "protocol", "amp", "strict")
    assert {name: getattr(again, name) for name in chosen} == {name: getattr(job, name) for name in chosen}
    assert ("--device" in line) == gpu
    # a machine without a GPU refuses what was measured on one, and does not take its processor instead
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if job.device == "cuda":
        with pytest.raises(UserError, match="no CUDA device"):
            commands.job_of(parsed(line))


def test_what_was_done_to_images_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(out=tmp_path, device="cpu", progress=False)
    entry, _, _ = planned(job, monkeypatch)
    assert "problems" not in runner.description(entry, job)["data"]
    ((key, known),) = job.images.items()
    assert isinstance(known, ImageSet)
    job.images[key] = replace(known, problems={"turned by EXIF": 3})
    assert runner.description(entry, job)["data"]["problems"] == {"turned by EXIF": 3}


@pytest.mark.parametrize(("scale", "kinds"), [("digits", ["labels"]), ("scenes", ["boxes"]), ("voc", ["boxes"])])
def test_rows_run_on_their_kind_of_data_alone(scale: str, kinds: list[str], tmp_path: Path) -> None:
    rows = [Row("Table 1", kind, "imagenet", missing="not here", data=kind) for kind in ("labels", "boxes")]
    paper = Paper("toy", "A toy", "nobody", rows, [])
    found = planning.plan(paper, rows, Job(out=tmp_path, data=tmp_path, scale=scale, device="cpu", progress=False))
    assert [entry.row.name for entry in found] == kinds
    other = [row for row in rows if row.name not in kinds]
    with pytest.raises(UserError, match=f"none of these rows runs at {scale}"):
        planning.plan(paper, other, Job(out=tmp_path, data=tmp_path, scale=scale, device="cpu", progress=False))


def test_the_plan_s_seconds_are_work_over_what_the_threads_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """240 GMACs of training at 40 a second and thread: 3 s on two threads, twice as long on one."""
    for threads, seconds in ((2, 3.0), (1, 6.0)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        step = make_step(Kind.TRAIN, "t", run_known, Number(), device="cpu", work=240.0)
        assert planning.expected_seconds(step, {}) == pytest.approx(seconds)
    own = make_step(Kind.TRAIN, "t", run_known, Number(), device="cpu", work=240.0, rate=10.0)
    assert planning.expected_seconds(own, {}) == pytest.approx(24.0)


def test_what_a_script_declares_of_a_row_is_what_the_report_gets() -> None:
    recipe = Recipe("cifar_resnet20", {"num_classes": 10}, (3, 16, 16))
    rows = [
        Row("Table 1", "a", "imagenet", recipe, 2.0, published={"top1_acc": ("r", "m")}, seeds=(3,)),
        Row("Table 2", "b", "cifar10", ours=True, seeds_at={"clutter": (0,)}),
    ]
    found = commands._declared(Paper("toy", "A toy", "nobody", rows, []))
    assert found == {
        "toy/table-1/a": Declared("Table 1", "a", 0, "imagenet", False, 2.0, {"top1_acc": ("r", "m")}, (3,)),
        "toy/table-2/b": Declared("Table 2", "b", 1, "cifar10", True, None, {}, (0, 1, 2), seeds_at={"clutter": (0,)}),
    }


def test_a_step_gets_the_parents_keys_the_file_and_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step may use besides its parents: each from the place that is meant."""
    file = tmp_path / "w.pth"
    file.touch()
    job = Job(out=tmp_path, device="cpu", weights=file, workers=2, progress=False)
    entry, _, _ = planned(job, monkeypatch)
    contexts: list[Any] = []
    engine = runner.Engine(job, Store(tmp_path))
    parent = make_step(Kind.COMPARE, "parent", run_known, Number(), device="cpu")
    child = make_step(Kind.COMPARE, "child", run_known, Number(1), [parent], device="cpu")
    for step in (parent, child):
        found = replace(step, run=_recording(contexts, step.run))
        monkeypatch.setattr(type(found), "key", property(lambda self: self.name))
        monkeypatch.setattr(runner.Engine, "_about", lambda *_: {"seconds": 0})
        engine._work(found, entry)
    (first, none), (second, results) = contexts
    assert none == [] and [one.facts for one in results] == [{"known": True}]
    assert (first.parents, second.parents) == ((), ("parent",))
    assert (second.weights_file, second.workers, second.device, second.label) == (file, 2, "cpu", "child")
    assert first.memory is second.memory and first.work != second.work
    assert isinstance(second.data(), ImageSet) and isinstance(results[0], Result)


def _recording(contexts: list[Any], run: Any) -> Any:
    def recorded(context: Any, parents: list[Any], params: Any) -> Any:
        contexts.append((context, parents))
        return run(context, parents, params)

    return recorded
