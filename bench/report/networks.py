"""The networks that were released beside a paper's results, as a part of its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.errors import UserError
from bench.report import render


def released(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The released networks in a paper's ``folder`` with their facts.  Raises :class:`UserError` for a broken one."""
    found = []
    for path in sorted((folder / "networks").glob("*/recipe.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
            _line(path.parent, folder, facts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} does not describe a released network ({error!r}): accept its row again") from None
        found.append((path.parent, facts))
    return found


def markdown(folder: Path) -> list[str]:
    """The page's lines: what each network is, its size, its accuracy as measured, and how to repeat that."""
    found = released(folder)
    if not found:
        return []
    return [
        "## Networks",
        "",
        "The first seed's network of some rows: a recipe, weights, and the class predicted for each test image.",
        "",
        "| network | data | seed | size | top-1 as measured |",
        "| :-- | :-- | --: | --: | --: |",
        *(_line(place, folder, facts) for place, facts in found),
        "",
        "Evaluated again, and compared image by image, by:",
        "",
        "```sh",
        f"bench evaluate {folder.parent.name}/{folder.name}/networks",
        "```",
        "",
    ]


def _line(place: Path, folder: Path, facts: dict[str, Any]) -> str:
    top1 = facts["top1"]
    size = sum(path.stat().st_size for path in place.iterdir()) / 1e6
    link = quote(place.relative_to(folder).as_posix())
    name = render.markdown_text(facts["row"].partition("/")[2])
    there = f"; {top1['of']:,} published" if top1["of"] is not None else ""
    counts = f"{top1['right']:,} of {top1['n']:,} images{there}"
    measured = f"{top1['value']:.2f} % [{top1['low']:.2f}, {top1['high']:.2f}] ({counts})"
    scale = render.markdown_text(facts["setting"]["scale"])
    return f"| [{name}]({link}) | {scale} | {facts['seed']} | {size:.2f} MB | {measured} |"
