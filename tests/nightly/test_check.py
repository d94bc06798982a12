"""A run against a baseline, on hand-made row files: accuracies paired by image, times, sizes, what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import UserError
from bench.nightly import baseline
from bench.nightly.check import Word, check, text
from bench.store import Record, Result, Store, row_path

PROVENANCE = {
    "code": "a" * 40,
    "versions": {"torch": "2.9.1"},
    "hardware": {"name": "a processor", "threads": 2},
    "date": "2026-01-01T00:00:00+00:00",
}
IMAGES = 2000


def row(records: list[dict[str, Any]], **provenance: Any) -> dict[str, Any]:
    """A row file of one evaluation."""
    return {
        "id": "toy/table-1/pruned",
        "setting": {"scale": "clutter", "seeds": [0], "device": "cpu", "data": {"name": "clutter", "fingerprint": "f"}},
        "status": "ran",
        "shape": None,
        "records": [{**record, "step": "key"} for record in records],
        "steps": {
            "key": {"step": "evaluated(net)", "kind": "evaluate", "provenance": {**PROVENANCE, **provenance}},
        },
    }


def put(root: Path, value: dict[str, Any]) -> Path:
    path = row_path(root, value["id"], value["setting"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def top1(right: int) -> dict[str, Any]:
    """An accuracy over 2,000 images with its normal interval."""
    share = right / IMAGES
    half = 196.0 * (share * (1 - share) / IMAGES) ** 0.5
    value = 100.0 * share
    return Record("top1_acc", value, "%", value - half, value + half, IMAGES, 0).to_json()


def timed(value: float, half: float, name: str = "latency_dense", unit: str = "ms") -> dict[str, Any]:
    return Record(name, value, unit, value - half, value + half).to_json()


def evaluation(store: Store, classes: torch.Tensor, labels: torch.Tensor) -> None:
    logits = torch.nn.functional.one_hot(classes, 10).float()
    store.save("key", Result(arrays={"logits": logits, "labels": labels}), {})


def both(tmp_path: Path, before: dict[str, Any], now: dict[str, Any]) -> Any:
    put(tmp_path / "base", before)
    put(tmp_path / "runs", now)
    (found,) = check(tmp_path / "runs", tmp_path / "base")
    return found


def test_unchanged_is_the_same(tmp_path: Path) -> None:
    found = both(tmp_path, row([top1(1800)]), row([top1(1800)]))
    assert found.word is Word.SAME and not found.failed


@pytest.mark.parametrize(
    ("now", "word"),
    [
        # two independent accuracies of 90 % over 2,000 images: half intervals of 1.31 points each, together 1.86
        (1840, Word.BETTER),
        (1760, Word.WORSE),
        # 1.5 points less: nobody can tell, and a point would not have been seen either
        (1770, Word.AMBIGUOUS),
        (1799, Word.AMBIGUOUS),
    ],
)
def test_without_predictions_the_two_intervals_are_the_noise(tmp_path: Path, now: int, word: Word) -> None:
    assert both(tmp_path, row([top1(1800)]), row([top1(now)])).word is word


@pytest.mark.parametrize(("lost", "word"), [(0, Word.SAME), (1, Word.SAME), (12, Word.WORSE), (30, Word.WORSE)])
def test_with_predictions_a_change_is_paired_by_image(tmp_path: Path, lost: int, word: Word) -> None:
    """12 of 2,000 images lost and none won is 0.6 points, half an interval about 0.36: seen; unpaired 1.86 hide it."""
    labels = torch.arange(IMAGES) % 10
    before = labels.clone()
    before[1800:] = (before[1800:] + 1) % 10
    now = before.clone()
    now[:lost] = (now[:lost] + 1) % 10
    path = put(tmp_path / "base", row([top1(1800)]))
    old = Store(tmp_path / "old")
    evaluation(old, before, labels)
    (written,) = baseline.write(tmp_path / "base", [(path, row([top1(1800)]))], old)
    assert written.stat().st_size < IMAGES + 300  # a byte an image
    evaluation(Store(tmp_path / "runs"), now, labels)
    put(tmp_path / "runs", row([top1(1800 - lost)]))
    (found,) = check(tmp_path / "runs", tmp_path / "base")
    (compared,) = found.compared
    assert (found.word, compared.changed) == (word, lost)


def test_changes_that_cancel_are_counted(tmp_path: Path) -> None:
    """As many won as lost is the same accuracy, but the predictions that differ are told."""
    labels = torch.zeros(IMAGES, dtype=torch.long)
    before, now = labels.clone(), labels.clone()
    before[:100], now[100:200] = 1, 1
    path = put(tmp_path / "base", row([top1(1900)]))
    old = Store(tmp_path / "old")
    evaluation(old, before, labels)
    baseline.write(tmp_path / "base", [(path, row([top1(1900)]))], old)
    evaluation(Store(tmp_path / "runs"), now, labels)
    put(tmp_path / "runs", row([top1(1900)]))
    (found,) = check(tmp_path / "runs", tmp_path / "base")
    assert found.compared[0].changed == 200 and found.word in (Word.SAME, Word.AMBIGUOUS)


def test_other_data_are_not_paired_and_are_named(tmp_path: Path) -> None:
    other = row([top1(1500)])
    other["setting"]["data"]["fingerprint"] = "0123456789abcdef"
    found = both(tmp_path, row([top1(1800)]), other)
    assert found.word is Word.WORSE and found.compared[0].changed is None
    assert "data: clutter f before, clutter 0123456789ab now" in text([found])


@pytest.mark.parametrize(
    ("now", "half", "word"),
    [
        (13.0, 0.2, Word.WORSE),  # 30 % slower
        (10.8, 0.2, Word.SAME),  # 8 %: within the 10 % that neighbours are worth
        (8.5, 0.2, Word.BETTER),
        (12.0, 3.0, Word.AMBIGUOUS),  # so wide an interval could not have seen 15 %
    ],
)
def test_times_have_a_relative_tolerance(tmp_path: Path, now: float, half: float, word: Word) -> None:
    assert both(tmp_path, row([timed(10.0, 0.2)]), row([timed(now, half)])).word is word


@pytest.mark.parametrize(
    ("dense", "skipped", "words"),
    [
        (10.0, 4.0, (Word.SAME, Word.SAME)),
        (15.0, 6.0, (Word.AMBIGUOUS, Word.SAME)),  # everything took half as long again: the machine
        (15.0, 7.8, (Word.AMBIGUOUS, Word.WORSE)),  # 30 % slower, and the machine too
        (7.0, 4.0, (Word.AMBIGUOUS, Word.WORSE)),  # a faster hour hides nothing
        (15.0, 4.2, (Word.AMBIGUOUS, Word.BETTER)),
    ],
)
def test_times_are_compared_in_units_of_the_dense_network_s(
    tmp_path: Path, dense: float, skipped: float, words: tuple[Word, Word]
) -> None:
    before = row([timed(10.0, 0.2), timed(4.0, 0.1, "latency_skipped")])
    found = both(tmp_path, before, row([timed(dense, 0.2), timed(skipped, 0.1, "latency_skipped")]))
    assert tuple(one.word for one in found.compared) == words
    assert found.failed == (Word.WORSE in words)


def test_the_share_of_a_saving_that_was_realised_is_a_time_s(tmp_path: Path) -> None:
    """In percent, and still a ratio of times: 44.6 % and 41.8 % are the same, 33.2 % is less."""
    for now, word in ((41.8, Word.SAME), (33.2, Word.WORSE)):
        before = row([timed(44.6, 0.5, "realised_share", "%")])
        assert both(tmp_path, before, row([timed(now, 0.5, "realised_share", "%")])).word is word


def test_the_load_of_the_machine_is_not_judged(tmp_path: Path) -> None:
    loads = [Record("machine_load", value, "").to_json() for value in (0.5, 0.9)]
    found = both(tmp_path, row([top1(1800), loads[0]]), row([top1(1800), loads[1]]))
    assert found.word is Word.SAME and [one.metric for one in found.compared] == ["top1_acc"]


def test_sizes_have_none(tmp_path: Path) -> None:
    """One parameter more is worse: what was counted has no noise."""
    size = [Record("params", value, "").to_json() for value in (853_018, 853_019)]
    assert both(tmp_path, row([size[0]]), row([size[1]])).word is Word.WORSE


ELSEWHERE = {"hardware": {"name": "another processor", "threads": 2}}


@pytest.mark.parametrize(
    ("kind", "seeds", "record", "word"),
    [
        # one network of another processor is another network; three tell by how much such networks differ
        ("train", [0], "accuracy", Word.AMBIGUOUS),
        ("prune", [0, 1], "accuracy", Word.AMBIGUOUS),
        ("train", [0, 1, 2], "accuracy", Word.WORSE),
        # a contrast lists no training; it says where those behind it ran
        ("compare", [0], "accuracy", Word.AMBIGUOUS),
        # widths that follow from the data follow from the arithmetic too, by a channel or so
        ("prune", [0, 1, 2], "macs", Word.AMBIGUOUS),
        ("prune", [0, 1, 2], "more macs", Word.WORSE),
        # speed-ups are a machine's
        ("time", [0, 1, 2], "time", Word.AMBIGUOUS),
        ("train", [0], "time", Word.WORSE),
    ],
)
@pytest.mark.parametrize("where", [ELSEWHERE, {"hardware": {"name": "a processor", "threads": 1}}])
def test_beside_a_baseline_from_elsewhere(
    tmp_path: Path, kind: str, seeds: list[int], record: str, word: Word, where: dict[str, Any]
) -> None:
    records = {
        "accuracy": ([top1(1800)], [top1(1700)]),
        "macs": ([Record("macs", 1e6, "MACs").to_json()], [Record("macs", 1.04e6, "MACs").to_json()]),
        "more macs": ([Record("macs", 1e6, "MACs").to_json()], [Record("macs", 1.06e6, "MACs").to_json()]),
        "time": ([timed(2.0, 0.01, "realised_speedup", "x")], [timed(1.0, 0.01, "realised_speedup", "x")]),
    }
    before, now = row(records[record][0]), row(records[record][1], **where)
    for one in (before, now):
        one["setting"]["seeds"], one["steps"]["key"]["kind"] = seeds, kind
    found = both(tmp_path, before, now)
    assert found.word is word and found.compared[0].elsewhere is (word is Word.AMBIGUOUS)
    assert ("other hardware" in text([found])) is (word is Word.AMBIGUOUS)
    # on the same hardware each of them is worse, whatever evaluated the networks
    same = {"made_on": [PROVENANCE["hardware"]]}
    put(tmp_path / "base", {**before, **same})
    steps = before["steps"] if kind == "time" else now["steps"]
    put(tmp_path / "runs", {**now, **same, "steps": steps})
    (found,) = check(tmp_path / "runs", tmp_path / "base")
    assert found.word is Word.WORSE


def test_what_is_missing_fails_and_what_differs_is_named(tmp_path: Path) -> None:
    put(tmp_path / "base", row([top1(1800)]))
    (tmp_path / "runs").mkdir()
    (found,) = check(tmp_path / "runs", tmp_path / "base")
    assert found.word is Word.MISSING and found.failed and "was not run" in text([found])
    gone = both(tmp_path, row([top1(1800), timed(1.0, 0.01)]), row([top1(1800)]))
    assert gone.word is Word.MISSING
    worse = both(tmp_path, row([top1(1800)]), row([top1(1500)], code="b" * 40, versions={"torch": "2.10.0"}))
    said = text([worse])
    assert "commit: aaaaaaaaaaaa before, bbbbbbbbbbbb now" in said
    assert "packages: torch 2.9.1 before, torch 2.10.0 now" in said


def test_a_baseline_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no measured rows"):
        check(tmp_path, tmp_path)
    path = put(tmp_path / "base", row([top1(1800)]))
    place = baseline.predictions_path(path)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"no tensors")
    put(tmp_path / "runs", row([top1(1800)]))
    (tmp_path / "runs" / "steps").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        check(tmp_path / "runs", tmp_path / "base")
