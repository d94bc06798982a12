"""``bench prune`` from end to end: what can fail fails first, and a stop tells the truth and loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import api
from bench.cli import main
from bench.errors import UserError

MODULE = """
import torch
from torch import nn
def net(bias=0.0):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 9, 3, bias=False), nn.ReLU(), nn.Conv2d(9, 8, 3)]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    net[-1].bias.data[1] += bias
    return net
def masked():
    return net(float("-inf"))
def broken():
    return net(float("nan"))
def text():
    return "no network"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's module and images, which is the current one."""
    (tmp_path / "usermod.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("usermod", None)
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for number in range(12):
                pixels = generator.integers(100 * label, 156 + 100 * label, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / part / name / f"{number}.png")
    return tmp_path


def command(*more: str, model: str = "usermod:net") -> list[str]:
    return ["prune", model, "--data", "set", "--size", "24", "--speedup", "1.4", "--device", "cpu", *more]


def never(*arguments: Any, **options: Any) -> None:
    raise AssertionError("the expensive part was reached")


def truncate(root: Path) -> None:
    path = root / "set" / "val" / "light" / "11.png"
    path.write_bytes(path.read_bytes()[:100])


FAILURES: dict[str, tuple[list[str], str]] = {
    "no network": (command(model="usermod:text"), "not an nn.Module"),
    "unreachable": (command("--speedup", "5000"), "out of reach"),
    "no images": (command("--images", "0"), "--images 0"),
    "out is a file": (command("--out", "usermod.py"), "cannot write to usermod.py"),
    "out below a file": (command("--out", "usermod.py/x"), "cannot write to"),
    "out in /proc": (command("--out", "/proc/x"), "cannot write to /proc/x"),
    "no numbers": (command(model="usermod:broken"), "no numbers"),
    "classes": (command("--classes", "dark,heavy"), "does not name 'light'"),
    "size": (command("--size", "3"), "--size"),
    "weights": (command("--weights", "absent"), "absent"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_what_can_fail_fails_before_the_work(
    what: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("calibrate", "prune_layers"):
        monkeypatch.setattr(api, name, never)
    arguments, named = FAILURES[what]
    assert main(arguments) == 2
    assert named in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("size", ["24", "70"])
def test_a_broken_test_image_is_found_before_the_work(
    size: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "calibrate", never)
    truncate(place)
    assert main(command("--size", size)) == 2
    assert "11.png cannot be decoded" in capsys.readouterr().err


def test_a_masked_class_is_no_obstacle(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("--json", model="usermod:masked")) == 0
    records = {r["metric"]: r["value"] for r in json.loads(capsys.readouterr().out)["records"]}
    assert records["top1_acc"] == 50.0 and records["agreement"] == 100.0 and records["kl"] == pytest.approx(0.0)


def test_the_network_is_saved_before_it_is_measured(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise UserError("the measurement failed")

    monkeypatch.setattr(api.accuracy, "compare", fails)
    assert main(command("--out", "kept")) == 2
    monkeypatch.undo()
    sys.path.insert(0, str(place))
    loaded = api.load(place / "kept")
    assert loaded(torch.zeros(2, 3, 24, 24)).shape == (2, 2)


def test_what_is_printed_and_stored(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("--mean", "0.5", "--std", "0.2,0.3,0.4", "--interpolation", "bilinear", "--out", "o")) == 0
    captured = capsys.readouterr()
    out, err = captured.out.splitlines(), captured.err
    assert err.index("dense network: top1_acc") < err.index("lasso")
    assert [line for line in out if line.startswith("dense top1_acc: ")]
    stored = json.loads((place / "o" / "pruned.json").read_text())
    assert stored["inputs"]["mean"] == [0.5] * 3 and stored["inputs"]["std"] == [0.2, 0.3, 0.4]
    assert stored["inputs"]["interpolation"] == "bilinear" and stored["inputs"]["normalisation"] == "given"
    assert json.loads((place / "o" / "recipe.json").read_text())["facts"]["inputs"] == stored["inputs"]
    assert sorted(p.name for p in (place / "o").iterdir()) == [
        "pruned.json",
        "recipe.json",
        "state.pth",
        "weights.safetensors",
    ]


@pytest.mark.parametrize(
    "more", [[], ["--classes", "light,dark", "--protocol", "squash", "--mean", "0.5", "--std", "0.5"]]
)
def test_the_saved_network_is_evaluated_again(more: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("--out", "o", *more)) == 0
    record = {r["metric"]: r for r in json.loads((place / "o" / "pruned.json").read_text())["records"]}["top1_acc"]
    right = round(record["value"] * 24 / 100)
    capsys.readouterr()
    evaluation = ["evaluate", "o", "--device", "cpu"]
    assert main([*evaluation, "--data", "set"]) == 0
    text = capsys.readouterr().out
    assert f"top-1 {record['value']:.2f} % [" in text and f"{right} right of 24 test images\n" in text
    assert text.endswith(f"{right} right of 24: same\n")
    (place / "set" / "val" / "light" / "11.png").unlink()
    assert main([*evaluation, "--data", "set", "--json"]) == 2
    (value,) = json.loads(capsys.readouterr().out)
    assert (value["verdict"], value["top1"]["n"], value["same_data"]) == ("not compared", 23, False)
    assert main(evaluation) == 2
    assert "give its image folder with --data" in capsys.readouterr().err


def test_a_stop_tells_what_is_kept_and_the_same_command_goes_on(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second layer; run again, the first and all that came before it are not done again."""
    assert main(command("--out", "whole", "--json")) == 0
    whole = json.loads(capsys.readouterr().out)
    layers, evaluated = [], []
    own, logits = bench_prune_site(), api.accuracy.logits

    def stops(*arguments: Any) -> Any:
        if len(layers) == 1:
            raise KeyboardInterrupt
        layers.append(1)
        return own(*arguments)

    monkeypatch.setattr("bench.pruning.layerwise._prune_site", stops)
    assert main(command("--out", "stopped")) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the responses of 2 layers" in said and "the network behind 1 layers" in said and "goes on behind" in said
    monkeypatch.setattr("bench.pruning.layerwise._prune_site", lambda *a: (layers.append(1), own(*a))[1])
    monkeypatch.setattr("bench.pruning.calibration._responses", never)
    monkeypatch.setattr(api.accuracy, "logits", lambda *a, **k: (evaluated.append(1), logits(*a, **k))[1])
    assert main(command("--out", "stopped", "--json")) == 0
    again = json.loads(capsys.readouterr().out)
    assert len(layers) == 2 and len(evaluated) == 1
    assert [layer["kept"] for layer in again["layers"]] == [layer["kept"] for layer in whole["layers"]]
    for one, two in zip(whole["records"], again["records"], strict=True):
        assert two["value"] == pytest.approx(one["value"], abs=1e-3)
    assert not (place / "stopped" / "unfinished").exists()


def bench_prune_site() -> Any:
    from bench.pruning import layerwise

    return layerwise._prune_site


def test_other_inputs_start_anew(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("bench.pruning.layerwise._prune_site", stop)
        assert main(command("--out", "o")) == 130
    calls: list[int] = []
    own = api.calibrate
    from bench.pruning import calibration

    responses = calibration._responses
    monkeypatch.setattr(calibration, "_responses", lambda *a: (calls.append(1), responses(*a))[1])
    assert own is api.calibrate
    assert main(command("--out", "o", "--seed", "5")) == 0
    assert len(calls) == 2


def test_a_stop_before_anything_is_finished_promises_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api.accuracy, "logits", stop)
    assert main(command()) == 130
    assert "starts anew" in capsys.readouterr().err
    monkeypatch.setattr(api, "_folder", stop)
    assert main(command()) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "bench: stopped"


@pytest.mark.slow
def test_the_end_of_a_batch_job_is_a_stop(place: Path) -> None:
    """SIGTERM in the middle of a long calibration."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(place)])}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *command("--size", "400", "--images", "24")],
        stderr=subprocess.PIPE,
        text=True,
        cwd=place,
        env=environment,
    )
    assert process.stderr is not None
    text = ""
    while "dense network" not in text:
        text += process.stderr.read(1)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "goes on behind" in rest.splitlines()[-1]


def test_torchrun_is_refused(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command()) == 2
    assert "without torchrun" in capsys.readouterr().err
