"""The graph of cached steps: shared work runs once, nothing measured is lost, a killed run ends where it would have."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import children
import pytest
import torch

# they keep `registry_folder` by name: imported while it is patched they would keep the patch for all tests behind
import bench.network_commands
import bench.nightly.commands
import bench.page_commands  # noqa: F401
from bench import code, planning, runner
from bench.collecting import collect
from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.planning import Job
from bench.rows import Chain, Paper, Row, Setting, match
from bench.runner import Outcome
from bench.steps import Context, DataValue, Kind, Source, Step, in_order, make_step
from bench.store import Record, Result, Store

CALLS: list[str] = []


@dataclass(frozen=True)
class Number:
    """A number and how the step behaves."""

    name: str
    number: float
    fails: str = ""


def run_number(context: Context, parents: list[Result], params: Number) -> Result:
    """Adds its own number to its parents'."""
    CALLS.append(params.name)
    if params.fails == "user":
        raise UserError("the user broke it")
    if params.fails == "bug":
        raise ZeroDivisionError("division by zero")
    total = params.number + sum(parent.facts["total"] for parent in parents)
    return Result(records=[Record("top1_acc", total, "%", total, total, 1)], facts={"total": total})


DATA = DataValue("plain", "training")


def step(
    name: str,
    number: float,
    *parents: Step,
    fails: str = "",
    kind: Kind = Kind.TRAIN,
    data: DataValue = DATA,
    device: str = "cpu",
    label: str = "",
) -> Step:
    params = Number(name, number, fails)
    return make_step(kind, label or name, run_number, params, parents, data=data, device=device)


def tiny(scale: str, classes: int, given: bool) -> Recipe:
    return Recipe("cifar_resnet20", {"num_classes": classes, "width": 0.25}, (3, 8, 8))


def paper(*rows: tuple[str, list[Step]]) -> Paper:
    def chain(steps: list[Step]) -> Any:
        return lambda setting, recipe: Chain([], steps)

    made = [Row("Table 1", name, "imagenet", None, None, tiny, chain(steps), seeds=(0,)) for name, steps in rows]
    return Paper("toy", "A toy", "nobody", made, [])


def outcomes(paper_: Paper, out: Path, **choices: Any) -> list[Outcome]:
    job = Job(out=out, scale="digits", progress=False, **choices)
    return runner.run(planning.plan(paper_, paper_.rows, job), job, Store(out))


def run(paper_: Paper, out: Path, **choices: Any) -> list[Path]:
    files = [outcome.file for outcome in outcomes(paper_, out, **choices)]
    return [file for file in files if file is not None]


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def values(files: list[Path]) -> dict[str, list[float]]:
    rows = [json.loads(file.read_text()) for file in files]
    return {row["id"].rpartition("/")[2]: [record["value"] for record in row["records"]] for row in rows}


def test_shared_steps_run_once_and_finished_ones_not_again(tmp_path: Path) -> None:
    dense = step("dense", 1.0)
    toy = paper(("first", [step("a", 10.0, dense)]), ("second", [step("b", 20.0, dense), step("a", 10.0, dense)]))
    assert values(run(toy, tmp_path)) == {"first": [11.0], "second": [21.0, 11.0]}
    assert sorted(CALLS) == ["a", "b", "dense"]
    CALLS.clear()
    assert values(run(toy, tmp_path)) == {"first": [11.0], "second": [21.0, 11.0]}
    assert CALLS == []


def test_a_scale_may_have_seeds_of_its_own(tmp_path: Path) -> None:
    """Where a row takes too long; a seed that the user names goes before them."""
    made = paper(("a", [step("a", 1.0)]))
    made = replace(made, rows=[replace(made.rows[0], seeds=(0, 1, 2), seeds_at={"digits": (4, 5), "scenes": (6,)})])

    def seeds(**choices: Any) -> tuple[int, ...]:
        (entry,) = planning.plan(made, made.rows, Job(out=tmp_path, progress=False, **choices))
        assert entry.setting is not None
        return entry.setting.seeds

    assert seeds(scale="digits") == (4, 5)
    assert seeds(scale="digits", seed=1) == (1,)
    assert seeds(scale=str(folder(tmp_path / "digits", 1))) == (0, 1, 2)


def test_a_failing_row_costs_that_row_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows after it run; one that needs the same step is not tried; a bug's traceback is printed."""
    dense, bad = step("dense", 1.0), step("b", 20.0, fails="user")
    toy = paper(
        ("good", [step("a", 10.0, dense)]),
        ("bad", [step("c", 1.0, bad)]),
        ("also bad", [step("d", 1.0, bad)]),
        ("bug", [step("e", 1.0, fails="bug")]),
        ("last", [step("f", 5.0, dense)]),
    )
    found = outcomes(toy, tmp_path)
    assert [outcome.status for outcome in found] == ["ok", "failed", "failed", "failed", "ok"]
    assert found[1].reason == "the user broke it"
    assert "b failed" in found[2].reason and "broke" in found[2].reason
    assert found[3].reason == "ZeroDivisionError: division by zero"
    assert "Traceback" in capsys.readouterr().err
    assert CALLS.count("b") == 1
    assert values(sorted((tmp_path / "toy" / "rows" / "digits").iterdir())) == {"good": [11.0], "last": [6.0]}
    mended = paper(("bad", [step("c", 1.0, step("b", 20.0))]))
    CALLS.clear()
    assert values(run(mended, tmp_path)) == {"bad": [21.0]}


def test_a_failed_row_is_told_and_the_status_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.cli import main
    from bench.registry import COLUMNS

    toy = paper(("good", [step("a", 10.0)]), ("bad", [step("b", 20.0, fails="user")]))
    monkeypatch.setattr(planning, "papers", lambda: {"toy": toy})
    (tmp_path / "toy.csv").write_text(",".join(COLUMNS) + "\n")
    monkeypatch.setattr("bench.commands.registry_folder", lambda: tmp_path)
    arguments = ["run", "toy", "--scale", "digits", "--out", str(tmp_path / "runs")]
    assert main(arguments) == 1
    output = capsys.readouterr().out
    assert "1 of 2 rows failed:" in output and "toy/table-1/bad: the user broke it" in output
    assert main([*arguments, "--row", "good"]) == 0


def test_damaged_results_are_made_again(tmp_path: Path) -> None:
    dense = step("dense", 1.0)
    toy = paper(("only", [step("a", 10.0, dense)]))
    run(toy, tmp_path)
    (tmp_path / "steps" / dense.key / "step.json").write_text("{")
    CALLS.clear()
    assert values(run(toy, tmp_path)) == {"only": [11.0]}
    assert CALLS == ["dense"]


def test_what_a_stored_step_was_made_of_is_not_asked_for(tmp_path: Path) -> None:
    """A parent whose tensors have gone costs nothing as long as nobody needs them."""
    dense = step("dense", 1.0)
    toy = paper(("only", [step("end", 10.0, step("middle", 5.0, dense))]))
    run(toy, tmp_path)
    Store(tmp_path).shed(dense.key)
    CALLS.clear()
    assert values(run(toy, tmp_path)) == {"only": [16.0]}
    assert CALLS == []


def test_weights_of_a_chain_s_inner_steps_go_and_come_back_where_they_are_needed(tmp_path: Path) -> None:
    """Not before all that this run makes of them is there; the description stays; the end is not computed again."""
    store = Store(tmp_path)
    dense = step("dense", 1.0)
    inner = [replace(step("first", 2.0, dense), transient=True)]
    inner.append(replace(step("second", 3.0, inner[0]), transient=True))
    ends = [step("end", 10.0, inner[1]), step("other end", 20.0, inner[1])]
    outcomes(paper(("one", ends[:1])), tmp_path)
    assert [store.load(one.key) is None for one in (dense, *inner, ends[0])] == [False, True, True, False]
    headers = [store.header(one.key) for one in inner]
    assert all(header is not None and header["records"] for header in headers)
    CALLS.clear()
    assert values(run(paper(("one", ends[:1])), tmp_path)) == {"one": [16.0]}
    assert CALLS == []
    # another end needs what has gone; the first of two ends does not take it from the second
    toy = paper(("one", ends[:1]), ("two", ends[1:]), ("both", [step("third end", 30.0, inner[1]), ends[1]]))
    assert values(run(toy, tmp_path)) == {"one": [16.0], "two": [26.0], "both": [36.0, 26.0]}
    assert CALLS == ["first", "second", "other end", "third end"]
    assert [store.load(one.key) is None for one in inner] == [True, True]


def test_order_puts_parents_first() -> None:
    a = step("a", 1.0)
    b, c = step("b", 1.0, a), step("c", 1.0, a)
    d = step("d", 1.0, b, c)
    names = [s.name for s in in_order([d, c])]
    assert names == ["a", "b", "c", "d"]


def test_rows_that_cannot_run_say_why_and_keep_what_was_measured(tmp_path: Path) -> None:
    toy = paper(("only", [step("a", 10.0)]))
    run(toy, tmp_path)
    job = Job(out=tmp_path, data=tmp_path / "nowhere", progress=False)
    (found,) = runner.run(planning.plan(toy, toy.rows, job), job, Store(tmp_path))
    assert (found.status, found.reason) == ("skipped", "needs imagenet")
    assert found.file is not None
    assert json.loads(found.file.read_text())["status"] == "not run (needs imagenet)"
    measured = tmp_path / "toy" / "rows" / "digits"
    assert values(sorted(measured.iterdir())) == {"only": [10.0]}


def test_a_setting_has_its_own_file(tmp_path: Path) -> None:
    """One seed does not overwrite three."""
    toy = paper(("only", [step("a", 10.0)]))
    (first,), (second,) = run(toy, tmp_path), run(toy, tmp_path, seed=5)
    assert first != second and first.exists()
    settings = [json.loads(path.read_text())["setting"] for path in (first, second)]
    assert [setting["seeds"] for setting in settings] == [[0], [5]]
    assert settings[0]["scale"] == "digits" and settings[0]["folder"] is False
    # a folder named digits is not the digits, and where its content differs it has a file of its own
    folders = []
    for side in (40, 41):
        root = folder(tmp_path / str(side) / "digits", side)
        job = Job(out=tmp_path, scale=str(root), progress=False)
        (outcome,) = runner.run(planning.plan(toy, toy.rows, job), job, Store(tmp_path))
        assert outcome.file is not None
        folders.append(outcome.file)
    assert len({first, second, *folders}) == 4
    assert json.loads(folders[0].read_text())["setting"]["folder"] is True


def folder(root: Path, side: int) -> Path:
    """An image folder of one class."""
    from PIL import Image

    for part in ("train", "test"):
        (root / part / "a").mkdir(parents=True)
        Image.new("RGB", (side, side)).save(root / part / "a" / "0.png")
    return root


def run_seen(context: Context, parents: list[Result], params: Number) -> Result:
    """What the step sees: how many training images, and what another step of its data remembered."""
    images = len(context.data().train)
    return Result(facts={"images": images, "remembered": context.remember("images", lambda: images)})


def test_a_row_may_read_a_second_data_set(tmp_path: Path) -> None:
    """Each step gets the data whose value it was given, a memory apart, and says in its provenance which they were."""
    made: list[Step] = []

    def chain(setting: Setting, recipe: Recipe) -> Chain:
        source = setting.further["source"]
        assert (source.scale, source.classes, source.train_images, source.test_images) == ("clutter", 10, 3111, 2000)
        assert setting.train_images == 1437 and source.data.plain != setting.data.plain
        step = None
        for number, where in enumerate((source, setting, source)):
            parents = () if step is None else (step,)
            params = Number(f"{number}", number)
            step = make_step(Kind.TRAIN, f"{number}", run_seen, params, parents, data=where.data, device="cpu")
            made.append(step)
        return Chain([], made[-3:])

    def further(scale: str) -> dict[str, Source]:
        return {"source": Source("clutter", apart=scale)}

    def large(scale: str, classes: int, given: bool) -> Recipe:
        return Recipe("cifar_resnet20", {"num_classes": classes, "width": 0.25}, (3, 32, 32))

    row = Row("Table 1", "moved", "imagenet", None, None, large, chain, seeds=(0,), further=further)
    (file,) = run(Paper("toy", "A toy", "nobody", [row], []), tmp_path)
    headers = [Store(tmp_path).header(step.key) for step in made[-3:]]
    assert [header and header["facts"]["images"] for header in headers] == [3111, 1437, 3111]
    assert [header and header["facts"]["remembered"] for header in headers] == [3111, 1437, 3111]
    apart = "clutter, without the test scans of digits"
    assert [header and header["provenance"]["data"]["name"] for header in headers] == [apart, "digits", apart]
    setting = json.loads(file.read_text())["setting"]
    assert (setting["data"]["name"], setting["further"]["source"]["name"]) == ("digits", apart)


def test_a_row_whose_second_data_set_is_missing_says_so(tmp_path: Path) -> None:
    further = {"source": Source("imagenet")}
    row = Row("T", "x", "imagenet", None, None, tiny, lambda *_: Chain([], []), further=lambda scale: further)
    (outcome,) = outcomes(Paper("toy", "A toy", "nobody", [row], []), tmp_path, data=tmp_path)
    assert (outcome.status, outcome.reason) == ("skipped", "needs imagenet")


def test_a_time_is_not_answered_from_an_earlier_run(tmp_path: Path) -> None:
    """Unless that is asked for; within one run it is taken once."""
    timed = step("t", 1.0, kind=Kind.TIME)
    toy = paper(("one", [timed]), ("two", [timed]))
    run(toy, tmp_path)
    run(toy, tmp_path)
    assert CALLS == ["t", "t"]
    run(toy, tmp_path, reuse_times=True)
    assert CALLS == ["t", "t"]


def test_the_plan_learns_from_the_store(tmp_path: Path) -> None:
    """Three steps of 2 GMACs took 4, 6 and 20 seconds: 3 seconds a GMAC is their median."""
    store = Store(tmp_path)
    for key, seconds in (("x", 4.0), ("y", 6.0), ("z", 20.0)):
        hardware = {"device": "cpu", "threads": 4}
        store.save(key, Result(), {"run": "m:f", "work": 2.0, "seconds": seconds, "provenance": {"hardware": hardware}})
    hardware = {"device": "cuda:0", "threads": 4}
    store.save("g", Result(), {"run": "m:f", "work": 2.0, "seconds": 5.0, "provenance": {"hardware": hardware}})
    hardware = {"device": "cpu", "threads": 4}  # without a cost it takes as long on any number of threads
    store.save("n", Result(), {"run": "m:g", "work": 0.0, "seconds": 7.0, "provenance": {"hardware": hardware}})
    # seconds of one thread
    learned = planning.learned_costs(store)
    assert learned == {("m:f", "cpu"): 12.0, ("m:f", "cuda"): 2.5, ("m:g", "cpu"): 7.0}
    assert planning.learned_costs(None) == {}


@pytest.mark.parametrize(
    ("kind", "device", "work", "seconds"),
    [
        (Kind.TRAIN, "cpu", 10.0, 60.0),  # 12 seconds a GMAC on one thread, here two
        (Kind.TIME, "cpu", 10.0, 30.0),  # on all four
        (Kind.TRAIN, "cuda", 10.0, 25.0),
        (Kind.COMPARE, "cpu", 0.0, 12.0),
    ],
)
def test_expected_are_the_seconds_of_the_threads_that_there_will_be(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, device: str, work: float, seconds: float
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("bench.threads.whole", lambda: 4)
    found = replace(step("a", 1.0), kind=kind, device=device, work=work)
    learned = {(found.run_name, "cpu"): 12.0, (found.run_name, "cuda"): 2.5}
    assert planning.expected_seconds(found, learned) == seconds


def test_weights_that_another_run_has_shed_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs on one folder: the other one ends between this one's look at the weights and their use."""
    store, inner = Store(tmp_path), replace(step("inner", 2.0), transient=True)
    outcomes(paper(("other run", [step("other end", 5.0, inner)])), tmp_path)
    outcomes(paper(("again", [step("kept", 6.0, inner), step("broken", 1.0, inner, fails="user")])), tmp_path)
    assert store.load(inner.key) is not None  # the failed row still needs it
    CALLS.clear()
    missing, looks = runner.Engine._missing, list[int]()

    def meanwhile(engine: runner.Engine, leaves: list[Step]) -> list[Step]:
        found = missing(engine, leaves)
        looks.append(len(found))
        if len(looks) == 1:
            store.shed(inner.key)
        return found

    monkeypatch.setattr(runner.Engine, "_missing", meanwhile)
    assert values(run(paper(("mine", [step("this end", 7.0, inner)])), tmp_path)) == {"mine": [9.0]}
    assert CALLS == ["inner", "this end"] and looks == [1, 2]
    # what is always gone is told
    monkeypatch.setattr(runner.Engine, "_missing", lambda engine, leaves: leaves)
    (found,) = outcomes(paper(("never", [step("never", 7.0, inner)])), tmp_path)
    assert found.status == runner.FAILED and "has gone or is damaged" in found.reason


def test_gc_keeps_what_rows_need_and_what_today_s_code_would_find(tmp_path: Path) -> None:
    """Removed: a step of other code that no row shows, locks of dead processes, work without a checkpoint."""
    dense = step("dense", 1.0)
    toy = paper(("only", [step("a", 10.0, dense)]))
    (file,) = run(toy, tmp_path)
    store = Store(tmp_path)
    root = step("x", 1.0).roots.pop()
    header = {"parents": [], "roots": [root], "code": code.reached([root]).hash}
    store.save("current", Result(), header)
    store.save("old", Result(), {**header, "code": "other"})
    (tmp_path / "work" / "dead.lock").touch()
    (tmp_path / "work" / "resumable").mkdir()
    (tmp_path / "work" / "resumable" / "checkpoint.pth").touch()
    (tmp_path / "work" / "half").mkdir()
    (tmp_path / "work" / "0123456789ab-x").mkdir()  # a result that is being written
    needed = set(json.loads(file.read_text())["steps"])
    with store.lock("0123456789abcdef"):
        assert collect(store, needed, dry_run=True)[0] == ["old", "dead.lock", "half"]
    with store.lock("old"):
        assert "old" not in collect(store, needed, dry_run=True)[0]
    assert collect(store, needed)[0] == ["old", "0123456789ab-x", "dead.lock", "half"]
    assert set(store.stored()) == {"current", *(s.key for s in in_order([step("a", 10.0, dense)]))}
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["resumable"]


def test_row_files_name_no_place_of_this_machine(tmp_path: Path) -> None:
    files = run(paper(("only", [step("a", 10.0)])), tmp_path)
    text = files[0].read_text()
    assert str(tmp_path) not in text
    assert os.path.expanduser("~") not in text
    provenance_ = next(iter(json.loads(text)["steps"].values()))["provenance"]
    assert provenance_["versions"]["torch"] == torch.__version__.split("+")[0]
    assert provenance_["hardware"]["threads"] == torch.get_num_threads()


def test_papers_are_found_and_every_published_link_exists() -> None:
    """Discovery needs no list; each row's links point at one value of the registry, and its id is its own."""
    from bench.commands import registry_folder
    from bench.registry import find, load

    for key, found in planning.papers().items():
        entries = load(key, registry_folder())
        assert len(found.ids) == len(found.rows)
        assert all(re.fullmatch(rf"{key}(/[a-z0-9][a-z0-9.-]*){{2}}", name) for name in found.ids)
        for row in found.rows:
            for link in row.published.values():
                where = {"model": link[2]} if len(link) > 2 else {}
                assert find(entries, row.table, link[0], link[1], **where) is not None, (row.name, link)


def test_ids_are_stable() -> None:
    """What a file and a link are called must not drift."""
    ids = {name for paper_ in planning.papers().values() for name in paper_.ids}
    assert {
        "channel_pruning/table-8/ours-fine-tuned",
        "channel_pruning/table-1/vgg-16-5x-released-widths-fine-tuned",
        "channel_pruning/figure-4/conv1-2",
        "selection_study/resnet-56-at-2x/lasso-uniform",
        "thinet/table-1/thinet-conv",
        "fbs/figure-3a/fbs-at-d-0.5",
        "fbs/derived-resnet-18/d-0.8-b22-not-gated",
        "localization_aware_ssd/criteria-at-equal-widths/lcp-fine-tuned",
    } <= ids


def test_no_two_rows_of_one_id() -> None:
    toy = paper(("a b", []), ("A-b", []))
    with pytest.raises(ValueError, match="toy/table-1/a-b"):
        toy.ids  # noqa: B018


NAMES = {"p/table-8/ours": "Ours", "p/table-8/ours-fine-tuned": "Ours (fine-tuned)", "p/table-6/ours": "Ours"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p/table-8/ours", ["p/table-8/ours"]),
        ("table-8/ours", ["p/table-8/ours"]),
        ("Ours (fine-tuned)", ["p/table-8/ours-fine-tuned"]),
        ("ours-f", ["p/table-8/ours-fine-tuned"]),
        ("Ours", ["p/table-8/ours", "p/table-6/ours"]),
        ("table-8/our", ["p/table-8/ours", "p/table-8/ours-fine-tuned"]),
        ("theirs", []),
    ],
)
def test_an_exact_id_or_name_goes_before_beginnings(text: str, expected: list[str]) -> None:
    assert match(text, NAMES) == expected


SCALES_OF_PAPERS = [
    ("channel_pruning", "digits"),
    ("channel_pruning", "clutter"),
    ("fbs", "digits"),
    ("localization_aware_ssd", "scenes"),
]


def test_no_plan_has_two_lines_of_one_name(tmp_path: Path) -> None:
    for key, scale in SCALES_OF_PAPERS:
        paper_ = planning.papers()[key]
        job = Job(out=tmp_path, scale=scale, progress=False)
        names = [s.name for s, _ in planning.steps_of(planning.plan(paper_, paper_.rows, job))]
        assert sorted(names) == sorted(set(names)), key


def _toy_row(out: Path) -> None:
    """The toy's row with most steps, in a process of its own: trained, pruned, tuned, measured."""
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).parent / "toy" / "reproductions" / "toy.py")
    assert spec is not None and spec.loader is not None
    toy = sys.modules["toy"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    (row,) = [row for row in toy.paper().rows if row.name == "pruned, fine-tuned"]
    job = Job(out=out, scale="digits", device="cpu", progress=False)
    (outcome,) = runner.run(planning.plan(toy.paper(), [row], job), job, Store(out))
    assert outcome.file is not None, outcome.reason


@pytest.mark.slow
def test_kill_minus_nine_at_any_moment_changes_no_number(tmp_path: Path) -> None:
    """Killed three times, in training and behind the first and second step; then it ends with the same records."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert children.done(_toy_row, whole) == 0
    for count, sign in ((1, "work/*/checkpoint.pth"), (1, "steps/*/step.json"), (2, "steps/*/step.json")):
        process = children.begun(_toy_row, killed)
        while process.is_alive() and len(list(killed.glob(sign))) < count:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert children.done(_toy_row, killed) == 0

    def records(folder: Path) -> dict[str, Any]:
        rows = sorted((folder / "toy" / "rows" / "digits").glob("*.json"))
        assert len(rows) == 1
        return {row.name: json.loads(row.read_text())["records"] for row in rows}

    assert records(whole) == records(killed)
