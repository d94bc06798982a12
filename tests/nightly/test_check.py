"""A run against a baseline, on hand-made row files: accuracies paired by image, times, sizes, what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from baselines import IMAGES, PROVENANCE, bare, both, evaluation, put, ranged, row, top1

from bench.errors import UserError
from bench.nightly import baseline, makings
from bench.nightly.check import check, text
from bench.nightly.compared import Word
from bench.store import Record, Store


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


@pytest.mark.parametrize(
    ("baseline_keeps", "count", "fingerprint", "name", "why"),
    [
        (True, IMAGES, None, "a", ""),
        (False, IMAGES, None, "a", "the baseline keeps no predictions"),
        (True, IMAGES, "another", "a", "other images"),
        (True, IMAGES - 1, None, "a", "another number of images"),
        (True, IMAGES, None, "b", "other networks than the baseline's, or predictions that are gone"),
    ],
)
def test_what_is_not_compared_image_by_image_says_why(
    tmp_path: Path, baseline_keeps: bool, count: int, fingerprint: str | None, name: str, why: str
) -> None:
    """The intervals alone see less, and nobody would know."""
    labels = torch.arange(IMAGES) % 10
    path = put(tmp_path / "base", row([top1(1800)]))
    old = Store(tmp_path / "old")
    evaluation(old, labels, labels)
    if baseline_keeps:
        baseline.write(tmp_path / "base", [(path, row([top1(1800)]))], old)
    now = row([top1(1800)])
    if fingerprint is not None:
        now["setting"]["data"]["fingerprint"] = fingerprint
    if name == "a":
        evaluation(Store(tmp_path / "runs"), labels[:count], labels[:count])
    else:
        Store(tmp_path / "runs").root.joinpath("steps").mkdir(parents=True, exist_ok=True)
    put(tmp_path / "runs", now)
    (found,) = check(tmp_path / "runs", tmp_path / "base")
    assert found.unpaired == why
    said = f"1 row not compared image by image ({why}), but by the intervals" in text([found])
    assert said == bool(why)


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
    assert found.unpaired == "the run keeps no predictions"
    assert "data: clutter f before, clutter 0123456789ab now" in text([found])


@pytest.mark.parametrize(
    ("now", "half", "word"),
    [
        (1.4, 0.02, Word.WORSE),  # 30 % less
        (1.84, 0.02, Word.SAME),  # 8 %: within the 10 % that neighbours are worth
        (2.3, 0.02, Word.BETTER),
        (2.1, 0.5, Word.AMBIGUOUS),  # so wide an interval could not have seen 15 %
    ],
)
def test_speed_ups_have_a_relative_tolerance(tmp_path: Path, now: float, half: float, word: Word) -> None:
    before, after = (row([ranged(*pair, "realised_speedup", "x")]) for pair in ((2.0, 0.02), (now, half)))
    assert both(tmp_path, before, after).word is word


@pytest.mark.parametrize(("now", "word"), [(13.0, Word.AMBIGUOUS), (8.0, Word.AMBIGUOUS), (10.8, Word.SAME)])
def test_a_time_alone_is_one_of_a_machine_s_hour(tmp_path: Path, now: float, word: Word) -> None:
    found = both(tmp_path, row([ranged(10.0, 0.2)]), row([ranged(now, 0.2)]))
    assert found.word is word and not found.failed
    assert ("another hour" in text([found])) is (word is Word.AMBIGUOUS)


def test_each_clock_has_its_own_first_time(tmp_path: Path) -> None:
    """The host took half as long again, the GPU did not: by its own clock the skipped network is 30 % slower."""
    names = ("latency_dense", "latency_skipped", "latency_dense_events", "latency_skipped_events")
    before, now = (
        row([ranged(value, 0.01, name) for name, value in zip(names, values, strict=True)])
        for values in ((10.0, 4.0, 8.0, 3.0), (15.0, 6.0, 8.0, 3.9))
    )
    words = [one.word for one in both(tmp_path, before, now).compared]
    assert words == [Word.AMBIGUOUS, Word.SAME, Word.SAME, Word.WORSE]


@pytest.mark.parametrize(("ratio", "word"), [(2.5, Word.SAME), (2.4, Word.SAME), (1.9, Word.WORSE), (3.3, Word.BETTER)])
def test_where_a_row_has_ratios_of_its_times_these_are_compared(tmp_path: Path, ratio: float, word: Word) -> None:
    """Of five processes the milliseconds differ by half, and with them each time; not their ratio.  Each clock's."""
    wide = [ranged(10.0, 4.0), ranged(4.0, 1.6, "latency_skipped")]
    later = [ranged(15.0, 6.0), ranged(6.2, 2.4, "latency_skipped")]
    before = row([*wide, ranged(2.5, 0.1, "realised_speedup", "x")])
    found = both(tmp_path, before, row([*later, ranged(ratio, 0.1, "realised_speedup", "x")]))
    assert [(one.metric, one.word) for one in found.compared] == [("realised_speedup", word)]
    events = [ranged(8.0, 0.1, "latency_dense_events")]
    found = both(tmp_path / "b", row([*before["records"], *events]), row([*before["records"], *events]))
    assert [one.metric for one in found.compared] == ["realised_speedup", "latency_dense_events"]
    # a ratio that is gone is missing
    assert both(tmp_path / "c", before, row(wide)).word is Word.MISSING


@pytest.mark.parametrize(("old", "new", "word"), [(5, 5, Word.WORSE), (0, 5, Word.AMBIGUOUS), (5, 3, Word.AMBIGUOUS)])
def test_times_that_were_taken_in_another_way_are_ambiguous(tmp_path: Path, old: int, new: int, word: Word) -> None:
    """1.39x in a process that had trained, 1.17x in five fresh ones, by the same code of the networks."""
    sides = []
    for value, count in ((1.39, old), (1.17, new)):
        side = row([ranged(value, 0.05, "realised_speedup", "x")])
        rounds = {"rounds": [12] * count} if count else {}
        sides.append({**side, "timed": {"step": {"timing": {"clock": "wall", "stopped": "", "machine": {}, **rounds}}}})
    found = both(tmp_path, *sides)
    assert found.word is word
    assert (", timed in another way" in text([found])) is (word is Word.AMBIGUOUS)


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
    before = row([ranged(10.0, 0.2), ranged(4.0, 0.1, "latency_skipped")])
    found = both(tmp_path, before, row([ranged(dense, 0.2), ranged(skipped, 0.1, "latency_skipped")]))
    assert tuple(one.word for one in found.compared) == words
    assert found.failed == (Word.WORSE in words)


def test_the_share_of_a_saving_that_was_realised_is_a_time_s(tmp_path: Path) -> None:
    """In percent, and still a ratio of times: 44.6 % and 41.8 % are the same, 33.2 % is less."""
    for now, word in ((41.8, Word.SAME), (33.2, Word.WORSE)):
        before = row([ranged(44.6, 0.5, "realised_share", "%")])
        assert both(tmp_path, before, row([ranged(now, 0.5, "realised_share", "%")])).word is word


def test_the_load_of_the_machine_is_not_judged(tmp_path: Path) -> None:
    loads = [Record("machine_load", value, "").to_json() for value in (0.5, 0.9)]
    found = both(tmp_path, row([top1(1800), loads[0]]), row([top1(1800), loads[1]]))
    assert found.word is Word.SAME and [one.metric for one in found.compared] == ["top1_acc"]


def test_sizes_have_none(tmp_path: Path) -> None:
    """One parameter more is worse: what was counted has no noise."""
    size = [Record("params", value, "").to_json() for value in (853_018, 853_019)]
    assert both(tmp_path, row([size[0]]), row([size[1]])).word is Word.WORSE


@pytest.mark.parametrize(
    ("name", "unit", "before", "now", "word"),
    [
        # measured, without an interval: 2 % of the value
        ("dynamic_macs", "MACs", 1e6, 1.019e6, Word.SAME),
        ("dynamic_macs", "MACs", 1e6, 1.021e6, Word.WORSE),
        ("dynamic_speedup", "x", 2.0, 1.97, Word.SAME),
        ("dynamic_speedup", "x", 2.0, 1.9, Word.WORSE),
        ("weight_reduction", "x", 3.0, 3.1, Word.BETTER),
        ("memory_peak_batch1", "MB", 5.0, 5.05, Word.SAME),
        ("held_out_error", "%", 20.0, 20.3, Word.SAME),
        ("held_out_error", "%", 20.0, 20.5, Word.WORSE),
        ("coco_ap", "%", 30.0, 29.5, Word.SAME),
        ("coco_ap", "%", 30.0, 29.0, Word.WORSE),
        ("chosen_channels", "%", 40.0, 38.0, Word.WORSE),
        # and a tenth of a point, which is much of little: nobody can tell
        ("coco_ap_s", "%", 0.3, 0.25, Word.AMBIGUOUS),
        ("coco_ap_s", "%", 0.3, 0.1, Word.WORSE),
        # rounding's
        ("skipped_float64_difference", "", 5e-16, 8e-16, Word.SAME),
        ("skipped_float64_difference", "", 5e-16, 1e-3, Word.WORSE),
        # counted: any change is one, but for a sum in another order
        ("expected_macs", "MACs", 1282911717.468567, 1282911717.468569, Word.SAME),
        ("expected_macs", "MACs", 1282911717.468567, 1282911718.468567, Word.SAME),
        ("expected_macs", "MACs", 1282911717.0, 1282911720.0, Word.WORSE),
        ("theoretical_speedup", "x", 3.0, 3.0000000000000004, Word.SAME),
        ("speedup", "x", 2.0, 1.999999, Word.WORSE),
    ],
)
def test_what_has_no_interval(tmp_path: Path, name: str, unit: str, before: float, now: float, word: Word) -> None:
    assert both(tmp_path, row([bare(name, before, unit)]), row([bare(name, now, unit)])).word is word


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
        # measured without an interval, of one network and of three
        ("train", [0], "dynamic", Word.AMBIGUOUS),
        ("train", [0, 1, 2], "dynamic", Word.WORSE),
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
        "dynamic": ([bare("dynamic_macs", 1e6, "MACs")], [bare("dynamic_macs", 1.3e6, "MACs")]),
        "time": ([ranged(2.0, 0.01, "realised_speedup", "x")], [ranged(1.0, 0.01, "realised_speedup", "x")]),
    }
    before, now = row(records[record][0]), row(records[record][1], **where)
    for one in (before, now):
        one["setting"]["seeds"], one["steps"]["key"]["kind"] = seeds, kind
    found = both(tmp_path, before, now)
    assert found.word is word and (found.compared[0].excuse == "other hardware") is (word is Word.AMBIGUOUS)
    assert ("other hardware" in text([found])) is (word is Word.AMBIGUOUS)
    # on the same hardware each of them is worse, whatever evaluated the networks
    same = {"made_on": [PROVENANCE["hardware"]]}
    put(tmp_path / "base", {**before, **same})
    steps = before["steps"] if kind == "time" else now["steps"]
    put(tmp_path / "runs", {**now, **same, "steps": steps})
    (found,) = check(tmp_path / "runs", tmp_path / "base")
    assert found.word is Word.WORSE


def made(row_: dict[str, Any], how: str, *versions: str) -> dict[str, Any]:
    """The row with how its networks were made, and by which packages."""
    return {**row_, "made_with": {"how": how, "versions": list(versions)}}


@pytest.mark.parametrize(
    ("how", "versions", "seeds", "word"),
    [
        # another torch rounds otherwise: one network of it is another network
        ("same", ("torch 2.10.0",), [0], Word.AMBIGUOUS),
        ("same", ("torch 2.10.0",), [0, 1, 2], Word.WORSE),
        # the same packages explain nothing, and no package explains what changed code or parameters did
        ("same", ("torch 2.9.1",), [0], Word.WORSE),
        ("other", ("torch 2.9.1",), [0], Word.WORSE),
        ("other", ("torch 2.10.0",), [0], Word.WORSE),
    ],
)
def test_other_packages_make_other_networks(
    tmp_path: Path, how: str, versions: tuple[str, ...], seeds: list[int], word: Word
) -> None:
    before, now = made(row([top1(1800)]), "same", "torch 2.9.1"), made(row([top1(1700)]), how, *versions)
    for one in (before, now):
        one["setting"]["seeds"] = seeds
    found = both(tmp_path, before, now)
    assert found.word is word and (found.compared[0].excuse == "other packages") is (word is Word.AMBIGUOUS)
    named = "networks: made by other code or with other parameters" in found.differs
    assert named is (how == "other")


@pytest.mark.parametrize(
    ("before", "now", "word"),
    [
        (None, "AVX512", Word.WORSE),  # older records have the name alone
        ("AVX2", None, Word.WORSE),
        ("AVX512", "AVX512", Word.WORSE),
        ("AVX2", "AVX512", Word.AMBIGUOUS),
    ],
)
def test_processors_of_one_name_differ_in_their_instructions(
    tmp_path: Path, before: str | None, now: str | None, word: Word
) -> None:
    rows = []
    for right, capability in ((1800, before), (1700, now)):
        hardware = {**PROVENANCE["hardware"], **({} if capability is None else {"capability": capability})}
        rows.append(row([top1(right)], hardware=hardware))
    found = both(tmp_path, *rows)
    assert found.word is word
    assert any(part.startswith("device") for part in found.differs) is (word is Word.AMBIGUOUS)


def test_a_gpu_beside_them_hides_no_instructions() -> None:
    """GPUs have none to record; a processor of whose name one side recorded none is compared by name."""
    gpu, old = makings.Device("H100", 8), makings.Device("EPYC", 2)
    narrow, wide = makings.Device("EPYC", 2, "AVX2"), makings.Device("EPYC", 2, "AVX512")
    assert not makings.alike([gpu, narrow], [gpu, wide])
    assert makings.alike([gpu, narrow], [gpu, narrow]) and makings.alike([gpu, old], [gpu, wide])


def point(value: float, series: str, x: float, half: float = 0.2) -> dict[str, Any]:
    return Record("top1_err_increase", value, "pp", value - half, value + half, IMAGES, 0, x=x, series=series).to_json()


def test_points_of_curves_are_compared_by_series_and_place(tmp_path: Path) -> None:
    before = row([point(1.0, "lasso", 1.5), point(2.0, "lasso", 2.0), point(3.0, "first k", 2.0)])
    assert both(tmp_path, before, before).word is Word.SAME
    worse = row([point(1.0, "lasso", 1.5), point(9.0, "lasso", 2.0), point(3.0, "first k", 2.0)])
    found = both(tmp_path, before, worse)
    assert [one.word for one in found.compared] == [Word.SAME, Word.WORSE, Word.SAME]
    assert "lasso at 2: +2.00 before, +9.00 now" in text([found])
    gone = both(tmp_path, before, row([point(1.0, "lasso", 1.5), point(2.0, "lasso", 2.0)]))
    assert gone.word is Word.MISSING and "first k at 2: was +3.00, not measured now" in text([gone])


def test_a_metric_that_no_script_declares_any_more_is_missing(tmp_path: Path) -> None:
    records = [top1(1800), bare("once_measured", 3.0)]
    found = both(tmp_path, row(records), row(records))
    assert found.word is Word.MISSING
    assert "once_measured: was 3, and no script declares such a metric any more" in text([found])


def test_a_row_of_which_nothing_is_compared_is_not_the_same(tmp_path: Path) -> None:
    found = both(tmp_path, row([bare("machine_load", 0.5)]), row([bare("machine_load", 0.5)]))
    assert found.word is Word.AMBIGUOUS and "nothing to compare" in text([found])
    assert both(tmp_path, row([point(1.0, "lasso", 1.5)]), row([bare("machine_load", 0.5)])).word is Word.MISSING


@pytest.mark.parametrize(("lost", "word"), [(0, Word.SAME), (1, Word.SAME), (12, Word.WORSE)])
def test_an_error_is_paired_as_its_accuracy(tmp_path: Path, lost: int, word: Word) -> None:
    labels = torch.arange(IMAGES) % 10
    before = labels.clone()
    before[1800:] = (before[1800:] + 1) % 10
    now = before.clone()
    now[:lost] = (now[:lost] + 1) % 10

    def with_error(right: int) -> dict[str, Any]:
        error = 100.0 - right / 20.0
        return row([top1(right), {**ranged(error, 1.3, "top1_err", "%"), "seed": 0}])

    path = put(tmp_path / "base", with_error(1800))
    old = Store(tmp_path / "old")
    evaluation(old, before, labels)
    baseline.write(tmp_path / "base", [(path, with_error(1800))], old)
    evaluation(Store(tmp_path / "runs"), now, labels)
    put(tmp_path / "runs", with_error(1800 - lost))
    (found,) = check(tmp_path / "runs", tmp_path / "base")
    assert {one.metric: (one.word, one.changed) for one in found.compared} == {
        "top1_acc": (word, lost),
        "top1_err": (word, lost),
    }


def test_metrics_of_families_are_judged(tmp_path: Path) -> None:
    before, now = (row([ranged(value, 2.0, "ap_voc07 (3)", "%")]) for value in (60.0, 40.0))
    assert both(tmp_path, before, now).word is Word.WORSE


def test_of_several_data_sets_no_clock_says_which_counts(tmp_path: Path) -> None:
    """The row's data changed: one other set is compared, of two nobody can tell."""
    put(tmp_path / "base", row([top1(1800)]))
    for place, fingerprint in enumerate(("one", "two")):
        other = row([top1(1800)], date=f"2026-01-0{place + 1}")
        other["setting"]["data"]["fingerprint"] = fingerprint
        put(tmp_path / "runs", other)
        (found,) = check(tmp_path / "runs", tmp_path / "base")
        assert found.word is (Word.SAME, Word.MISSING)[place]
    assert "was measured on 2 other data sets" in text([found])


def test_what_is_missing_fails_and_what_differs_is_named(tmp_path: Path) -> None:
    put(tmp_path / "base", row([top1(1800)]))
    (tmp_path / "runs").mkdir()
    (found,) = check(tmp_path / "runs", tmp_path / "base")
    assert found.word is Word.MISSING and found.failed and "was not run" in text([found])
    gone = both(tmp_path, row([top1(1800), ranged(1.0, 0.01)]), row([top1(1800)]))
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


def test_a_damaged_baseline_says_how_it_is_had_again(tmp_path: Path) -> None:
    """Running the row again would mend a run, no baseline."""
    path = put(tmp_path / "base", row([top1(1800)]))
    path.write_text(path.read_text()[:200])
    with pytest.raises(UserError) as caught:
        check(tmp_path / "runs", tmp_path / "base")
    said = f"check it out again, or make the baseline anew by `bench accept --baseline {tmp_path / 'base'}`"
    assert str(path) in str(caught.value) and str(caught.value).endswith(said)
