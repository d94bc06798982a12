"""Networks to take home: an accepted row that its script releases leaves its first seed's network beside the results.

``<results>/<paper>/networks/<table>--<row>/`` holds what :mod:`bench.saved` writes (recipe and weights), facts (row,
seed, setting, provenance, top-1 as measured), and the class predicted for each test image, in the data set's order.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import bench.data
from bench import saved
from bench.errors import UserError
from bench.measure import accuracy
from bench.models.checkpoint import network
from bench.report.load import RAN, Declarations, rank
from bench.store import Result, Store, disk_errors, file_digest, network_path

PREDICTIONS = "predictions.safetensors"
# bytes of one network's folder, and of all in a folder of results
LARGEST, ALL = 4_000_000, 20_000_000


@dataclass
class Prepared:
    """Networks that are ready to be written: ``staged`` folders by their targets, and those that ``go``.

    ``notes`` say which networks could not be had, and what was removed.
    """

    staged: dict[Path, Path] = field(default_factory=dict)
    go: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def write(self) -> list[Path]:
        """Puts the networks into the results; returns their folders.  Raises :class:`UserError` on a full disk."""
        for target in [*self.go, *self.staged]:
            with disk_errors(target):
                shutil.rmtree(target, ignore_errors=True)
        for target, folder in self.staged.items():
            with disk_errors(target):
                shutil.copytree(folder, target)
        return list(self.staged)


@contextlib.contextmanager
def prepared(
    runs: Path, results: Path, rows: Sequence[Mapping[str, Any]], declared: Declarations
) -> Iterator[Prepared]:
    """The networks of those of the accepted ``rows`` that are released, from the store ``runs``; nothing is written.

    A row is released at its own scale; of several settings the one that its table shows.  A network whose steps are no
    longer stored is left out, and what ``results`` hold of it goes unless it is the same.  So do the networks of rows
    that are no longer released.  Raises :class:`UserError` for a network that is too large, that cannot be built from
    its recipe, or that classifies nothing.
    """
    chosen: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        said, setting = declared[row["id"].partition("/")[0]][row["id"]], row["setting"]
        own = said.release and row["status"] == RAN and setting["scale"] == said.scale and not setting["folder"]
        own = own and not setting.get("round")
        if own and (row["id"] not in chosen or rank(row) > rank(chosen[row["id"]])):
            chosen[row["id"]] = row
    found = Prepared(go=_dismissed(results, {row["id"].partition("/")[0] for row in rows}, declared))
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        for number, (name, row) in enumerate(chosen.items()):
            target, folder = network_path(results, name), Path(place) / str(number)
            reason = _stage(Store(runs), row, folder)
            if reason is None:
                found.staged[target] = folder
                continue
            found.notes.append(f"{name}: its network is not released: {reason} is no longer in {runs}: run it again")
            if saved.is_saved(target) and saved.facts_of(target).get("step") not in row["widths"]:
                found.go.append(target)
                found.notes.append(f"{target} was another run's network and is removed")
        _check_sizes(results, found)
        yield found


def _dismissed(results: Path, papers: set[str], declared: Declarations) -> list[Path]:
    """The networks of these papers in ``results`` whose rows are not released (any more)."""
    wanted = {network_path(results, name) for paper in papers for name, said in declared[paper].items() if said.release}
    here = [path.parent for paper in papers for path in results.glob(f"{paper}/networks/*/{saved.RECIPE}")]
    return sorted(folder for folder in here if folder not in wanted)


def _check_sizes(results: Path, found: Prepared) -> None:
    """Raises :class:`UserError` where a network, or all of them together, would take too much space."""
    for target, folder in found.staged.items():
        if _size(folder) > LARGEST:
            raise UserError(
                f"the network for {target} takes {_size(folder) / 1e6:.1f} MB, at most {LARGEST / 1e6:g} can be "
                "released: take `release` from its row"
            )
    kept = {path.parent for path in results.glob(f"*/networks/*/{saved.RECIPE}")} - {*found.go, *found.staged}
    total = sum(map(_size, [*kept, *found.staged.values()]))
    if total > ALL:
        raise UserError(
            f"the networks in {results} would take {total / 1e6:.1f} MB, at most {ALL / 1e6:g} can be released: take "
            "`release` from some rows"
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _stage(store: Store, row: Mapping[str, Any], folder: Path) -> str | None:
    """Writes the network of the row's first seed into ``folder``; returns the step that is missing for it, or None."""
    name = row["id"]
    key = next(iter(row["widths"]), None)
    if key is None:
        raise UserError(f"{name} has no network of its own: take `release` from the row")
    result = store.load(key)
    if result is None:
        return str(row["steps"][key]["step"])
    evaluation = _evaluation(store, row, key)
    if isinstance(evaluation, str):
        return evaluation
    measured_by, measured = evaluation
    model, recipe = network(result)
    logits, labels = measured.arrays["logits"], measured.arrays["labels"]
    top1 = next(record for record in measured.records if record.metric == "top1_acc")
    setting = row["setting"]
    mean, std = bench.data.normalisation(setting["scale"])
    header = store.header(key)
    assert header is not None
    folder.mkdir()
    facts = {
        "row": name,
        "seed": top1.seed,
        "setting": setting,
        "mean": list(mean),
        "std": list(std),
        "step": key,
        "evaluation": measured_by,
        "top1": {
            "value": top1.value,
            "low": top1.low,
            "high": top1.high,
            "right": int(accuracy.hits(logits, labels, 1).sum()),
            "n": top1.n,
            "of": top1.of,
        },
        "predictions": write_predictions(logits.argmax(1), folder),
        "provenance": header["provenance"],
    }
    problem = saved.save(model, recipe, folder, facts)
    if problem is not None:
        raise UserError(f"the network of {name} cannot be released: what its recipe builds is not what was measured")
    return None


def _evaluation(store: Store, row: Mapping[str, Any], key: str) -> tuple[str, Result] | str:
    """The row's step that evaluated the network ``key``, with its result; the step's name where it is not stored."""
    for other, about in row["steps"].items():
        if about["kind"] != "evaluate":
            continue
        header = store.header(other)
        if header is None:
            return str(about["step"])
        if header["parents"] == [key] and any(record["metric"] == "top1_acc" for record in header["records"]):
            result = store.load(other)
            return str(about["step"]) if result is None else (other, result)
    raise UserError(f"{row['id']} has no top-1 accuracy of its network: take `release` from the row")


def write_predictions(predicted: Tensor, folder: Path) -> str:
    """Writes the classes (N) predicted for the test images, a byte or two each; returns the file's digest."""
    kind = torch.uint8 if int(predicted.max()) < 256 else torch.uint16
    with disk_errors(folder):
        save_file({"predictions": predicted.to(kind)}, folder / PREDICTIONS)
        (folder / PREDICTIONS).chmod(0o644)
    return file_digest(folder / PREDICTIONS)


def read_predictions(folder: Path, digest: str) -> Tensor:
    """The classes (N, int64) that were predicted.  Raises :class:`UserError` where they are not the recorded ones."""
    path = folder / PREDICTIONS
    try:
        if file_digest(path) != digest:
            raise UserError(f"{path} is not the file that {saved.RECIPE} belongs to: fetch the network again")
        return load_file(path)["predictions"].long()
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch the network again") from error
