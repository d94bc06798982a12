"""The command: its mistakes in one line; a whole measurement of a small network, in this process and in fresh ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cli import main
from bench.errors import UserError
from bench.latency import campaign, command, contestants, worker
from bench.latency.campaign import TIME_OVER, Answer, Campaign
from bench.latency.contestants import AS_IT_IS, Form, Subject
from bench.latency.point import AGAIN, DENSE, OUT_OF_MEMORY, Effort, Point
from bench.latency.roofline import Roofline
from bench.models.recipe import Recipe

DENSE_RECIPE = Recipe("cifar_resnet20", {"num_classes": 10, "width": 0.5}, (3, 16, 16))
REGISTRY = Path(__file__).parents[2] / "reproductions" / "registry"
GATED = Recipe("mcifarnet", {"num_classes": 10, "width": 0.125, "side": 16}, (3, 16, 16)).gated(500)
HALF = DENSE_RECIPE.removed(
    {f"layer{stage}.{block}.conv1": 4 * 2 ** (stage - 1) for stage in (1, 2, 3) for block in range(3)}
)


@pytest.fixture(autouse=True)
def known_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine can do is measured in test_decomposition; here it would take the tests' time."""
    monkeypatch.setattr(worker.roofline, "measured", lambda *_: Roofline(1e12, 1e11, 1))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing"], "unknown paper, row, model or saved network 'nothing'"),
        ([], "name a paper, a row, a model"),
        (["vgg16", "--suite", "cpu"], "name a paper, a row, a model"),
        (["--suite", "tpu"], "unknown suite 'tpu'"),
        (["vgg16", "--dtype", "tf32", "--device", "cpu"], "tf32 is a mode of NVIDIA GPUs"),
        (["vgg16", "--batch", "1,x"], "no list of numbers"),
        (["vgg16", "--layout", "hwc", "--device", "cpu"], "unknown layout"),
        (["vgg16", "--mode", "training", "--device", "cpu"], "unknown mode"),
        (["vgg16", "--round", "7"], "--round takes 8, 16 or 32"),
        (["vgg16", "--seconds", "600", "--device", "cpu"], "at most 90 s on the CPU"),
        (["vgg16", "--device", "tpu"], "unknown device"),
        (["vgg16", "--processes", "1"], "at least two processes"),
        (["--suite", "cpu", "--dtype", "bf16", "--compile", "--device", "cpu"], "leave out --dtype, --compile"),
        (["thinet", "--staircase", "conv1", "--device", "cpu"], "--staircase looks at one network"),
        (
            ["cifar_resnet20", "--staircase", "x", "--device", "cpu", "--batch", "1"],
            "no convolution or linear layer 'x'",
        ),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["latency", *arguments, "--out", str(tmp_path)]) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("bench: ")]
    assert len(lines) == 1 and named in lines[0]


def here(tasks: list[dict[str, Any]], seconds: float) -> list[Answer]:
    """The tasks in this process, through JSON as in a fresh one."""
    networks = worker.Networks()
    found: list[Answer] = []
    for task in json.loads(json.dumps(tasks)):
        value, arrays = worker.run(task, networks)
        found.append((json.loads(json.dumps(value)), {name: array.numpy() for name, array in arrays.items()}))
    return found


def point(dense: Recipe, *networks: Subject, **more: Any) -> Point:
    return Point(Subject("dense net", dense), networks, 2, "cpu", **more)


def test_a_whole_measurement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line to the files; only the processes are this one."""
    monkeypatch.setattr(campaign.Campaign, "fresh", staticmethod(here))
    monkeypatch.setattr(command, "Campaign", lambda *arguments, **more: Campaign(*arguments[:3], fresh=here))
    monkeypatch.setattr(command.suite, "subjects", lambda *arguments: [Subject("half", HALF)])
    assert (
        main(
            ["latency", "half", "--batch", "2", "--device", "cpu", "--seconds", "0.5", "--out", str(tmp_path), "--json"]
        )
        == 0
    )
    (value,) = json.loads(capsys.readouterr().out)
    stored = json.loads(Path(value["file"]).read_text())
    assert stored["processes"] >= 3 and stored["not_measured"] is None
    assert stored["launched"] == "fresh interpreter"
    networks = stored["networks"]
    assert set(networks["half"]["screened_ms"]) == {"as it is", "folded", "folded, channels-last"}
    assert networks["half"]["digest"] == contestants.digest(Subject("half", HALF).build(0))
    names = {layer["layer"] for layer in networks["half"]["layers"]}
    assert {"conv1", "layer1.0.conv1", "linear", "rest"} <= names
    # of a network this small hooks take long: its layers are told, or why they are not
    told = stored["why"] or [note for note in stored["notes"] if note.startswith("half: nothing is said of its layers")]
    assert len(told) == 1
    assert stored["checks"] == {"failed": {}, "outputs_changed_while_timed": []}
    assert (tmp_path / "latency" / "half-cpu.csv").is_file() and (tmp_path / "latency" / "half-cpu.md").is_file()


def test_processes_are_fresh_on_the_cpu_and_forked_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the CPU places in memory differ between interpreters; a GPU's context begins behind the fork."""
    asked = []

    class Stopped(Campaign):
        def run(self, points: Any) -> Any:
            asked.append(self.fresh)
            raise UserError("far enough")

    monkeypatch.setattr(command, "serve", lambda: None)
    monkeypatch.setattr(command, "Campaign", Stopped)
    monkeypatch.setattr(command.suite, "subjects", lambda *arguments: [Subject("half", HALF)])
    for device in ("cpu", "cuda"):
        request = command.Request(["half"], device, batches=[1], dtypes=["fp32"], out=tmp_path)
        with pytest.raises(UserError, match="far enough"):
            command.run(request, REGISTRY, print)
    assert asked == [campaign.fresh, campaign.forked]


def test_contestants_are_the_dense_network_in_every_form_two_of_them_twice_and_the_pruned_one_in_its_best() -> None:
    one = point(DENSE_RECIPE, Subject("half", HALF), layers=False)
    folded, last = vars(Form(True)), vars(Form(True, "nhwc"))
    entry = {"forms": [vars(AS_IT_IS), folded, last], "best": last, "best_eager": last}
    task = campaign._measuring(one, {"networks": {"dense net": entry, "half": entry}}, 0.2, 1)
    value, arrays = worker.run(json.loads(json.dumps(task)), worker.Networks())
    names = [name.partition("/")[2] for name in arrays]
    assert sorted(names) == sorted(
        [
            *(DENSE, AGAIN, "dense [folded]", "dense [folded, channels-last]"),
            *("dense [folded, channels-last], again", "half", "half [folded, channels-last]"),
        ]
    )
    assert value["failed_contestants"] == {} and value["changed"] == {} and value["seconds"] > 0
    # each process has an order of its own, the same one when it is asked again
    again, _ = worker.run(task, worker.Networks())
    other, _ = worker.run({**task, "process": 2}, worker.Networks())
    assert value["order"] == names == again["order"] != other["order"] and sorted(names) == sorted(other["order"])
    rounds, turns, calls = next(iter(arrays.values())).shape
    assert turns == 2 and calls == value["clocks"]["wall"]["calls_a_block"] and rounds >= 1


@pytest.mark.slow
def test_a_gated_network_skips_in_its_best_form() -> None:
    one = point(GATED.base, Subject("gated", GATED), layers=False)
    found = worker.first({"point": one.to_json(), "compiled": {}, "failed": {}}, worker.Networks())
    assert set(found["networks"]["gated"]["screened_ms"]) == {"as it is", "skipping"}
    assert found["networks"]["gated"]["failed_forms"] == {}


def test_a_form_that_computes_something_else_or_fails_is_no_contestant(monkeypatch: pytest.MonkeyPatch) -> None:
    original = contestants.fold

    def broken(model: Any) -> Any:
        if broken.calls:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        broken.calls += 1
        fused = original(model)
        next(fused.parameters()).data.mul_(2.0)
        return fused

    broken.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(contestants, "fold", broken)
    one = point(DENSE_RECIPE, layers=False)
    found = worker.first({"point": one.to_json(), "compiled": {}, "failed": {}}, worker.Networks())["networks"]
    failed = found["dense net"]["failed_forms"]
    assert failed["folded"].startswith("computes something else")
    assert failed["folded, channels-last"] == OUT_OF_MEMORY
    assert found["dense net"]["best"] == vars(AS_IT_IS)


def test_of_a_gated_network_every_form_is_timed() -> None:
    """Masked and skipping: which of them is the faster each clock says for itself."""
    one = point(GATED.base, Subject("gated", GATED), layers=False)
    both = [vars(AS_IT_IS), vars(Form(skipped=True))]
    entries = {
        "dense net": {"forms": [vars(AS_IT_IS)], "best": vars(AS_IT_IS), "best_eager": vars(AS_IT_IS)},
        "gated": {"forms": both, "best": vars(AS_IT_IS), "best_eager": vars(AS_IT_IS)},
    }
    assert campaign._measuring(one, {"networks": entries}, 1.0, 1)["forms"]["gated"] == both


def test_outputs_that_are_no_numbers_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a number is not more than a tolerance: the first check passes, the one after the turns does not."""
    values = iter([0.0, 0.0, float("nan"), 0.0])
    monkeypatch.setattr(contestants, "difference", lambda one, other: next(values))
    one = point(DENSE_RECIPE, layers=False)
    task = {"kind": "measure", "point": one.to_json(), "forms": {}, "twice": vars(AS_IT_IS), "process": 1}
    value, _ = worker.run({**task, "seconds": 0.1}, worker.Networks())
    assert value["changed"] == {DENSE: "nan"}


def test_rounding_in_a_gated_network_is_no_failure_and_a_bug_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another channel wins in low precision; in float64 skipping must compute the same."""
    one = point(GATED.base, Subject("gated", GATED), dtype="bf16")
    model, x = Subject("gated", GATED).build(0), worker.images(one)[0]
    far = lambda x: torch.full((20,), 9.0)  # noqa: E731
    reference = contestants.outputs(model, x.float())
    asked = (far, reference, model, Form(skipped=True), x.float(), one)
    assert worker._wrong(*asked) is None
    assert "computes something else" in str(worker._wrong(far, reference, model, AS_IT_IS, x.float(), one))
    monkeypatch.setattr("bench.gating.timing.SkippedNetwork", lambda model: lambda x: 1.5 * model(x))
    assert "computes something else" in str(worker._wrong(*asked))


def test_networks_are_built_once_for_all_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subject = Subject("half", HALF)
    first = worker.Networks(tmp_path).of(subject, 0)
    monkeypatch.setattr(Subject, "build", lambda *_: pytest.fail("it was built before"))
    again = worker.Networks(tmp_path).of(subject, 0)
    assert contestants.digest(again) == contestants.digest(first) and not again.training
    monkeypatch.undo()
    (stored,) = tmp_path.iterdir()
    stored.write_bytes(b"broken")
    assert contestants.digest(worker.Networks(tmp_path).of(subject, 0)) == contestants.digest(first)
    monkeypatch.setattr(worker.torch, "save", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    assert contestants.digest(worker.Networks(tmp_path).of(subject, 1)) != contestants.digest(first)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_beside_the_times_costs_them_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.roofline, "measured", lambda *_: 1 / 0)
    found = worker.first({"point": point(DENSE_RECIPE).to_json(), "compiled": {}, "failed": {}}, worker.Networks())
    assert found["layers_failed"] == "ZeroDivisionError: division by zero"
    assert found["networks"]["dense net"]["best"]


@pytest.mark.parametrize(
    ("call", "seconds", "block", "rounds"),
    [
        # 10 ms a call of each of two: 1.04 s are left after three calls of each, enough for 8 rounds of twice 3 calls
        (0.01, 1.1, 3, 8),
        # 1 ms: 0.968 s are left after 21 calls of each, enough for 24 rounds of twice 10 calls
        (0.001, 1.01, 10, 24),
        # nothing fits: one round of one call
        (1.0, 0.5, 1, 1),
    ],
)
def test_a_gpu_has_many_rounds_in_a_short_time(
    monkeypatch: pytest.MonkeyPatch, call: float, seconds: float, block: int, rounds: int
) -> None:
    monkeypatch.setattr(worker, "seconds_of", lambda *_: call)
    found = worker.planned({"a": len, "b": len}, [torch.ones(1)], seconds, "cuda")
    assert (found.block, found.rounds) == (block, rounds)


@pytest.mark.parametrize(("call", "calls"), [(0.01, 3), (0.5, 1)])
def test_a_long_call_is_not_repeated_before_the_turns(monkeypatch: pytest.MonkeyPatch, call: float, calls: int) -> None:
    """VGG-16 on eight images took four calls of each contestant, and the point's time, before its first turn."""
    seen: list[float] = []
    monkeypatch.setattr(worker.latency, "wall", lambda *_: seen.append(call) or call)
    found = worker.planned({"a": len}, [torch.ones(1)], 18.0, "cpu")
    assert len(seen) == calls and found.warm_up == (20 if call == 0.01 else 0)


def test_a_compiler_that_fails_or_hangs_is_a_form_that_failed() -> None:
    asked: list[str] = []

    def fresh(tasks: list[dict[str, Any]], seconds: float) -> list[Answer]:
        kinds = [task["kind"] for task in tasks]
        if kinds != ["compile"]:
            asked.append(kinds[0])
            return here(tasks, seconds)
        layout = tasks[0]["layout"]
        return [TIME_OVER if layout == "nchw" else ({"failed": "InductorError: no C++ compiler"}, {})]

    one = point(DENSE_RECIPE, compiled=True, layers=False)
    (found,) = Campaign(Effort(0.3, 2, 2), None, lambda text: None, fresh).run([one])
    assert found.reason is None and asked == ["first", "measure", "measure"]
    failed = found.first["networks"]["dense net"]["failed_forms"]
    assert failed == {
        "compiled, nchw": "not compiled within its time",
        "compiled, nhwc": "InductorError: no C++ compiler",
    }


def test_a_run_whose_time_is_over_keeps_what_it_has() -> None:
    seconds = iter([0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 99.0, 99.0, 99.0])
    one = point(DENSE_RECIPE, layers=False)
    runner = Campaign(Effort(0.3, 3, 5), 60.0, lambda text: None, here, lambda: next(seconds, 99.0))
    (found,) = runner.run([one])
    assert found.stopped == TIME_OVER and len(found.runs) < 3
    (skipped,) = runner.run([one])
    assert skipped.reason == TIME_OVER and skipped.runs == []


@pytest.mark.slow
@pytest.mark.parametrize("launch", [campaign.fresh, campaign.forked])
def test_processes(launch: campaign.Fresh, tmp_path: Path) -> None:
    """Real ones: a measurement, a mistake that is told as one, time that is over, and a task that fails."""
    one = point(DENSE_RECIPE, layers=False)
    task = {"kind": "measure", "point": one.to_json(), "forms": {}, "twice": vars(AS_IT_IS), "process": 1}
    task["seconds"] = 0.2
    lost = Point(Subject("lost", DENSE_RECIPE, str(tmp_path / "nowhere.pth")), (), 1, "cpu", layers=False)
    ((value, arrays),) = launch([task], 300.0)  # type: ignore[misc]
    assert set(arrays) == {f"wall/{DENSE}", f"wall/{AGAIN}"} and value["failed_contestants"] == {}
    with pytest.raises(UserError, match="no weights file"):
        launch([{**task, "point": lost.to_json()}], 300.0)
    assert launch([{**task, "seconds": 60.0}], 0.01) == [TIME_OVER]
    ((value, _),) = launch([{"kind": "measure"}], 300.0)  # type: ignore[misc]
    assert value["failed"] == "KeyError: 'point'"


def test_a_gpu_that_is_lost_costs_the_points_of_its_process_and_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After an illegal access every call raises, the one that frees memory too; what was told before stays."""

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(worker, "run", lambda task, networks: broken() if task["bad"] else ({"seconds": 1.0}, {}))
    monkeypatch.setattr(worker.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(worker.torch.cuda, "empty_cache", broken)
    tasks = [{"bad": bad, "out": str(tmp_path / str(number))} for number, bad in enumerate((False, True, False))]
    (tmp_path / "tasks").write_text(json.dumps(tasks))
    worker.main(tmp_path / "tasks")
    values = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(3)]
    lost = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert values == [{"seconds": 1.0}, {"failed": lost, "networks": {}}, {"seconds": 1.0}]


def test_a_process_that_fails_answers_for_what_it_finished() -> None:
    def launch(tasks: Path, words: Path, seconds: float) -> int:
        for task in json.loads(tasks.read_text())[:finished]:
            Path(f"{task['out']}.json").write_text('{"a": 1}')
        words.write_text("Something:\nValueError: no more\n")
        return status

    finished, status = 1, 1
    found = campaign._answered(launch, [{}, {}], 1.0)
    assert found == [({"a": 1}, {}), "its process ended with status 1: ValueError: no more"]
    status = -6
    assert campaign._answered(launch, [{}, {}], 1.0)[1] == "its process died of signal 6"
    finished, status = 0, 1
    with pytest.raises(RuntimeError, match="no more"):
        campaign._answered(launch, [{}, {}], 1.0)


def test_a_process_that_hangs_takes_no_more_than_its_share() -> None:
    """Two points: 90 s each beside twice the 2 s of measuring; what the run's end cuts off did not hang."""
    asked = []

    def fresh(tasks: list[dict[str, Any]], seconds: float) -> list[Answer]:
        asked.append(seconds)
        return here(tasks, seconds) if tasks[0]["kind"] == "first" else [TIME_OVER, TIME_OVER]

    points = [point(DENSE_RECIPE, layers=False), point(DENSE_RECIPE, layers=False, seed=1)]
    for seconds, reason in ((540.0, campaign.HANGS), (150.0, TIME_OVER)):
        runner = Campaign(Effort(6.0, 3, 3), seconds, lambda text: None, fresh, lambda: 0.0, 90.0)
        assert [one.reason for one in runner.run(points)] == [reason, reason]
    assert asked == [180.0, 188.0, 150.0, 150.0]


def test_the_server_that_measuring_processes_are_forked_from_asks_cuda_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Like that of rows (test_isolated): whoever asked CUDA itself cannot be forked."""
    seen: dict[str, Any] = {}

    class Process:
        exitcode = 0

        def __init__(self, target: Any, args: Any) -> None:
            seen["target"] = target

        def start(self) -> None: ...
        def join(self, seconds: float = 0.0) -> None: ...
        def kill(self) -> None: ...

    def begin() -> None:
        seen["asks"] = campaign.isolated.os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]

    context = campaign.isolated.multiprocessing.get_context("forkserver")
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", begin)
    monkeypatch.setattr(context, "set_forkserver_preload", lambda modules: seen.update(modules=modules))
    monkeypatch.setattr(context, "Process", Process)
    assert campaign._forked(tmp_path / "tasks", tmp_path / "words", 1.0) == 0
    assert seen == {"asks": "1", "modules": list(campaign.PRELOADED), "target": worker.child}


def test_a_bug_in_one_chunk_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured is there before anything is said of it."""
    monkeypatch.setattr(command, "Campaign", lambda *arguments, **more: Campaign(*arguments[:3], fresh=here))
    chunks = [[point(DENSE_RECIPE, layers=False, seed=seed)] for seed in (0, 1)]
    monkeypatch.setattr(command, "_chunks", lambda *_: chunks)
    whole = command.report.value_of

    def value_of(one: Any, quoted: Any) -> dict[str, Any]:
        return whole(one, quoted) if one.point.seed else 1 / 0  # type: ignore[return-value]

    monkeypatch.setattr(command.report, "value_of", value_of)
    request = command.Request(["net"], "cpu", seconds=0.3, processes=3, out=tmp_path)
    values, _, status = command.run(request, REGISTRY, print)
    assert status == 1 and [value["point"]["seed"] for value in values] == [1]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert len(list((tmp_path / "latency").glob("*.safetensors"))) == 2


def test_points_that_were_not_begun_are_told_and_leave_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second of two points, where the run's time is over after the first one's processes."""

    class Cut(Campaign):
        @property
        def left(self) -> float:
            return -1.0 if done else 100.0

        def run(self, points: Any) -> Any:
            found = super().run(points)
            done.append(points)
            return found

    done: list[Any] = []
    monkeypatch.setattr(command, "Campaign", lambda *arguments, **more: Cut(*arguments[:3], fresh=here))
    monkeypatch.setattr(command, "_chunks", lambda *_: [[point(DENSE_RECIPE, layers=False, seed=n)] for n in (0, 1)])
    values, text, status = command.run(
        command.Request(["net"], "cpu", seconds=0.3, processes=3, out=tmp_path), REGISTRY, print
    )
    assert status == 0 and [value["not_measured"] for value in values] == [None, TIME_OVER]
    assert TIME_OVER in text and len(list((tmp_path / "latency").glob("*.json"))) == 1
