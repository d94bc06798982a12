"""Whether the boxes of an image lie where its pixels are: the size that an annotation states is never just believed.

A detector sees an image as OpenCV loads it (turned as its EXIF data say).  Its boxes may have been drawn on the image
as it is stored, or on a larger or smaller copy; the stated size tells, and so do the boxes, which must lie inside the
frame that they were drawn in.  What is certain is repaired and counted, the rest is refused in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from bench.data import pixels
from bench.errors import UserError

# what was repaired, counted by image in a set's ``problems``
SCALED = "images whose boxes were scaled to them"
TURNED = "images whose boxes were turned with them (EXIF)"
MISSTATED = "images whose stated size is false"

# annotation tools round; a box this far outside its frame (pixels), or a stated size this far off, proves nothing
_ROUNDING, _ALIKE = 1.0, 2

Boxes = npt.NDArray[np.float64]
Size = tuple[int, int]


@dataclass(frozen=True)
class Claim:
    """What an annotation says of an image: its size (width, height; None: nothing), its boxes (k x 4: x1 y1 x2 y2)."""

    what: str
    image: Path
    stated: Size | None
    boxes: Boxes


@dataclass(frozen=True)
class Frame:
    """An image as it is loaded, and how to bring boxes there: scaled by ``factors`` after turning by ``orientation``.

    ``drawn`` is the size of the frame that the boxes were drawn in; ``repair`` is the kind that is counted, or "".
    """

    width: int
    height: int
    drawn: Size
    orientation: int = 1
    repair: str = ""

    @property
    def moves(self) -> bool:
        """Whether boxes are changed at all."""
        return self.repair in (SCALED, TURNED)

    def apply(self, boxes: Boxes) -> Boxes:
        """Boxes (k x 4, x1 y1 x2 y2, edges) drawn in this frame, where they lie in the loaded image."""
        if self.repair == TURNED:
            return _turned(boxes, self.drawn, self.orientation)
        if self.repair == SCALED:
            factors = np.array([self.width / self.drawn[0], self.height / self.drawn[1]])
            scaled: Boxes = boxes * np.concatenate([factors, factors])
            return scaled
        return boxes


def frames(claims: Sequence[Claim], published: bool = False, progress: bool = True) -> list[Frame]:
    """The frame of every image, in order; reads the images' headers only.

    Where an image's boxes fit what its annotation states and what it is, the other images of the set decide that
    contradict themselves in the same way.  ``published`` sets are taken as all detectors load them where nothing
    decides.  Raises :class:`UserError` naming the annotation where the boxes' place is not certain.
    """
    headers = [
        pixels.header(claim.image) for claim in tqdm(claims, "reading headers", disable=not progress, leave=False)
    ]
    doubts = [_doubt(claim, *header) for claim, header in zip(claims, headers, strict=True)]
    verdicts: dict[str, set[bool]] = {}
    for doubt in doubts:
        if doubt is not None and doubt.drawn_there is not None:
            verdicts.setdefault(doubt.kind, set()).add(doubt.drawn_there)
    found = []
    for claim, header, doubt in zip(claims, headers, doubts, strict=True):
        loaded = _loaded(*header)
        if doubt is None:
            found.append(Frame(*loaded, loaded))
            continue
        there = doubt.drawn_there
        if there is None:
            others = verdicts.get(doubt.kind, set())
            there = next(iter(others)) if len(others) == 1 else doubt.usual
            if len(others) > 1 or (there is None and published):
                there = False if published else None
        if not len(claim.boxes):
            there = False
        if there is None or (there and doubt.repair == ""):
            raise UserError(_refusal(claim, doubt, header))
        if there:
            found.append(Frame(*loaded, doubt.drawn, header[1], doubt.repair))
        else:
            found.append(Frame(*loaded, loaded, repair=MISSTATED if doubt.misstated else ""))
    return found


@dataclass(frozen=True)
class _Doubt:
    """An image whose boxes may have been drawn in another frame than the one that is loaded.

    ``drawn_there`` says what the boxes prove: True, False, or None where they fit both (or neither).  ``usual`` is what
    is taken where nothing in the set proves anything.  ``repair`` is "" where no repair is known.
    """

    kind: str
    drawn: Size
    repair: str
    drawn_there: bool | None
    usual: bool | None
    misstated: bool


def _doubt(claim: Claim, stored: Size, orientation: int) -> _Doubt | None:
    loaded = _loaded(stored, orientation)
    stated = claim.stated if claim.stated is not None and min(claim.stated) > 0 else None
    turns = orientation != 1
    if stated is None or stated == loaded:
        if not turns or (stated is not None and stored != loaded):
            return None
        # nothing is stated, or the same size before and after the turn
        return _Doubt("orientation", stored, TURNED, _proof(claim.boxes, stored, loaded), None, False)
    if turns and stated == stored:
        return _Doubt("turned", stored, TURNED, _proof(claim.boxes, stored, loaded), True, False)
    if max(abs(stated[0] - loaded[0]), abs(stated[1] - loaded[1])) <= _ALIKE:
        return _Doubt("alike", stated, "", False, False, True)
    proof = _proof(claim.boxes, stated, loaded)
    scaled = not turns and _same_shape(stated, loaded)
    return _Doubt("scaled" if scaled else "misstated", stated, SCALED if scaled else "", proof, None, True)


def _loaded(stored: Size, orientation: int) -> Size:
    return (stored[1], stored[0]) if orientation >= 5 else stored


def _same_shape(stated: Size, loaded: Size) -> bool:
    """Whether one size is the other times a factor, up to rounding to whole pixels."""
    factors = [((real - 1) / told, (real + 1) / told) for real, told in zip(loaded, stated, strict=True)]
    return max(low for low, _ in factors) <= min(high for _, high in factors)


def _proof(boxes: Boxes, drawn: Size, loaded: Size) -> bool | None:
    """Whether the boxes can only be drawn in the frame ``drawn`` (True), only in ``loaded`` (False), or neither."""
    sound = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    fits = [
        bool((sound >= -_ROUNDING).all() and (sound <= np.array([*frame, *frame]) + _ROUNDING).all())
        for frame in (drawn, loaded)
    ]
    return fits[0] if fits[0] != fits[1] else None


def _refusal(claim: Claim, doubt: _Doubt, header: tuple[Size, int]) -> str:
    loaded = _loaded(*header)
    says = "states no size" if claim.stated is None else f"states {claim.stated[0]}x{claim.stated[1]}"
    is_ = f"{claim.image} is {loaded[0]}x{loaded[1]}"
    if header[1] != 1:
        return (
            f"{claim.what} {says} and {is_} after turning by its EXIF orientation ({header[1]}), so where its boxes "
            "lie is not certain: save the image upright without EXIF data, and its boxes with it"
        )
    if doubt.drawn_there:
        return f"{claim.what} {says}, which its boxes need, but {is_}: give the image that the boxes were drawn on"
    return (
        f"{claim.what} {says} but {is_}, so where its boxes lie is not certain: correct the stated size, or the image"
    )


def _turned(boxes: Boxes, stored: Size, orientation: int) -> Boxes:
    """Boxes (k x 4) of an image as stored, in the image turned by its EXIF orientation (Exif 2.3, tag 0x0112)."""
    x1, y1, x2, y2 = boxes.T
    width, height = stored
    left, right = (width - x2, width - x1)
    above, below = (height - y2, height - y1)
    sides = {
        1: (x1, y1, x2, y2),
        2: (left, y1, right, y2),
        3: (left, above, right, below),
        4: (x1, above, x2, below),
        5: (y1, x1, y2, x2),
        6: (above, x1, below, x2),
        7: (above, left, below, right),
        8: (y1, left, y2, right),
    }[orientation]
    return np.stack(sides, axis=1)
