"""The committed registry files keep the schema, lose no row, and agree with themselves where arithmetic can tell."""

import csv
import re
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.registry import (
    COLUMNS,
    CONVENTIONS,
    DIRECTIONS,
    KINDS,
    UNDECIDABLE,
    OtherConvention,
    Published,
    converted,
    find,
    load,
    origins,
)

FOLDER = Path(__file__).parents[1] / "reproductions" / "registry"
# a new paper's file is checked without an edit here
COMMITTED = sorted(path.stem for path in FOLDER.glob("*.csv") if path.stem != "claims")

# Counted on the papers' own lists of numbers, not on the files here.
ROWS = {
    "channel_pruning": 226,  # 181 of the paper and its authors, 44 of re-measurements and reproductions
    "thinet": 346,  # 301 of the paper and its authors (46 of Figure 4), 45 of reproductions
    "discrimination_aware": 352,
    "fbs": 166,
    "localization_aware_ssd": 12,  # 6 known, 6 of tables that could not be read
    "versatile_filters": 54,  # 42, and 12 of the learned masks' precursor
}
UNVERIFIED = {
    "channel_pruning": 50,
    "thinet": 83,
    "discrimination_aware": 0,
    "fbs": 40,
    "localization_aware_ssd": 7,  # 1 recollection, 6 unread
    "versatile_filters": 7,
}

# By kind, counted on the tables of the papers: read, and (behind it) those of them that are verified.
# fmt: off
KIND_COUNTS = {
    "channel_pruning": {
        "accuracy": (114, 74), "size": (2, 2), "time": (11, 1), "width": (87, 87), "check": (12, 12),
    },
    "thinet": {
        "accuracy": (132, 107), "size": (88, 46), "time": (20, 4), "width": (87, 87), "check": (19, 19),
    },
    "discrimination_aware": {
        "accuracy": (152, 152), "size": (118, 118), "time": (48, 48), "width": (16, 16), "check": (18, 18),
    },
    "fbs": {
        "accuracy": (86, 51), "size": (22, 19), "trained": (14, 12), "setting": (1, 1), "check": (43, 43),
    },
    "localization_aware_ssd": {"accuracy": (1, 1), "size": (4, 4), "setting": (1, 0)},  # 6 accuracies are unread
    "versatile_filters": {"accuracy": (19, 15), "size": (19, 16), "check": (16, 16)},
}
# fmt: on

VGG16_CONV_MACS = 15_346_630_656
VGG16_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG16_LAYERS = tuple(f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), start=1) for i in range(1, n + 1))
VGG16_SIDES = (224,) * 2 + (112,) * 2 + (56,) * 3 + (28,) * 3 + (14,) * 3

GOOD = {
    "paper": "toy",
    "table": "Table 1",
    "row": "ours",
    "model": "VGG-16",
    "dataset": "ImageNet",
    "metric": "top5_acc",
    "value": "89.9",
    "unit": "%",
    "kind": "accuracy",
    "convention": "",
    "note": "of the release",
    "protocol": "1-view",
    "direction": "higher",
    "tolerance": "0.5",
    "effect": "1.2",
    "source": "paper, p. 5",
    "verified": "yes",
    "origin": "paper",
}


def write(folder: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> None:
    """Write ``rows`` as the registry file of the paper "toy"."""
    with (folder / "toy.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def vgg16_conv_macs(widths: tuple[int, ...]) -> int:
    """Multiply-adds of VGG-16's 3x3 convolutions at 224x224 with the given output widths."""
    inputs = (3, *widths[:-1])
    return sum(9 * i * o * side * side for i, o, side in zip(inputs, widths, VGG16_SIDES, strict=True))


@pytest.mark.parametrize("paper", COMMITTED)
def test_committed_files_keep_the_schema(paper: str) -> None:
    entries = load(paper, FOLDER)
    assert bool(entries) == (not paper.endswith("_study"))  # of which no paper prints anything
    assert {entry.direction for entry in entries} <= set(DIRECTIONS)
    for entry in entries:
        assert entry.paper == paper
        assert entry.table and entry.row and entry.metric
        assert (entry.value is None) == (entry.printed == "")
        # A recollection is never shown as a checked number.
        assert not (entry.verified and entry.source.startswith(("recollection", "table could not be read")))
        assert entry.source or not entry.verified


@pytest.mark.parametrize("paper", ROWS)
def test_no_row_was_lost(paper: str) -> None:
    entries = load(paper, FOLDER)
    assert len(entries) == ROWS[paper]
    assert sum(not entry.verified for entry in entries) == UNVERIFIED[paper]


@pytest.mark.parametrize("paper", COMMITTED)
def test_committed_files_are_plain_utf8_with_unix_line_ends(paper: str) -> None:
    data = (FOLDER / f"{paper}.csv").read_bytes()
    data.decode("utf-8")
    assert b"\r" not in data and data.endswith(b"\n") and not data.startswith(b"\xef\xbb\xbf")


@pytest.mark.parametrize("paper", KIND_COUNTS)
def test_kinds_are_those_counted(paper: str) -> None:
    read = [entry for entry in load(paper, FOLDER) if entry.value is not None]
    counts = {
        kind: (sum(e.kind == kind for e in read), sum(e.kind == kind and e.verified for e in read))
        for kind in dict.fromkeys(entry.kind for entry in read)
    }
    assert counts == KIND_COUNTS[paper]


# read and verified accuracies and sizes, by whose they are: the paper's, in its authors' files, others'
ORIGIN_COUNTS = {
    "channel_pruning": {"accuracy": (19, 11, 44), "size": (0, 2, 0)},
    "thinet": {"accuracy": (64, 12, 31), "size": (20, 12, 14)},
    "discrimination_aware": {"accuracy": (152, 0, 0), "size": (118, 0, 0)},
    "fbs": {"accuracy": (20, 6, 25), "size": (8, 3, 8)},
    "localization_aware_ssd": {"accuracy": (0, 0, 1), "size": (2, 0, 2)},
    "versatile_filters": {"accuracy": (0, 13, 2), "size": (0, 14, 2)},
}


@pytest.mark.parametrize("paper", ORIGIN_COUNTS)
def test_whose_values_they_are(paper: str) -> None:
    """By name: what others ran, or print of the method, is never the paper's; only the others are left uncounted."""
    entries = [entry for entry in load(paper, FOLDER) if entry.value is not None and entry.verified]
    for kind, counts in ORIGIN_COUNTS[paper].items():
        found = Counter(entry.origin for entry in entries if entry.kind == kind)
        assert tuple(found[origin] for origin in ("paper", "authors", "others")) == counts
    strangers = "rethinking", "Caffe_IncReg", "PocketFlow", "user report", "pytorch-Thinet", "reproduction", "quoted in"
    for entry in load(paper, FOLDER):
        theirs = entry.table.startswith(strangers) or entry.row.endswith("(rerun)")
        assert (entry.origin == "others") is theirs, entry
        assert entry.counted is (entry.verified and not theirs)
        assert entry.table[:5] != "Table" or entry.origin in ("paper", "ours")


def test_totals_of_the_six_papers() -> None:
    """504 accuracies (400 verified, 104 on CIFAR-10), 253 sizes (205 verified), and 108 checks that count nowhere."""
    entries = [entry for paper in ROWS for entry in load(paper, FOLDER) if entry.value is not None]
    accuracies = [entry for entry in entries if entry.kind == "accuracy"]
    sizes = [entry for entry in entries if entry.kind == "size"]
    assert (len(accuracies), sum(entry.verified for entry in accuracies)) == (504, 400)
    assert sum(entry.dataset == "CIFAR-10" for entry in accuracies) == 104
    assert (len(sizes), sum(entry.verified for entry in sizes)) == (253, 205)
    assert sum(entry.kind == "check" for entry in entries) == 108


@pytest.mark.parametrize("paper", COMMITTED)
def test_our_own_arithmetic_is_never_called_published(paper: str) -> None:
    """What was derived or computed here is a check and counted by no other name, and nothing printed is a check."""
    for entry in load(paper, FOLDER):
        ours = entry.source.startswith(("derived", "computed")) or entry.table == "computed check"
        # the abstract prints three of ThiNet-GAP's four changes
        if entry.row == "ThiNet-GAP" and entry.metric != "top1_acc_change" and "; abstract" in entry.source:
            ours = False
        assert (entry.kind == "check") is ours, entry


SIZE_WORDS = re.compile(
    r"macs|flops?\b|flops_|flop |params|parameters|memory|model_size|multiplications|speed-?up|saving|weight reduction",
    re.I,
)


@pytest.mark.parametrize("paper", COMMITTED)
def test_kinds_fit_metrics_units_and_directions(paper: str) -> None:
    for entry in load(paper, FOLDER):
        assert entry.kind in KINDS
        assert (entry.kind == "width") == (entry.unit == "channels")
        assert (entry.kind == "time") == (entry.unit in ("ms", "s") or entry.metric == "gpu_speedup")
        if entry.kind in ("size", "trained"):
            assert SIZE_WORDS.search(entry.metric) and entry.convention in CONVENTIONS
        elif entry.kind in ("accuracy", "time", "width", "setting"):
            assert entry.convention == ""
        if entry.kind == "accuracy":
            assert entry.metric in ("top-1", "top-5") or re.search(r"acc|err|mAP|AP@|gap|delta|loss", entry.metric)
            assert entry.direction in ("higher", "lower")
        elif entry.kind in ("size", "width", "setting"):
            assert entry.direction == "exact"
        if entry.undecidable is not None:
            assert entry.kind == "size"
        else:
            assert not any(reason in entry.note for reason in UNDECIDABLE)  # they stand first


@pytest.mark.parametrize("paper", COMMITTED)
def test_tolerances_follow_the_rule(paper: str) -> None:
    for entry in load(paper, FOLDER):
        if entry.kind in ("time", "trained", "width", "setting"):
            assert entry.tolerance is None
        elif entry.kind == "accuracy" and entry.unit in ("%", "pp", "points"):
            difference = re.search(r"change|gap|increase|drop|delta|loss", entry.metric)
            narrow = difference or entry.dataset.startswith(("ImageNet", "COCO", "MS COCO", "VOC"))
            assert entry.tolerance == (0.5 if narrow else 1.0)
        elif entry.kind == "size" and entry.tolerance is not None:
            assert entry.tolerance == entry.last_digit
        if entry.kind == "accuracy":
            assert entry.limit <= max(entry.tolerance or 0.0, entry.last_digit)
            if entry.effect:
                assert entry.limit <= max(entry.effect / 2.0, entry.last_digit)


# The rows that others of the same table are compared with.
# fmt: off
BASELINES = {
    "baseline", "original", "Original", "original VGG16", "original ResNet50", "dense baseline",
    "dense baseline (docs)", "eta=0%", "lambda=0 (L_M only)", "prune ratio 0 (baseline)",
}
# fmt: on
FIGURE3 = "Figure 3a (M-CifarNet, CIFAR-10)"


def baseline(entry: Published, entries: Iterable[Published]) -> Decimal | None:
    """What the table, or the note, prints for the network that ``entry`` was made from; None for nothing."""
    if match := re.search(r"baseline ([\d.]+)(?:/([\d.]+))?$", entry.note):
        return Decimal(match[2] if entry.metric == "top5_acc" else match[1])
    table, rows, model, metric = entry.table, BASELINES, entry.model, entry.metric
    if table in (FIGURE3, "Baselines of " + FIGURE3):  # one figure of the paper; the official documents are another run
        table, rows = FIGURE3, {"dense baseline (docs)" if entry.row.endswith("(docs)") else "dense baseline"}
    elif (entry.paper, table) == ("fbs", "Table 1"):
        row = {"FBS d=0.7": "FBS", "Network Slimming (their impl.) (text)": "Network Slimming (their impl.)"}
        rows, metric = {row.get(entry.row, entry.row)}, "baseline " + metric.removeprefix("accelerated ")
    elif table.startswith("Table 4 (transfer"):
        rows, model = {"VGG-16"}, "VGG-16"
    elif table == "Table 4 (LFW)":
        rows = {"SphereNet-4"}
    elif entry.row == "Train from scratch":
        model = "VGG-16"
    same = entry.row in rows and metric == entry.metric
    if same or entry.row in BASELINES or entry.row == "AlexNet":  # the baseline itself, or another network
        return None
    found = [
        e.printed
        for e in entries
        if e.table == table and e.row in rows and (e.model, e.dataset, e.metric) == (model, entry.dataset, metric)
    ]
    assert len(found) < 2
    return Decimal(found[0]) if found else None


@pytest.mark.parametrize("paper", COMMITTED)
def test_effects_are_the_distances_from_the_baselines(paper: str) -> None:
    entries = load(paper, FOLDER)
    for entry in entries:
        expected = None
        if entry.kind == "accuracy" and entry.value is not None:
            value = Decimal(entry.printed.removeprefix("~"))
            if re.search(r"change|gap|increase|drop|delta|loss", entry.metric):
                expected = abs(value)
            elif (other := baseline(entry, entries)) is not None:
                expected = abs(value - other)
        assert entry.effect == (None if expected is None else float(expected)), entry


def test_the_unread_tables_of_the_detection_paper_are_listed_empty() -> None:
    empty = [entry for entry in load("localization_aware_ssd", FOLDER) if entry.value is None]
    assert Counter((entry.dataset, entry.model) for entry in empty) == {
        ("VOC2007", "SSD-VGG16"): 2,
        ("VOC2007", "SSD-ResNet-50"): 2,
        ("COCO", "SSD-ResNet-50"): 2,
    }
    assert {(e.row, e.metric, e.source, e.verified) for e in empty} == {
        ("baseline", "mAP", "table could not be read", False),
        ("pruned", "mAP", "table could not be read", False),
    }


def test_known_numbers_arrived_in_their_columns() -> None:
    cp = load("channel_pruning", FOLDER)
    time = find(cp, "Table 3 (GPU time)", "original", "gpu_ms_per_image")
    assert time is not None and time.value == 8.144 and time.unit == "ms" and time.direction == "lower"
    assert time.note == "forward ms per image" and time.convention == "" and time.kind == "time"
    assert time.protocol == "TITAN X (Pascal), batch 32, Caffe/cuDNN (setting also from memory)"
    failed = find(cp, "user report", "slothkong, VGG-16 channel pruning only, before fine-tuning", "top1_acc")
    assert failed is not None and failed.value == 2.45 and failed.verified
    scratch = find(load("thinet", FOLDER), "rethinking: ThiNet nets", "VGG-Conv scratch-B", "top1_acc")
    assert scratch is not None and scratch.value == 71.72 and scratch.convention == ""
    assert scratch.protocol == "shorter side 256, center crop 224"
    face = find(load("discrimination_aware", FOLDER), "Table 4 (LFW)", "FaceNet", "params")
    assert face is not None and face.value == 140e6 and face.printed == "140M" and face.tolerance == 5e5


@pytest.mark.parametrize(
    ("widths_row", "check_row"),
    [
        ("VGG-16 2x (Faster R-CNN backbone)", "VGG-16 2x"),
        ("VGG-16 4x (Faster R-CNN backbone)", "VGG-16 4x"),
        ("VGG-16 5x (release)", "VGG-16 5x"),
    ],
)
def test_vgg16_widths_give_the_stated_macs_and_speed_up(widths_row: str, check_row: str) -> None:
    """The stated conv MACs and speed-ups hold for the stated widths against the dense 15,346,630,656 MACs."""
    assert vgg16_conv_macs(VGG16_WIDTHS) == VGG16_CONV_MACS
    entries = load("channel_pruning", FOLDER)
    kept = [find(entries, "widths", widths_row, f"out_channels {layer}") for layer in VGG16_LAYERS]
    macs = vgg16_conv_macs(tuple(int(entry.value or 0) for entry in kept if entry is not None))
    stated = find(entries, "computed check", check_row, "conv_MACs")
    speed_up = find(entries, "computed check", check_row, "conv_speedup")
    assert stated is not None and stated.value == pytest.approx(macs / 1e9, rel=0, abs=5e-5) and stated.unit == "GMACs"
    assert speed_up is not None and speed_up.value == pytest.approx(VGG16_CONV_MACS / macs, rel=0, abs=5e-4)


@pytest.mark.parametrize(
    ("printed", "value", "half_digit"),
    [
        ("89.9", 89.9, 0.05),
        ("2.50", 2.5, 0.005),
        ("+0.14", 0.14, 0.005),
        ("-0.58", -0.58, 0.005),
        ("174", 174.0, 0.5),
        ("~1", 1.0, 0.5),
        ("140M", 140e6, 5e5),
        ("601.04k", 601_040.0, 5.0),
        ("1.6B", 1.6e9, 5e7),
        ("3.2G", 3.2e9, 5e7),
        ("1.17e7", 11_700_000.0, 5e4),
        ("1e-08", 1e-8, 5e-9),
        ("", None, 0.0),
    ],
)
def test_printed_numbers_are_read_as_printed(
    tmp_path: Path, printed: str, value: float | None, half_digit: float
) -> None:
    write(tmp_path, GOOD | {"value": printed, "tolerance": "", "verified": "no"})
    assert load("toy", tmp_path) == [
        Published(
            paper="toy",
            table="Table 1",
            row="ours",
            model="VGG-16",
            dataset="ImageNet",
            metric="top5_acc",
            value=value,
            unit="%",
            kind="accuracy",
            convention="",
            note="of the release",
            protocol="1-view",
            direction="higher",
            tolerance=None,
            effect=1.2,
            source="paper, p. 5",
            verified=False,
            printed=printed,
        )
    ]
    assert load("toy", tmp_path)[0].last_digit == half_digit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": "high"}, "value 'high' is not a number"),
        ({"value": "nan"}, "value 'nan' is not a number"),
        ({"value": "89,9"}, "value '89,9' is not a number"),
        ({"value": "8\n9"}, r"value '8\n9' is not a number"),
        ({"tolerance": "wide"}, "tolerance 'wide' is not a number"),
        ({"tolerance": "-0.5"}, "tolerance '-0.5' is negative"),
        ({"effect": "large"}, "effect 'large' is no positive number"),
        ({"effect": "-1"}, "effect '-1' is no positive number"),
        ({"kind": "published"}, "kind 'published' is unknown"),
        ({"convention": "MACs"}, "convention 'MACs' is unknown"),
        ({"kind": "size"}, "a size without a convention"),
        ({"direction": "up"}, "direction 'up' is unknown"),
        ({"verified": "maybe"}, "verified is 'maybe'"),
        ({"verified": ""}, "verified is ''"),
        ({"origin": ""}, "origin '' is unknown"),
        ({"origin": "ours"}, "kind 'accuracy' of origin 'ours'; checks, and nothing else, are ours"),
        ({"kind": "check"}, "kind 'check' of origin 'paper'; checks, and nothing else, are ours"),
        ({"paper": "other"}, "paper 'other' is not the file's"),
        ({"row": "ours"}, "same table, row, model, dataset, metric and convention as line 2"),
    ],
)
def test_a_wrong_cell_is_told_with_file_and_line(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    write(tmp_path, GOOD, GOOD | {"row": "second"} | changes)
    with pytest.raises(UserError) as error:
        load("toy", tmp_path)
    text = str(error.value)
    line = 4 if "\n" in changes.get("value", "") else 3  # a cell over two lines ends on the next
    assert text.startswith(f"{tmp_path / 'toy.csv'}, line {line}: {message}")
    assert ";" in text and "\n" not in text  # what is wrong; what to do; in one line


@pytest.mark.parametrize("missing", COLUMNS)
def test_a_missing_column_is_told_with_file_and_line(tmp_path: Path, missing: str) -> None:
    write(tmp_path, GOOD, columns=tuple(name for name in COLUMNS if name != missing))
    with pytest.raises(UserError, match=rf"toy\.csv, line 1: column {missing} is missing; make the header paper,"):
        load("toy", tmp_path)


def test_other_headers_and_ragged_rows_are_told_with_file_and_line(tmp_path: Path) -> None:
    write(tmp_path, GOOD, columns=(*COLUMNS, "remark"))
    with pytest.raises(UserError, match=r"toy\.csv, line 1: unknown, repeated or reordered columns; "):
        load("toy", tmp_path)
    (tmp_path / "toy.csv").write_text(",".join(COLUMNS) + "\ntoy,Table 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"toy\.csv, line 2: 2 cells instead of 18; "):
        load("toy", tmp_path)
    (tmp_path / "toy.csv").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"toy\.csv, line 1: column paper, table, .* is missing; "):
        load("toy", tmp_path)


def test_an_absent_or_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"toy\.csv: no such registry file; "):
        load("toy", tmp_path)
    (tmp_path / "toy.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"toy\.csv: not UTF-8; "):
        load("toy", tmp_path)


def test_rows_that_differ_in_convention_only_are_two_entries(tmp_path: Path) -> None:
    write(tmp_path, GOOD, GOOD | {"convention": "conv"})
    entries = load("toy", tmp_path)
    assert len(entries) == 2
    assert find(entries, "Table 1", "ours", "top5_acc", convention="conv") is entries[1]


def test_find_gives_the_one_match_or_none_and_refuses_several(tmp_path: Path) -> None:
    write(tmp_path, GOOD, GOOD | {"model": "ResNet-50"}, GOOD | {"row": "baseline"})
    entries = load("toy", tmp_path)
    assert find(entries, "Table 1", "baseline", "top5_acc") is entries[2]
    assert find(entries, "Table 1", "baseline", "top1_acc") is None
    assert find(entries, "Table 1", "ours", "top5_acc", model="ResNet-50") is entries[1]
    with pytest.raises(LookupError, match="2 published values match"):
        find(entries, "Table 1", "ours", "top5_acc")


def entry(printed: str, unit: str = "M", tolerance: float | None = None, effect: float | None = None) -> Published:
    """A published value with the fields that agreement and limit read."""
    value = float(printed.removeprefix("~")) if printed else None
    return Published(
        paper="toy",
        table="Table 1",
        row="ours",
        model="VGG-16",
        dataset="ImageNet",
        metric="params",
        value=value,
        unit=unit,
        kind="size",
        convention="all",
        protocol="",
        direction="exact",
        tolerance=tolerance,
        effect=effect,
        source="",
        verified=True,
        printed=printed,
    )


@pytest.mark.parametrize(
    ("printed", "value", "agrees"),
    [
        ("16.94", 16.945, True),
        ("16.95", 16.945, True),
        ("16.96", 16.945, False),
        ("16.93", 16.945, False),
        ("8.66", 8.665, True),
        ("2.20", 2.195, True),
        ("2.19", 2.195, True),
        ("2.2", 2.195, True),
        ("2.1", 2.195, True),  # cut
        ("2.3", 2.195, False),
        ("15346630656", Fraction(15_346_630_656), True),
        ("15346630656", Fraction(15_346_630_657), False),
        ("174", Fraction(174_301_824, 10**6), True),
        ("175", Fraction(174_301_824, 10**6), False),
        ("~1", 1.99, True),
        ("~1", 2.0, True),
        ("~1", 2.01, False),
        ("~1", 0.0, True),
        ("-0.58", -0.585, True),
        ("-0.59", -0.585, True),
        ("-0.57", -0.585, False),
        ("0.29", 0.29, True),  # 0.29 / 0.01 is 28.999... in binary
    ],
)
def test_a_size_agrees_if_rounding_or_cutting_gives_what_is_printed(
    printed: str, value: float | Fraction, agrees: bool
) -> None:
    assert entry(printed).agrees(value) is agrees


@given(st.integers(0, 10**12), st.integers(0, 4))
def test_every_printed_form_of_a_number_agrees_with_it_and_its_neighbours_do_not(count: int, digits: int) -> None:
    value = Fraction(count, 10**6)
    rounded = Decimal(count).scaleb(-6).quantize(Decimal(1).scaleb(-digits))
    assert entry(format(rounded, "f")).agrees(value)
    step = Decimal(1).scaleb(-digits)
    assert not entry(format(rounded + 2 * step, "f")).agrees(value)
    if rounded >= 2 * step:
        assert not entry(format(rounded - 2 * step, "f")).agrees(value)


def test_nothing_agrees_with_a_value_that_nobody_could_read() -> None:
    with pytest.raises(ValueError, match="no published value of params"):
        entry("").agrees(1.0)


@pytest.mark.parametrize(
    ("printed", "tolerance", "effect", "limit"),
    [
        ("90.00", 1.0, None, 1.0),
        ("90.00", 1.0, 4.4, 1.0),
        ("0.31", 0.5, 0.31, 0.155),
        ("0.0", 0.5, 0.0, 0.5),  # about no difference
        ("0.01", 0.5, 0.01, 0.005),
        ("0.1", 0.5, 0.05, 0.05),  # half of the last printed digit
        ("90", 0.1, None, 0.5),
        ("90.00", None, None, 0.005),
    ],
)
def test_no_verdict_tolerates_more_than_half_of_the_effect(
    printed: str, tolerance: float | None, effect: float | None, limit: float
) -> None:
    assert entry(printed, "%", tolerance, effect).limit == pytest.approx(limit, rel=1e-12)


def test_conventions_are_converted_where_that_is_exact_and_never_mixed() -> None:
    vgg16 = Fraction(15_470_264_320)
    assert converted(vgg16, "conv+fc", "2x conv+fc") == 30_940_528_640
    assert converted(Fraction(30_940_528_640), "2x conv+fc", "conv+fc") == vgg16
    assert converted(Fraction(138_344_128), "weights", "fp32 weights") == Fraction(138_344_128 * 4, 1_048_576)
    assert converted(Fraction(9, 4), "conv+fc", "2x conv+fc", ratio=True) == Fraction(9, 4)
    assert converted(vgg16, "conv", "conv") == vgg16
    for ratio in (False, True):
        for given_, wanted in (
            ("conv", "conv+fc"),
            ("conv+fc", "conv+fc+gates"),
            ("all", "weights"),
            ("all", "unstated"),
        ):
            with pytest.raises(OtherConvention, match=rf"other convention: {re.escape(given_)} cannot be converted"):
                converted(vgg16, given_, wanted, ratio=ratio)
    with pytest.raises(OtherConvention):
        converted(vgg16, "unstated", "unstated")
    with pytest.raises(ValueError, match="unknown convention"):
        converted(vgg16, "flops", "conv")


def test_weight_files_have_an_origin_by_their_digest(tmp_path: Path) -> None:
    """The released ResNet-56 by the digest that its name begins with; every origin by a whole one."""
    found = origins(FOLDER)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) and origin for digest, origin in found.items())
    (released,) = [origin for digest, origin in found.items() if digest.startswith("4bfd9763")]
    assert "akamaster/pytorch_resnet_cifar10" in released
    assert origins(tmp_path) == {}


def test_the_registry_of_the_tests_own_papers_follows_the_schema() -> None:
    """Only processes of slow tests read it."""
    assert load("toy", Path(__file__).parent / "toy" / "reproductions" / "registry") == []
