"""The command line: ``bench list | run | sync | tables | coverage | power | macs | latency | prune | evaluate |
doctor | data | accept | nightly | check | history | gc``.

Exit status 0: done; 1: a row failed; 2: a mistake of the user's, told in one line; a bug gives a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import began  # noqa: F401  # its clock starts with the command
from bench.errors import UserError
from bench.tracking.modes import MODES

# where a command is done, if not in bench.commands
_MODULES = {
    **dict.fromkeys(("nightly", "check", "history"), "bench.nightly.commands"),
    **dict.fromkeys(("tables", "coverage", "power", "site", "accept"), "bench.page_commands"),
    **dict.fromkeys(("macs", "latency", "evaluate"), "bench.network_commands"),
    "doctor": "bench.doctor",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    with _terminated_as_interrupted():
        return _answered(options)


def _answered(options: argparse.Namespace) -> int:
    try:
        value, text, status = _run(options)
    except UserError as error:
        if getattr(options, "json", False):
            print(json.dumps({"error": str(error)}))
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        usual = "stopped; the same command goes on from here" if options.command in ("run", "nightly") else "stopped"
        if getattr(options, "json", False):
            print(json.dumps({"error": str(error) or usual}), flush=True)
        print(f"\nbench: {str(error) or usual}", file=sys.stderr)
        return 130
    try:
        print(json.dumps(value, indent=1, default=str) if options.json else text, flush=True)
    except BrokenPipeError:  # the reader (`| head`) has seen enough; Python's own flush at the end must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _run(options: argparse.Namespace) -> tuple[Any, str, int]:
    """The command's JSON value, text and exit status.

    What it needs is imported here, so that a list waits for no torch.
    """
    if options.command == "list":
        from bench import listing

        return (*listing.rows(options.paper), 0)
    module = _MODULES.get(options.command, "bench.commands")
    if getattr(options, "baseline", None) is not None:
        module = "bench.nightly.commands"
    return getattr(importlib.import_module(module), options.command)(options)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM (a batch system's end of time) stops a command as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description="Reproduces channel-pruning papers and measures them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help_: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.add_argument("--json", action="store_true", help="print JSON for machines")
        return sub

    def where(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--data", type=Path, help="where data sets are found (default $BENCH_DATA, else ./data)")
        sub.add_argument("--device", default="auto", help="auto, cpu or cuda")
        sub.add_argument("--seed", type=_natural, help="one seed instead of the row's own")
        sub.add_argument(
            "--weights", type=Path, help="state dict of the dense network (prune: or a saved network's folder)"
        )
        sub.add_argument("--workers", type=_natural, default=0, help="processes that decode images")

    sub = command("list", "papers, tables, rows, and what each needs")
    sub.add_argument("paper", nargs="*")

    sub = command("run", "run rows of papers; finished steps are kept and used again")
    sub.add_argument("paper", nargs="*", help="papers (default: all)")
    sub.add_argument("--table", help="only tables whose name this begins, e.g. 'Table 1'")
    sub.add_argument("--row", help="one row: its id (see `bench list`), its name, or a beginning that only it has")
    sub.add_argument(
        "--scale",
        help="digits, clutter, scenes, cifar10, imagenet, voc, coco, or a folder of images (default: each row's own)",
    )
    sub.add_argument("--protocol", default="short256", choices=["short256", "squash256"], help="ImageNet evaluation")
    sub.add_argument("--strict-data", action="store_true", help="boxes that are empty or leave their image are errors")
    sub.add_argument("--amp", action="store_true", help="train in mixed precision (GPU: fp16; processor: bf16)")
    sub.add_argument(
        "--paper-schedule", action="store_true", help="train as long as the paper where that was shortened for 2 cores"
    )
    sub.add_argument("--round", type=_natural, help="round the widths that pruning leaves to 8, 16 or 32: an analogue")
    sub.add_argument("--out", type=Path, default=Path("runs"), help="where results go (default runs/)")
    sub.add_argument(
        "--networks",
        type=Path,
        help="take trained and pruned networks from this run's folder, whatever machine made them; measure here",
    )
    sub.add_argument("--plan", action="store_true", help="print the steps, what is cached and the minutes; run nothing")
    sub.add_argument("--reuse-times", action="store_true", help="take times of earlier runs on this device as they are")
    sub.add_argument("--isolate", action="store_true", help="each row in a process of its own: a crash costs that row")
    sub.add_argument(
        "--jobs",
        type=_natural,
        default=1,
        help="so many rows at once, each in a process of its own, sharing the threads (for a GPU: about 8)",
    )
    sub.add_argument("--wandb", choices=MODES, help="the W&B mirror (default $WANDB_MODE, else online with a login)")
    where(sub)

    sub = command("sync", "send to W&B what has not reached it; the store is the truth, W&B its mirror")
    sub.add_argument("--out", type=Path, default=Path("runs"), help="the folder of the runs (default runs/)")

    sub = command("tables", "print the tables of runs/ where it exists, else of results/")
    sub.add_argument("paper", nargs="*")
    sub.add_argument("--format", default="md", choices=["md", "csv", "tex", "html"])
    sub.add_argument("--from", dest="source", type=Path, help="the folder to read")

    sub = command("site", "write the pages, tables and figures of a folder of results from the rows in it; run nothing")
    sub.add_argument("--from", dest="source", type=Path, help="the folder (default runs/ where it exists)")

    sub = command("coverage", "how many published values are decided, by which verdict, and why the others are not")
    sub.add_argument("paper", nargs="*", help="papers, with or without a script (default: all)")
    sub.add_argument("--from", dest="source", type=Path, help="the folder to read (default runs/ where it exists)")
    sub.add_argument("--data", type=Path, help="where data sets are found (default $BENCH_DATA, else ./data)")

    sub = command("power", "what verdicts on the published values can decide at the size of their data")
    sub.add_argument("paper", nargs="*", help="papers, value by value (default: all, counted)")

    sub = command("macs", "MACs and parameters of a model or of a row at the paper's own shape")
    sub.add_argument("model", help="a model (vgg16, resnet50, ..., MODULE:FACTORY) or a row, e.g. 'VGG-16 5x'")
    sub.add_argument("--convention", default="conv+fc", choices=["conv", "conv+fc", "2x"])
    sub.add_argument("--size", type=_natural, help="input side (default 224, CIFAR nets 32)")

    sub = command("latency", "time pruned networks beside their dense ones, each as it is and in its best form")
    sub.add_argument("name", nargs="*", help="papers, rows, models (vgg16, MODULE:FACTORY) or saved networks' folders")
    sub.add_argument("--suite", help="cpu, gpu (one command, no data, 9 minutes) or papers (the papers' own tables)")
    sub.add_argument("--batch", help="batch sizes, e.g. 1,8,32,128 (default on the CPU 1,8)")
    sub.add_argument("--dtype", help="fp32, tf32, bf16 (default on the CPU fp32, on a GPU tf32,bf16)")
    sub.add_argument("--layout", help="nchw, nhwc (default both; the faster is a network's best form)")
    sub.add_argument("--mode", default="forward", help="forward, forward+backward, or detections (with NMS)")
    sub.add_argument("--compile", action="store_true", help="torch.compile is one of the forms")
    sub.add_argument("--device", default="auto", help="auto, cpu or cuda")
    sub.add_argument("--round", type=_natural, help="each pruned network also with its widths rounded to 8, 16 or 32")
    sub.add_argument("--staircase", metavar="LAYER", help="latency of this layer (a module's name) by channel count")
    sub.add_argument("--sensitivity", action="store_true", help="is a network slowed by 10 %% caught here? ten times")
    sub.add_argument("--size", type=_natural, help="input side of a model (default 224, CIFAR nets 32)")
    sub.add_argument("--weights", type=Path, help="state dict of a model (default: fresh weights, which take as long)")
    sub.add_argument("--seconds", type=float, help="seconds of measuring a point at most (CPU: 90)")
    sub.add_argument("--processes", type=_natural, help="fresh processes a point at most (default: CPU 10, GPU 5)")
    sub.add_argument("--minutes", type=float, help="minutes of the whole run: what is left out is said")
    sub.add_argument("--out", type=Path, default=Path("runs"), help="results go to OUT/latency (default runs/)")

    sub = command("prune", "prune a network of your own")
    sub.add_argument("model", help="MODULE:FACTORY that returns the trained nn.Module (or takes --weights)")
    sub.add_argument("--method", default="cp", help="cp, exact, thinet, max-response, first-k, weight-sum or random")
    sub.add_argument("--widths", default="uniform", help="uniform or error-driven")
    sub.add_argument("--speedup", type=float, default=2.0, help="dense over pruned conv MACs")
    sub.add_argument("--size", type=_natural, default=224, help="input side")
    sub.add_argument("--images", type=_natural, default=5000, help="calibration images at most")
    sub.add_argument("--out", type=Path, default=Path("pruned"), help="folder for the pruned network")
    found = "default: looked for among the common ones"
    sub.add_argument("--mean", type=_numbers, help=f"r,g,b of the normalisation, in 0 to 1 ({found})")
    sub.add_argument("--std", type=_numbers, help=f"r,g,b of the normalisation, in 0 to 1 ({found})")
    sub.add_argument("--interpolation", help="nearest, bilinear, bicubic (default), lanczos, box or hamming")
    sub.add_argument(
        "--protocol",
        help="short256 (default above 64 pixels: shorter side 256 of 224, centre crop), squash256, or squash (no crop)",
    )
    sub.add_argument(
        "--classes", help="class names in the order of the outputs: a file, one a line, or a,b,c (- for none)"
    )
    sub.add_argument("--wandb", choices=MODES, default=MODES[-1], help="send sizes and records to W&B (default: no)")
    where(sub)

    sub = command("evaluate", "evaluate saved networks again and compare with what was recorded of them")
    sub.add_argument("folder", nargs="+", type=Path, help="a saved network, or a folder with some, e.g. results/")
    sub.add_argument(
        "--data", type=Path, help="where data sets are found (default $BENCH_DATA, else ./data); of a network that "
        "`bench prune` saved: its image folder",
    )  # fmt: skip
    sub.add_argument("--device", default="auto", help="auto, cpu or cuda")
    sub.add_argument("--batch", type=_natural, default=256, help="images of one batch (default 256)")
    sub.add_argument("--workers", type=_natural, default=0, help="processes that decode images")

    command("doctor", "versions, devices, data sets, W&B").add_argument("--data", type=Path)

    sub = command("data", "write the CIFAR-10 subset of the committed table as an image folder")
    sub.add_argument("set", choices=["cifar10-subset"])
    sub.add_argument("folder", type=Path)
    sub.add_argument("--data", type=Path, help="where CIFAR-10 is found or downloaded to")

    sub = command("accept", "promote measured rows from runs/ to results/ and write their pages")
    sub.add_argument("paper", nargs="*", help="papers (default: all), or latency: what `bench latency` timed")
    sub.add_argument("--from", dest="source", type=Path, default=Path("runs"))
    sub.add_argument("--to", type=Path, default=Path("results"))

    sub.add_argument("--baseline", type=Path, help="promote the last night's rows, or those of a folder "
        "without nights, to this baseline, with predictions; no pages")  # fmt: skip
    sub.add_argument("--without", nargs="+", default=[], metavar="ROW", help="leave these rows out of the baseline, "
        "such as those that failed in the night")  # fmt: skip

    sub = command("nightly", "run every row that this machine can run, each on its own; compare, remember, summarise")
    sub.add_argument("paper", nargs="*", help="papers (default: all)")
    sub.add_argument("--scale", help="as of `bench run`, or embedded (default: each row's own)")
    sub.add_argument("--budget", type=float, help="minutes: the most valuable rows that fit; the others are listed")
    sub.add_argument(
        "--jobs", type=_natural, default=1, help="so many rows at once, which share the threads (default 1)"
    )
    sub.add_argument("--baseline", type=Path, help="compare with this (default results/baseline where it exists)")
    sub.add_argument("--protocol", default="short256", choices=["short256", "squash256"], help="ImageNet evaluation")
    sub.add_argument("--out", type=Path, default=Path("runs"), help="where results go (default runs/)")
    sub.add_argument("--plan", action="store_true", help="print the rows in order with their minutes; run nothing")
    sub.add_argument("--wandb", choices=MODES, help="the W&B mirror (default $WANDB_MODE, else online with a login)")
    where(sub)

    sub = command("check", "compare a run, or the last night, with a baseline: SAME, BETTER, WORSE, AMBIGUOUS, "
        "MISSING, OTHER SETTING")  # fmt: skip
    sub.add_argument("--baseline", type=Path, help="the folder to compare with (default results/baseline)")
    sub.add_argument("--out", type=Path, default=Path("runs"), help="the folder of the runs (default runs/)")

    sub = command("history", "a row's nights, and whether a value drifts")
    sub.add_argument("row", help="its id, or a part of it that only it has")
    sub.add_argument("--out", type=Path, default=Path("runs"), help="the folder of the runs (default runs/)")

    sub = command("gc", "remove steps that no row needs and that the code of today would not find again")
    sub.add_argument("--out", type=Path, default=Path("runs"), help="the folder of the runs (default runs/)")
    sub.add_argument("--dry-run", action="store_true", help="say what would go; remove nothing")
    return parser


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers with commas") from None


def _natural(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    if value >= 2**31:
        raise argparse.ArgumentTypeError(f"{text} is too large")
    return value
