"""One page for each paper and an index over all, in Markdown, with the files that they link to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench import claims, registry
from bench.latency import page as latency
from bench.report import coverage as covering
from bench.report import coverage_figure, figures, findings, leaderboard_page, networks, printed_sizes, render, training
from bench.report.coverage import EMPTY, Coverage
from bench.report.glossary import meanings
from bench.report.load import Declared, Line, read
from bench.report.readable import DAGGER, DOUBLE_DAGGER
from bench.report.tables import Table, build_all
from bench.store import disk_errors, write_text

_FORMATS = {"md": render.markdown, "csv": render.csv_text, "tex": render.latex, "html": render.html_page}
# verdicts on verified published values, on claims, and what has none
_OUTCOMES = (
    *("exact", "wrong", "reproduced", "better", "not reproduced", "inconclusive"),
    *("holds", "does not hold", "undecided", "analogue", "not run"),
)
_CALLED = {"md": "Markdown", "csv": "every value (csv)", "tex": "LaTeX", "html": "all metrics (html)"}
_OWN, _NOT_RUN = "Measured", "Not run"
_ANALOGUES = "Analogues: on other data than the paper's, without verdicts"
_COVERAGE = "coverage.png"
# so many rows that are missing are named
_NAMED = 6
_GENERATED = "This page is generated from the row files; edits are overwritten."


@dataclass(frozen=True)
class About:
    """What a page says of its paper: title, reference, the deviations from it, which the page numbers, and its rows.

    ``answers`` are the tables and names of the rows that answer its question, where no printed value does; a
    ``study`` of ours has no paper to deviate from.
    """

    title: str
    reference: str
    deviations: list[str]
    rows: Mapping[str, Declared] = field(default_factory=dict)
    answers: Sequence[tuple[str, str]] = ()
    study: bool = False


def write(
    root: Path, registry_folder: Path, papers: Mapping[str, About], coverages: Mapping[str, Coverage] | None = None
) -> list[Path]:
    """Writes the page of each of ``papers`` that has rows or decided sizes, its tables and figures, and the index.

    The index opens with the ``coverages`` of the registries.  They go to ``<root>/<paper>/README.md``, its folders
    ``tables`` and ``figures``, and ``<root>/README.md``.  Files of earlier tables in these folders are removed.
    Returns the files written.  Raises :class:`UserError` for unreadable rows, wrong links, and a full disk.
    """
    found = read(root, registry_folder, {paper: about.rows for paper, about in papers.items()})
    written: list[Path] = []
    statements = {name: claim.statement for name, claim in claims.by_id(registry_folder).items()}
    for paper in papers:
        coverage = (coverages or {}).get(paper, EMPTY)
        if paper in found or coverage.decided("size"):
            published = registry.load(paper, registry_folder)
            tables = build_all(found.get(paper, []), published)
            told = statements, registry.origins(registry_folder)
            files = _paper(root / paper, papers[paper], tables, published, coverage, *told)
            _remove_stale(root / paper, set(files))
            written += files
    if coverages:
        short = {name: name.replace("_", " ") for name in coverages}
        written += coverage_figure.draw(coverages, short, root / _COVERAGE)
    short = {name: name.replace("_", " ") for name in papers}
    files, same = leaderboard_page.write(root, found, short)
    _remove_stale(root / leaderboard_page.FOLDER, set(files))
    written += [*files, *latency.write(root)]
    index = root / "README.md"
    write_text(index, _index(papers, found, coverages or {}, [*same, *latency.link(root)]))
    return [*written, index]


def _remove_stale(folder: Path, current: set[Path]) -> None:
    """Tables and figures that no row gives any more would be taken for results."""
    for kind, endings in (("tables", tuple(_FORMATS)), ("figures", ("png", "svg", "csv"))):
        for ending in endings:
            for path in [*(folder / kind).glob(f"*/*.{ending}"), *folder.glob(f"*.{ending}")]:
                if path not in current:
                    with disk_errors(path):
                        path.unlink()


def _paper(
    folder: Path,
    about: About,
    tables: Sequence[Table],
    published: Sequence[registry.Published],
    coverage: Coverage,
    statements: Mapping[str, str],
    origins: Mapping[str, str],
) -> list[Path]:
    """Writes all files of one paper, whose claims have these ``statements``; ``origins`` are weight files'."""
    files: list[Path] = []
    drawn: set[str] = set()
    lines = [line for table in tables for line in table.lines]
    text = [f"# {about.title}", "", about.reference, "", _GENERATED, ""]
    text += [
        "## Findings",
        "",
        *(f"{n}. {said}" for n, said in enumerate(_findings(lines, coverage, about), start=1)),
        "",
    ]
    for heading, here in (
        (_OWN, [table for table in tables if table.ran and not table.analogue]),
        (_ANALOGUES, [table for table in tables if table.ran and table.analogue]),
        (_NOT_RUN, [table for table in tables if not table.ran]),
    ):
        if here:
            text += [f"## {heading}", ""]
        for table in here:
            trainings = training.told(table.lines)
            new, drawn = bool(trainings - drawn), drawn | trainings
            text += _section(folder, table, unmeasured(table, lines, about.rows, statements), files, new)
    begun = {table.name for table in tables}
    absent = dict.fromkeys(row.table for row in about.rows.values() if row.table not in begun and row.missing is None)
    if absent:
        text += ["No row of these tables has been run yet: " + "; ".join(map(render.markdown_text, absent)) + ".", ""]
    sized, of_sizes = printed_sizes.section(folder, about.rows, published, coverage)
    text += [*sized, *networks.markdown(folder)]
    files += of_sizes
    if about.deviations:
        text += ["## How it was done" if about.study else "## Deviations from the paper", ""]
        text += [f"{number}. {deviation}" for number, deviation in enumerate(about.deviations, start=1)]
        text.append("")
    text += _commands(tables)
    for scale in dict.fromkeys(table.scale for table in tables):
        text += _provenance(scale, [line for line in lines if line.scale == scale], origins)
    used = {name for line in lines for name in line.cells}
    used |= {point.cell.metric for line in lines for point in line.points}
    if used:
        text += ["## Metrics", "", *(f"- {meaning}" for meaning in meanings(used)), ""]
    page = folder / "README.md"
    write_text(page, "\n".join(text).rstrip("\n") + "\n")
    return [*files, page]


def _findings(lines: Sequence[Line], coverage: Coverage, about: About) -> list[str]:
    return findings.sentences(lines, coverage.decided("size"), about.answers)


def unmeasured(table: Table, lines: Sequence[Line], rows: Mapping[str, Declared], statements: Mapping[str, str]) -> str:
    """Which rows of the table have no row file at its scale, in no setting, though they can run: a run was stopped.

    Claims go by their ``statements``.
    """
    setting = table.lines[0].setting
    scale, folder = setting.get("scale", table.scale), bool(setting.get("folder"))
    there = {line.id for line in lines if line.setting.get("scale") == scale}
    able = {name: row for name, row in rows.items() if row.table == table.name and row.meant_for(scale, folder)}
    if table.name == claims.TABLE:  # a claim about other data is not missing here
        able = {name: row for name, row in able.items() if row.scale == scale}
    left = [render.markdown_text(statements.get(row.name, row.name)) for name, row in able.items() if name not in there]
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    return f"Not measured here yet, {len(left)} of {len(able)} rows: {'; '.join(left[:_NAMED])}{more}." if left else ""


def _section(folder: Path, table: Table, left: str, files: list[Path], trainings: bool) -> list[str]:
    """One table's part of the page; its files are written and added to ``files``.

    Without ``trainings`` those behind the table have been drawn above.
    """
    links = []
    for ending, give in _FORMATS.items():
        path = folder / "tables" / table.scale / f"{table.slug}.{ending}"
        write_text(path, give(table))
        files.append(path)
        links.append(f"[{_CALLED[ending]}]({_link(path, folder)})")
    text = [f"### {table.title}", "", render.markdown_table(table)]
    text += [left, ""] if left else []
    drawn, said = figures.draw(table, folder / "figures" / table.scale, trainings)
    files += drawn
    text += [line for note in said for line in (note, "")]
    for path in drawn:
        if path.suffix == ".png":  # a click gives the same without pixels
            picture = f"![{table.name}, {table.scale}]({_link(path, folder)})"
            text += [f"[{picture}]({_link(path.with_suffix('.svg'), folder)})", ""]
        elif path.suffix == ".csv":
            links.append(f"[points of the curves]({_link(path, folder)})")
    notes = render.markdown_notes(table)
    return [*text, *([notes] if notes else []), f"Files: {', '.join(links)}", ""]


def _commands(tables: Sequence[Table]) -> list[str]:
    """What measures the tables again."""
    commands = dict.fromkeys(line.table_command for table in tables for line in table.lines if line.ran)
    if not commands:
        return []
    text = ["## Commands", "", "```sh", *commands, "```", ""]
    if any("--networks" in command for command in commands):
        text += [
            "`--networks FOLDER` measures here what another machine trained: run the same rows there first, with "
            "`--out FOLDER` and the device that its part below names, and bring the folder here.",
            "",
        ]
    return text


def _link(path: Path, folder: Path) -> str:
    return quote(path.relative_to(folder).as_posix())


def _provenance(scale: str, lines: Sequence[Line], origins: Mapping[str, str]) -> list[str]:
    """What made the lines' numbers: data, hardware, versions, code, dates; empty where nothing ran."""
    sources = [step["provenance"] for line in lines for step in line.steps.values()]
    if not sources:
        return []
    data = [source["data"] for source in sources if source["data"] is not None]
    dates = sorted({source["date"][:10] for source in sources})
    versions: dict[str, set[str]] = {}
    for source in sources:
        for name, version in source["versions"].items():
            versions.setdefault(name, set()).add(version)
    given = [line.setting["weights"] for line in lines if line.setting.get("weights")]
    facts = {
        "Weights": (
            f"{one['file']} (SHA-256 {str(one['sha256'])[:12]}...)"
            + (f": {origins[one['sha256']]}" if one["sha256"] in origins else "")
            for one in given
        ),
        "Data": (f"{d['name']} (fingerprint {d['fingerprint'][:12]}, {d['protocol']}{_problems(d)})" for d in data),
        "Hardware": (_machine(source["hardware"]) for source in sources),
        "Versions": [", ".join(f"{name} {' / '.join(sorted(found))}" for name, found in versions.items())],
        "Code": (source["code"] or "unknown commit" for source in sources),
        "Date": [dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"],
    }
    texts = {name: "; ".join(dict.fromkeys(values)) for name, values in facts.items()}
    return [
        f"## How the numbers on {scale} were made",
        "",
        *(f"- {name}: {text}" for name, text in texts.items() if text),
        "",
    ]


def _problems(data: Mapping[str, Any]) -> str:
    """How many boxes of a detection set were clipped or dropped, or images not taken as they are, and why."""
    kinds = data.get("problems", {})
    found = {kind: count for kind, count in kinds.items() if count}
    what = "boxes clipped or dropped" if "zero area" in kinds else "images not taken as they are"
    return f"; {what}: {', '.join(f'{n} {kind}' for kind, n in found.items())}" if found else ""


def _machine(hardware: Mapping[str, Any]) -> str:
    return f"{hardware['name']} ({hardware['device']}), {hardware['threads']} threads, {hardware['system']}"


def _index(
    papers: Mapping[str, About],
    found: Mapping[str, Sequence[Line]],
    coverages: Mapping[str, Coverage],
    same: Sequence[str],
) -> str:
    """How much of what was published is decided, the findings, what stands on pages of its own (``same``), what ran."""
    counts = {
        (paper, scale): _count(line for line in found[paper] if line.scale == scale)
        for paper in papers
        for scale in sorted({line.scale for line in found.get(paper, [])})
    }
    present = [word for word in _OUTCOMES if any(count[word] for count in counts.values())]
    text = ["# Results", "", _GENERATED, ""]
    if coverages:
        titles = {name: render.markdown_text(about.title) for name, about in papers.items()}
        picture = f"[![Values decided, by paper]({_COVERAGE})]({Path(_COVERAGE).with_suffix('.svg')})"
        text += ["## What of the published values is decided", "", picture, ""]
        text += [*covering.markdown(coverages, titles), ""]
    paged = [paper for paper in papers if paper in found or coverages.get(paper, EMPTY).decided("size")]
    text += ["## Findings", ""] if paged else []
    for paper in paged:
        text.append(f"- [{render.markdown_text(papers[paper].title)}]({quote(paper)}/README.md)")
        said = _findings(found.get(paper, []), coverages.get(paper, EMPTY), papers[paper])
        text += [*(f"    - {sentence}" for sentence in said), ""]
    text += same
    if counts:
        text += ["## What ran", ""]
        head = ["paper", "scale", "rows", *present]
        text += ["| " + " | ".join(head) + " |", "| :-- | :-- |" + " --: |" * (len(head) - 2)]
        for (paper, scale), count in counts.items():
            title = render.markdown_text(papers[paper].title)
            numbers = (str(count[word] or "") for word in present)
            row = [f"[{title}]({quote(paper)}/README.md)", scale, str(count["rows"]), *numbers]
            text.append("| " + " | ".join(row) + " |")
        text += [
            "",
            "Verdicts are counted by published value and by claim; rows that neither belongs to have none. An analogue "
            "ran on other data than the paper's: its published value is quoted and not compared. Values and claims "
            f"marked {DAGGER} on the pages were not checked against the publication, and values marked {DOUBLE_DAGGER} "
            "are reported by others than the paper's authors: their verdicts stand in brackets and are not counted, "
            "nor are checks of our own arithmetic.",
            "",
        ]
    absent = [papers[paper].title for paper in papers if paper not in found]
    if absent:
        text += ["No rows yet:", "", *(f"- {title}" for title in absent), ""]
    return "\n".join(text).rstrip("\n") + "\n"


def _count(lines: Iterable[Line]) -> Counter[str]:
    """How often each outcome occurs, with ``rows`` for the lines.

    Verdicts on unverified values and claims, and our own checks, are counted as none of them.
    """
    counted: Counter[str] = Counter()
    for line in lines:
        counted["rows"] += 1
        if not line.ran:
            counted["not run"] += 1
        elif line.analogue:
            counted["analogue"] += 1
        else:
            found = [line.decision] if line.decision is not None else list(line.verdicts.values())
            counted.update(one.word for one in found if one.verified)
    return counted
