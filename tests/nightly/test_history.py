"""The nights' lines: appended whole, read in order, compared in one setting."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UserError
from bench.nightly import history
from bench.nightly.history import Entry
from bench.nightly.night import data_changes


def night(number: int, value: float, row: str = "toy/t/a", setting: str = "s", data: str = "d") -> Entry:
    return Entry(number, row, setting, "ok", 1.0, "2026-01-01", "c", data, {"top1_acc": [value, None, None]})


def test_lines_come_back_by_night(tmp_path: Path) -> None:
    lines = [night(2, 90.0), night(1, 91.0), night(2, 90.5), night(2, 70.0, "toy/t/b")]
    for line in lines:
        history.append(tmp_path, line)
    # the second line of a night and row is the one that counts
    assert history.read(tmp_path) == [lines[1], lines[2], lines[3]]
    assert history.series(history.read(tmp_path), "toy/t/a", "top1_acc") == [(1, 91.0), (2, 90.5)]
    assert history.read(tmp_path / "nothing") == []


def test_a_line_cut_by_a_kill_costs_that_line(tmp_path: Path) -> None:
    history.append(tmp_path, night(1, 90.0))
    path = tmp_path / history.NAME
    history.append(tmp_path, night(2, 91.0))
    path.write_bytes(path.read_bytes()[:-30])
    history.append(tmp_path, night(3, 92.0))
    assert [one.night for one in history.read(tmp_path)] == [1, 3]


def test_another_setting_is_another_series(tmp_path: Path) -> None:
    entries = [night(1, 80.0, setting="one seed"), night(2, 90.0), night(3, 91.0)]
    assert history.series(entries, "toy/t/a", "top1_acc") == [(2, 90.0), (3, 91.0)]
    failed = replace(night(4, 0.0), status="failed", metrics={}, setting="")
    assert history.series([*entries, failed], "toy/t/a", "top1_acc") == [(2, 90.0), (3, 91.0)]


def test_other_data_are_another_series() -> None:
    """Numbers about other data are not compared with those before, nor do they drift from them."""
    entries = [night(n, 90.0 + 0.001 * (n % 3)) for n in range(1, 31)]
    entries += [night(n, 70.0 + 0.001 * (n % 3), data="other") for n in range(31, 41)]
    assert history.series(entries, "toy/t/a", "top1_acc")[0][0] == 31
    assert history.drifts(entries) == []


def test_families_and_the_gpu_s_clocks_are_judged_and_loads_are_not() -> None:
    """Of a family each by its own name; every time by every clock."""
    names = ["latency_dense_events", "realised_speedup_graph", "realised_share_events", "ap_voc07 (3)", "latency_p99"]
    values = {name: [1.0, None, None] for name in (*names, "machine_load", "nobody_s")}
    one = replace(night(1, 0.0), metrics=values)
    assert history.judged([one]) == names
    lines = history.text([one], "toy/t/a").splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == names


def test_drifts_name_row_metric_and_night() -> None:
    entries = [night(n, 90.0 + 0.001 * (n % 3)) for n in range(1, 31)]
    assert history.drifts(entries) == []
    entries += [night(n, 90.0 + 0.001 * (n % 3) - 0.001 * (n - 30)) for n in range(31, 71)]
    ((row, metric, since, found),) = history.drifts(entries)
    assert (row, metric, found.direction) == ("toy/t/a", "top1_acc", "down") and 30 <= since <= 40


def test_bars_and_their_range() -> None:
    entries = [night(n, value) for n, value in enumerate([1.0, 2.0, 8.0], start=1)]
    said = history.text(entries, "toy/t/a")
    assert said == "toy/t/a\n  top1_acc: ▁▂█ (3 nights, 1 to 8, last 8)"
    with pytest.raises(UserError, match="no night has measured"):
        history.text(entries, "toy/t/b")


def test_data_that_changed_since_the_last_night_are_told() -> None:
    """Against the latest night before that measured the row in this setting; rows of one change count together."""
    entries = [
        night(1, 90.0, data="old"),
        night(2, 90.0),
        night(2, 90.0, "toy/t/b"),
        night(2, 80.0, "toy/t/c", "other"),
    ]
    assert data_changes(entries, 1) == []
    (told,) = data_changes(entries, 2)
    assert told.startswith("the data of 1 rows (s) are other ones than last time (old before, d now)")
    entries += [night(3, 90.0, data="new"), night(3, 90.0, "toy/t/b", data="new"), night(3, 80.0, "toy/t/c", "other")]
    (told,) = data_changes(entries, 3)
    assert told.startswith("the data of 2 rows (s) are other ones than last time (d before, new now)")


def test_networks_of_other_weights_or_threads_are_another_series() -> None:
    def row(threads: int, sha: str | None, seconds: int = 2) -> dict[str, Any]:
        hardware = {"name": "CPU", "threads": threads}
        made = {"kind": "train", "provenance": {"hardware": hardware}}
        timed = {"kind": "time", "provenance": {"hardware": {"name": "CPU", "threads": seconds}}}
        given = None if sha is None else {"file": "w.pth", "sha256": sha}
        return {
            "setting": {"scale": "clutter", "seeds": [0], "device": "cpu", "weights": given},
            "made_on": [hardware],
            "steps": {"a": made, "b": timed},
        }

    alike = history.setting_of(row(1, None))
    assert alike == "scale clutter, seeds [0], device cpu, made on CPU with 1 threads, timed on CPU with 2 threads"
    wider = row(1, None)
    wider["made_on"] = [{**wider["made_on"][0], "capability": "AVX512"}]
    in_five = {**row(1, None), "timed": {"step": {"timing": {"rounds": [12] * 5}}}}
    others = [row(2, None), row(1, "a" * 64), row(1, "b" * 64), row(1, None, 4), wider, in_five]
    assert len({alike, *map(history.setting_of, others)}) == 7
    assert history.setting_of(in_five) == f"{alike}, times of 5 processes"
    assert history.setting_of({**row(1, None), "timed": {"step": {"timing": {"clock": "wall"}}}}) == alike
    assert history.setting_of(row(1, None)) == alike


def test_a_line_that_was_cut_by_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr("os.write", lambda handle, text: write(handle, text[:-5]))
    with pytest.raises(UserError, match="no space left"):
        history.append(tmp_path, night(1, 90.0))
    monkeypatch.setattr("os.write", write)
    history.append(tmp_path, night(2, 91.0))
    assert [one.night for one in history.read(tmp_path)] == [2]
