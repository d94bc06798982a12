"""The committed registry files keep the schema, lose no row, and agree with themselves where arithmetic can tell."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.registry import COLUMNS, DIRECTIONS, Published, find, load

FOLDER = Path(__file__).parents[1] / "reproductions" / "registry"
COMMITTED = sorted(path.stem for path in FOLDER.glob("*.csv"))  # a new paper's file is checked without an edit here

# Counted on the papers' own lists of numbers, not on the files here.
ROWS = {
    "channel_pruning": 226,  # 181 of the paper and its authors, 44 of re-measurements and reproductions
    "thinet": 300,  # 255 of the paper and its authors, 45 of reproductions
    "discrimination_aware": 352,
    "fbs": 166,
    "localization_aware_ssd": 12,  # 6 known, 6 of tables that could not be read
    "versatile_filters": 54,  # 42, and 12 of the learned masks' precursor
}
UNVERIFIED = {
    "channel_pruning": 50,
    "thinet": 82,
    "discrimination_aware": 0,
    "fbs": 41,
    "localization_aware_ssd": 7,  # 1 recollection, 6 unread
    "versatile_filters": 7,
}

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
    "convention": "",
    "protocol": "1-view",
    "direction": "higher",
    "tolerance": "0.5",
    "source": "paper, p. 5",
    "verified": "yes",
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
    assert entries
    assert {entry.direction for entry in entries} <= set(DIRECTIONS)
    for entry in entries:
        assert entry.paper == paper
        assert entry.table and entry.row and entry.metric
        assert (entry.value is None) == (entry.printed == "")
        # A recollection is never shown as a checked number.
        assert not (entry.verified and entry.source.startswith(("recollection", "table could not be read")))


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


@pytest.mark.parametrize("paper", COMMITTED)
def test_tolerances_follow_the_rule(paper: str) -> None:
    for entry in load(paper, FOLDER):
        if entry.unit in ("ms", "s"):
            assert entry.tolerance is None and entry.direction == "lower"
        elif entry.unit in ("%", "pp", "points") and entry.direction != "exact":
            wide = not entry.dataset.startswith(("ImageNet", "COCO", "MS COCO", "VOC"))
            assert entry.tolerance == (1.0 if wide else 0.5)
        elif entry.unit == "channels":
            assert entry.tolerance is None and entry.direction == "exact" and entry.printed.isdigit()
        elif entry.direction == "exact" and entry.tolerance is not None:
            assert entry.tolerance == entry.last_digit


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
    assert time.convention == "forward ms per image"
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
            convention="",
            protocol="1-view",
            direction="higher",
            tolerance=None,
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
        ({"direction": "up"}, "direction 'up' is unknown"),
        ({"verified": "maybe"}, "verified is 'maybe'"),
        ({"verified": ""}, "verified is ''"),
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
    write(tmp_path, GOOD, columns=(*COLUMNS, "note"))
    with pytest.raises(UserError, match=r"toy\.csv, line 1: unknown, repeated or reordered columns; "):
        load("toy", tmp_path)
    (tmp_path / "toy.csv").write_text(",".join(COLUMNS) + "\ntoy,Table 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"toy\.csv, line 2: 2 cells instead of 14; "):
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
    write(tmp_path, GOOD, GOOD | {"convention": "conv only"})
    entries = load("toy", tmp_path)
    assert len(entries) == 2
    assert find(entries, "Table 1", "ours", "top5_acc", convention="conv only") is entries[1]


def test_find_gives_the_one_match_or_none_and_refuses_several(tmp_path: Path) -> None:
    write(tmp_path, GOOD, GOOD | {"model": "ResNet-50"}, GOOD | {"row": "baseline"})
    entries = load("toy", tmp_path)
    assert find(entries, "Table 1", "baseline", "top5_acc") is entries[2]
    assert find(entries, "Table 1", "baseline", "top1_acc") is None
    assert find(entries, "Table 1", "ours", "top5_acc", model="ResNet-50") is entries[1]
    with pytest.raises(LookupError, match="2 published values match"):
        find(entries, "Table 1", "ours", "top5_acc")
