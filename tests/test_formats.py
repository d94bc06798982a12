"""The committed tables in their four formats: one cell of each paper traced, and LaTeX that compiles."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "results"
TABLES = sorted(ROOT.glob("*/tables/*/*.tex"))
COMPILERS = ("tectonic", "pdflatex")

# paper: row file, metric, table, row, its printed digits, what the paper printed (None: nothing, or it is not shown)
CELLS = {
    "channel_pruning": (
        *("cifar10/table-8--resnet-56-dense--*", "top1_acc", "cifar10 (given weights ????????)/Table_8*"),
        *("ResNet-56 dense", 2, "92.8"),
    ),
    "discrimination_aware": (
        *("clutter/table-1--resnet-56-dcp--*", "top1_change", "clutter/Table_1*", "ResNet-56, DCP", 2, None),
    ),
    "fine_tuning_study": (
        *("cifar10/what-brings-a-pruned-network-back--rate-0.03--*", "held_out_change", "cifar10/What_brings*"),
        *("rate 0.03", 2, None),
    ),
    "fbs": ("digits/figure-3a--fbs-at-d-0.5--*", "top1_change_control", "digits/Figure_3a*", "FBS at d=0.5", 2, None),
    "gating_study": (
        *(
            "cifar10/what-the-choice-for-each-image-is-worth--d-0.3-sal*",
            "top1_difference",
            "cifar10*/What_the_choice*",
        ),
        *("d=0.3: saliencies for each image, of the same channels", 2, None),
    ),
    "localization_aware_ssd": (
        *("scenes/criteria-at-equal-widths--lcp--*", "map_voc07_change", "scenes/Criteria*", "LCP", 2, None),
    ),
    "selection_study": (
        *("cifar10/resnet-56-at-2x--lasso-uniform--*", "kl", "cifar10/ResNet-56_at_2x*", "LASSO, uniform", 3, None),
    ),
    "thinet": ("imagenet/table-3--thinet-50.json", "top1_acc", "imagenet/Table_3*", "ThiNet-50", 2, "71.01"),
    "versatile_filters": (
        *("clutter/spatial-filters-and-narrowed-networks--spatial--*", "top1_change", "clutter/Spatial*"),
        *("spatial", 2, None),
    ),
}


def only(folder: Path, pattern: str) -> Path:
    (found,) = sorted(folder.glob(pattern))
    return found


def test_a_cell_of_every_paper_is_traced() -> None:
    assert set(CELLS) == {path.parent.name for path in ROOT.glob("*/rows")}


@pytest.mark.parametrize("paper", CELLS)
def test_a_cell_is_the_same_in_the_row_file_and_in_every_format(paper: str) -> None:
    """The record is the CSV's value to the last digit; text is rounded from it; the published value is in all."""
    row_file, metric, table, row, digits, printed = CELLS[paper]
    measured = json.loads(only(ROOT / paper / "rows", row_file).read_text())
    found = [record for record in measured["records"] if record["metric"] == metric]
    over = [record for record in found if record.get("seed") is None] or found  # over all seeds, else the only one
    with only(ROOT / paper / "tables", f"{table}.csv").open() as file:
        (line,) = [line for line in csv.DictReader(file) if (line["row"], line["metric"]) == (row, metric)]
    shown = []
    if over:
        (record,) = over
        assert [float(line[name]) for name in ("value", "low", "high")] == [record[n] for n in ("value", "low", "high")]
        shown = [f"{abs(record[name]):.{digits}f}" for name in ("value", "low", "high")]
    else:
        assert line["status"] == measured["status"] and line["status"].startswith("not run") and line["value"] == ""
    if printed is not None:
        assert line["published"] == printed
        shown.append(printed)
    assert shown
    # behind the name may stand over how many seeds the row is
    begins = {"md": (f"| {row} |", f"| {row} ["), "tex": (f"{row} &", f"{row} {{[}}")}
    for ending, begin in {**begins, "html": (f"<tr><td>{html.escape(row)}</td>",)}.items():
        text = only(ROOT / paper / "tables", f"{table}.{ending}").read_text()
        (first, *_) = [one for one in text.splitlines() if one.removeprefix(r"\raggedright ").startswith(begin)]
        assert all(number in first for number in shown), (ending, first, shown)
        if over:  # the interval belongs to its value
            value, low, high = shown[:3]
            assert re.search(rf"{value}\D{{1,20}}\[}}?[^\d]*{low}, [^\d]*{high}{{?\]", first), (ending, first)


def cells(line: str) -> list[str]:
    """The cells of a tabular's line: split at ampersands that are not escaped."""
    return re.split(r"(?<!\\)&", line.removesuffix(r"\\"))


def problems(text: str) -> list[str]:
    """What would keep a table from compiling with booktabs alone, found without TeX."""
    found = []
    open_: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_.append(name)
        elif not open_ or open_.pop() != name:
            found.append(f"\\end{{{name}}} without its beginning")
    found += [f"\\begin{{{name}}} without its end" for name in open_]
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)  # what is escaped is text
    if bare.count("{") != bare.count("}"):
        found.append("braces do not match")
    if bare.count("$") % 2:
        found.append("a dollar too many")
    found += [
        f"{character!r} is not escaped" for character in "%#_^~" if character in re.sub(r"\$\^\\d?dagger\$", "", bare)
    ]
    # a cell of several lines is a tabular of its own
    flat = re.sub(
        r"\\begin\{tabular\}\[t\]\{@\{\}r@\{\}\}(.*?)\\end\{tabular\}", lambda m: m[1].replace(r"\\", " "), text
    )
    spec = re.search(r"\\begin\{tabular\}\{((?:[lcr]|p\{\w+\})+)\}(.*?)\\end\{tabular\}", flat, re.S)
    if spec is None:
        return [*found, "no tabular"]
    columns = len(re.sub(r"p\{\w+\}", "p", spec[1]))
    for line in spec[2].replace(r" \addlinespace[2pt]", "").strip().splitlines():
        if line in (r"\toprule", r"\midrule", r"\bottomrule"):
            continue
        if not line.endswith(r"\\"):
            found.append(f"no end of the line: {line}")
        elif len(cells(line)) != columns:
            found.append(f"{len(cells(line))} cells in {columns} columns: {line}")
    known = set(re.findall(r"\\([A-Za-z]+)", text))
    allowed = {"begin", "end", "toprule", "midrule", "bottomrule", "par", "smallskip", "footnotesize", "noindent"}
    allowed |= {"scriptsize", "tiny", "setlength", "tabcolsep", "raggedright", "sloppy", "addlinespace"}
    allowed |= {"textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "ldots"}
    allowed |= {"dagger", "ddagger", "pm", "times", "leq", "geq", "Delta", "lambda", "epsilon", "to"}
    found += [f"unknown command \\{name}" for name in sorted(known - allowed)]
    found += [f"{character!r} needs another font" for character in sorted(set(text)) if ord(character) > 0x17F]
    return found


def test_the_committed_latex_is_sound() -> None:
    assert len(TABLES) > 40
    assert {
        path.relative_to(ROOT).as_posix(): problems(path.read_text()) for path in TABLES if problems(path.read_text())
    } == {}


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (r"\begin{tabular}{lr} a & b \\", "without its end"),
        ("\\begin{tabular}{lr}\na & 5 % \\\\\n\\end{tabular}", "'%' is not escaped"),
        ("\\begin{tabular}{lr}\na & b & c \\\\\n\\end{tabular}", "3 cells in 2 columns"),
        ("\\begin{tabular}{lr}\na \\& b & c_1 \\\\\n\\end{tabular}", "'_' is not escaped"),
        ("\\begin{tabular}{lr}\n{a & c \\\\\n\\end{tabular}", "braces"),
        ("\\begin{tabular}{lr}\na & \\what{} \\\\\n\\end{tabular}", "unknown command"),
        ("\\begin{tabular}{lr}\na & \u2192 \\\\\n\\end{tabular}", "another font"),
    ],
)
def test_the_check_finds_what_is_broken(broken: str, problem: str) -> None:
    assert any(problem in found for found in problems(broken))


@pytest.mark.slow
def test_the_committed_latex_compiles_and_fits_a_page(tmp_path: Path) -> None:
    """All tables in one document, with booktabs alone, none wider than 6.5 inches (two columns' width) and a hair."""
    compiler = next((name for name in COMPILERS if shutil.which(name)), None)
    if compiler is None:
        pytest.skip(f"no TeX here: none of {', '.join(COMPILERS)}")
    head = "\\documentclass{article}\n\\usepackage[utf8]{inputenc}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n"
    head += "\\textwidth=6.5in\n\\parindent=0pt\n"
    body = "\n\\clearpage\n".join("{" + path.read_text() + "}" for path in TABLES)
    document = tmp_path / "tables.tex"
    document.write_text(f"{head}\\begin{{document}}\n{body}\n\\end{{document}}\n")
    options = ["-interaction=nonstopmode", "-halt-on-error"] if compiler == "pdflatex" else []
    done = subprocess.run(
        [compiler, *options, document.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 10_000
    if compiler == "pdflatex":  # the other one does not print these
        wide = [float(points) for points in re.findall(r"Overfull \\hbox \((\S+)pt too wide\)", done.stdout)]
        assert max(wide, default=0.0) < 10.0
