"""The command line as a user meets it: every mistake gets one line and exit status 2, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import commands, runner
from bench.cli import main


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must fail; returns its one line on stderr (steps that ran before it print theirs)."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.strip().splitlines() if not line.startswith("[")]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("bench: ")
    return lines[0]


def success(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    """``bench list | head``: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "bench", "list", "--json"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode == 0
    assert done.stderr == ""


def folder(root: Path, images: int = 30, side: int = 32) -> Path:
    """Two classes that differ in brightness."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, name in enumerate(("dark", "light")):
            (root / part / name).mkdir(parents=True)
            for number in range(images):
                pixels = generator.integers(100 * label, 156 + 100 * label, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "nobody"], "unknown paper 'nobody'"),
        (["run", "channel_pruning", "--table", "Table 99"], "unknown table"),
        (["run", "channel_pruning", "--row", "VGG-17"], "unknown row"),
        (["run", "channel_pruning", "--scale", "cifar11"], "unknown scale"),
        (["run", "channel_pruning", "--device", "tpu"], "unknown device"),
        (["run", "channel_pruning", "--weights", "absent.pth"], "no weights file"),
        (["run", "channel_pruning", "--row", "table-1/vgg-16-5x-fine-tuned", "--data", "nowhere"], "needs imagenet"),
        (
            ["run", "channel_pruning", "--row", "VGG-16 5x"],
            "names 4 rows, choose one: channel_pruning/table-1/vgg-16-5x-",
        ),
        (
            ["run", "channel_pruning", "--table", "Table 8", "--row", "Our"],
            "table-8/ours, channel_pruning/table-8/ours-fine",
        ),
        (["gc", "--out", "no-such-folder"], "no runs in no-such-folder"),
        (["tables", "--from", "no-such-folder"], "no-such-folder"),
        (["tables", "nobody"], "unknown paper"),
        (["macs", "VGG-17"], "unknown row"),
        (["macs", ""], "unknown row ''"),
        (["macs", "nothing:here"], "cannot import 'nothing'"),
        (["macs", "os:getcwd"], "returns a str, not an nn.Module"),
        (["macs", "vgg16", "--size", "0"], "--size 0"),
        (["latency", "os:getcwd"], "returns a str, not an nn.Module"),
        (["latency", "vgg16", "--seconds", "nan"], "--seconds nan is no time"),
        (["latency", "vgg16", "--seconds", "-1"], "--seconds -1 is no time"),
        (["latency", "vgg16", "--minutes", "0"], "--minutes 0 is no time"),
        (["coverage", "--from", "no-such-folder"], "no folder no-such-folder"),
        (["nightly", "--baseline", "no-such-folder", "--scale", "digits"], "no folder no-such-folder: make a baseline"),
        (
            ["nightly", "--baseline", "no-such-folder", "--plan", "--scale", "digits"],
            "no folder no-such-folder: make a baseline",
        ),
        (["nightly", "fbs", "--scale", "digits", "--budget", "0.01"], "no row ends within --budget 0.01"),
        (["prune", "torchvision.models:resnet18", "--data", "x", "--mean", "2,2,2", "--std", "1,1,1"], "0 to 1"),
        (["prune", "vgg16", "--data", "x"], "MODULE:FACTORY"),
        (["prune", "torchvision.models:resnet18"], "--data"),
        (["prune", "torchvision.models:resnet18", "--data", "nowhere"], "no folder nowhere"),
        (["prune", "torchvision.models:no_such_net", "--data", "x"], "no_such_net"),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named in failure(arguments, capsys)


def test_a_network_without_convolutions_has_no_speed_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 MACs (conv+fc), 0 parameters, no convolutions" in success(["macs", "torch.nn:Identity"], capsys)
    assert json.loads(success(["macs", "torch.nn:Identity", "--json"], capsys))[0]["conv_speedup"] is None


def test_words_for_numbers_are_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["macs", "vgg16", "--size", "nan"])
    assert ended.value.code == 2 and "'nan' is no whole number" in capsys.readouterr().err


def test_a_stopped_command_s_json_is_json_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.commands.gc", stopped)
    assert main(["gc", "--json"]) == 130
    assert json.loads(capsys.readouterr().out) == {"error": "stopped"}


def test_json_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nobody", "--json"]) == 2
    assert "unknown paper" in json.loads(capsys.readouterr().out)["error"]


def test_a_wrong_checkpoint_names_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "wrong.pth")
    row = ["--table", "Table 8", "--row", "Ours", "--scale", "digits"]
    places = ["--weights", str(tmp_path / "wrong.pth"), "--out", str(tmp_path / "runs")]
    line = failure(["run", "channel_pruning", *row, *places], capsys)
    assert "conv1.weight has shape (1,)" in line or "is missing" in line


def test_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "runs")
    assert "choose another folder" in failure(
        ["run", "channel_pruning", "--table", "Table 8", "--scale", "digits", "--out", out], capsys
    )


def test_a_class_without_images_and_a_corrupt_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "set", images=2)
    arguments = [
        "run",
        "channel_pruning",
        "--table",
        "Table 8",
        "--row",
        "Ours",
        "--scale",
        str(root),
        "--out",
        str(tmp_path / "runs"),
    ]
    (root / "test" / "dark" / "0.png").write_bytes(b"broken")
    assert "0.png cannot be decoded" in failure(arguments, capsys)
    (root / "train" / "empty").mkdir()
    assert "has no images" in failure(arguments, capsys)


def test_list_and_macs(capsys: pytest.CaptureFixture[str]) -> None:
    assert "VGG-16 5x released widths, fine-tuned" in success(["list"], capsys)
    rows = json.loads(success(["list", "--json"], capsys))
    assert {"paper", "id", "table", "row", "scale", "scales", "missing"} == set(rows[0])
    assert "15,346,630,656" in success(["macs", "vgg16", "--convention", "conv"], capsys)
    # rows of one shape, before and after fine-tuning, are printed once
    released = json.loads(success(["macs", "VGG-16 5x released widths", "--json"], capsys))
    assert [round(entry["conv_speedup"], 3) for entry in released] == [4.525]
    assert len(success(["macs", "VGG-16 5x"], capsys).splitlines()) == 2


def test_a_module_of_the_working_directory_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed script does not look there by itself."""
    code = "from torch import nn\n\ndef net():\n    return nn.Conv2d(3, 4, 3, bias=False)\n"
    (tmp_path / "my_own_net.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    assert main(["macs", "my_own_net:net", "--size", "5", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["macs"], found["params"]) == (3 * 3 * 3 * 4 * 9, 108)


def test_size_columns_of_the_papers_tables_without_data(capsys: pytest.CaptureFixture[str]) -> None:
    """The published widths' real speed-ups: 2.129x, 3.868x, 4.525x; ResNet-50's "2x" is 1.485x on the v1 graph."""
    found = {
        name: json.loads(success(["macs", name, "--json"], capsys))[0]["conv_speedup"]
        for name in ("VGG-16 2x released widths", "VGG-16 4x released widths", "Ours (enhanced)")
    }
    assert [round(speedup, 3) for speedup in found.values()] == [2.129, 3.868, 1.485]


def test_doctor_says_what_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "torch" in success(["doctor", "--data", str(tmp_path)], capsys)
    value = json.loads(success(["doctor", "--json"], capsys))
    assert value["data"]["digits"] is not None


def test_plan_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    text = success(
        ["run", "channel_pruning", "--table", "Table 8", "--scale", "digits", "--plan", "--out", str(out)], capsys
    )
    assert "nothing was run" in text
    assert not out.exists()


@pytest.mark.slow
def test_prune_a_network_of_the_user_s_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module in the user's folder, its weights, the user's images: pruned, measured, saved, and loadable."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def block(read, made, stride):\n"
        "    convolution = nn.Conv2d(read, made, 3, stride, 1, bias=False)\n"
        "    return nn.Sequential(convolution, nn.BatchNorm2d(made), nn.ReLU())\n"
        "def net():\n"
        "    blocks = [block(3, 16, 1), block(16, 32, 2), block(32, 64, 2)]\n"
        "    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    root = folder(tmp_path / "set")
    torch.manual_seed(0)
    import mine  # type: ignore[import-not-found]

    torch.save(mine.net().state_dict(), tmp_path / "weights.pth")
    text = success(
        [
            "prune",
            "mine:net",
            "--data",
            str(root),
            "--size",
            "32",
            "--weights",
            "weights.pth",
            "--speedup",
            "1.5",
            "--json",
        ],
        capsys,
    )
    value = json.loads(text)
    assert value["conv_speedup"] >= 1.5
    state = torch.load(tmp_path / "pruned" / "state.pth", weights_only=True)
    assert (
        sum(t.numel() for name, t in state.items() if "running" not in name and "tracked" not in name)
        == value["params"][1]
    )
    sys.modules.pop("mine")


@pytest.mark.parametrize("command", ["run", "nightly"])
@pytest.mark.parametrize("name", ["other.csv", "claims.csv"])
def test_a_registry_that_breaks_its_schema_is_told_before_anything_is_measured(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another paper's file too: the pages of all papers are written behind the last row."""
    (tmp_path / name).write_text("paper,table\n")
    monkeypatch.setattr(commands, "registry_folder", lambda: tmp_path)
    monkeypatch.setattr(runner, "run", None)
    out = tmp_path / "runs"
    arguments = [command, "selection_study", "--scale", "digits", "--wandb", "disabled", "--out", str(out)]
    assert f"{tmp_path / name}, line 1" in failure(arguments, capsys)
    assert not (out / "steps").exists()
