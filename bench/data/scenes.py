"""The embedded detection scale: real scans of digits on textured backgrounds, drawn once and kept in the user's cache.

A scene holds 1 to 5 of scikit-learn's 8x8 scans, enlarged to 17 to 80 pixels at several aspect ratios, light or dark,
among lines, blobs and noise.  A few objects are ``difficult``: tiny, faint, or more than half hidden.  The scenes are
written as a VOC devkit (``voc/``) and in COCO's layout (``coco/``), and read like anybody's data.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from bench.data import digits
from bench.data.annotations import DetectionSet
from bench.data.voc import voc_folder
from bench.errors import UserError
from bench.store import digest, file_digest

SIDE, TRAIN, TEST, SEED = 160, 400, 200, 0
CLASSES = tuple("0123456789")
_LONG_SIDE = (17, 80)
_TINY_SIDE = (9, 13)
_SHARES = {"plain": 0.88, "tiny": 0.04, "faint": 0.04, "hidden": 0.04}
_MAX_IOU, _MAX_COVER = 0.15, 0.3  # of two boxes: their IoU, and what of the smaller one the other may cover
_INK = 0.3  # opacity from which a pixel belongs to a digit

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Object:
    """A digit in a scene: its label, kind, and box (left, top, width, height: whole pixels)."""

    label: int
    kind: str
    left: int
    top: int
    width: int
    height: int


def scenes_detection(size: int, progress: bool = True) -> DetectionSet:
    """The scenes for a network with input side ``size``: 400 training and 200 test images of 160x160, 10 classes.

    No scan is in both splits.  Raises :class:`UserError` where the cache cannot be written or was damaged.
    """
    folder = _cached(progress)
    try:
        found = voc_folder(folder / "voc", size, "scenes", progress=progress)
    except UserError as error:
        raise UserError(f"the cached scenes are damaged: remove {folder} and run again ({error})") from error
    return replace(found, protocol=f"{SIDE}x{SIDE} scenes, {size}x{size}")


def _cached(progress: bool) -> Path:
    """The scenes' folder in the cache, drawn now where it is absent; several processes may do so at once."""
    parameters = {
        "side": SIDE,
        "train": TRAIN,
        "test": TEST,
        "seed": SEED,
        "source": file_digest(Path(__file__)),
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "scans": file_digest(Path(digits.__file__)),
    }
    # the XDG specification: an empty value counts as none
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pruning-bench"
    folder = cache / f"scenes-{digest(parameters)[:16]}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".scenes-", dir=cache))
        try:
            write_scenes(temporary, SEED, progress=progress)
            temporary.chmod(0o755)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, and wrote the same
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot write the scenes to {cache} ({error.strerror}): free space, or set XDG_CACHE_HOME to a folder "
            "that can be written"
        ) from error
    return folder


def write_scenes(
    folder: Path, seed: int, train: int = TRAIN, test: int = TEST, side: int = SIDE, progress: bool = True
) -> None:
    """Draws the scenes into ``folder``: ``voc/`` (a devkit) and ``coco/`` (JSON and images), the same bytes each time.

    The boxes are the same whole pixels in both: a box of ``width`` pixels from ``left`` is xmin = left + 1, xmax = left
    + width in VOC (counted from 1, both inside), and x = left with that width in COCO.
    """
    from sklearn.datasets import load_digits  # a second and more, which most commands have no use for

    scans = load_digits()
    order = torch.randperm(len(scans.target), generator=torch.Generator().manual_seed(digits.SPLIT_SEED)).numpy()
    parts = {"trainval": (order[: digits.TRAIN], train), "test": (order[digits.TRAIN :], test)}
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / "voc" / name).mkdir(parents=True)
    (folder / "coco" / "annotations").mkdir(parents=True)
    first = 1
    for number, (part, (chosen, count)) in enumerate(parts.items()):
        images, labels = scans.images[chosen], scans.target[chosen]
        generator = np.random.default_rng([seed, number])
        coco_part = "train" if part == "trainval" else "val"
        (folder / "coco" / coco_part).mkdir()
        scenes: dict[str, list[_Object]] = {}
        for place in tqdm(range(first, first + count), f"drawing scenes ({part})", disable=not progress, leave=False):
            pixels, objects = _scene(generator, images, labels, side)
            stem = f"{place:06}"
            scenes[stem] = objects
            jpeg = _jpeg(pixels)
            (folder / "voc" / "JPEGImages" / f"{stem}.jpg").write_bytes(jpeg)
            (folder / "coco" / coco_part / f"{stem}.jpg").write_bytes(jpeg)
            (folder / "voc" / "Annotations" / f"{stem}.xml").write_text(_voc_xml(stem, objects, side))
        (folder / "voc" / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{stem}\n" for stem in scenes))
        listed = folder / "coco" / "annotations" / f"instances_{coco_part}.json"
        listed.write_text(json.dumps(_coco_json(scenes, side)))
        first += count


def _scene(
    generator: np.random.Generator, scans: Array, labels: npt.NDArray[np.int64], side: int
) -> tuple[Array, list[_Object]]:
    """One image (side x side x 3, 0..255) and its objects; the first is never difficult."""
    canvas = _background(generator, side)
    _clutter(generator, canvas)
    objects: list[_Object] = []
    for place in range(generator.integers(1, 6)):
        kind = "plain" if place == 0 else str(generator.choice(list(_SHARES), p=list(_SHARES.values())))
        scan = int(generator.integers(len(scans)))
        opacity = _glyph(generator, scans[scan], kind)
        height, width = opacity.shape
        for _ in range(50):  # a crowded scene stays as it is
            left, top = (int(generator.integers(side - length + 1)) for length in (width, height))
            found = _Object(int(labels[scan]), kind, left, top, width, height)
            if not any(_crowded(found, other) for other in objects):
                objects.append(found)
                _paint(generator, canvas, found, opacity)
                break
    canvas += generator.normal(0.0, generator.uniform(2.0, 10.0), canvas.shape)
    return canvas.clip(0, 255), objects


def _background(generator: np.random.Generator, side: int) -> Array:
    """A colour with a texture of smooth noise at three scales (side x side x 3, 0..255)."""
    canvas = np.zeros((side, side, 3)) + generator.uniform(70, 185) + generator.uniform(-25, 25, 3)
    for cells, strength in ((3, 22.0), (10, 12.0), (40, 8.0)):
        tint = generator.uniform(0.6, 1.0, 3)
        canvas += _enlarge(generator.normal(0.0, strength, (cells, cells)), side, side)[:, :, None] * tint
    return canvas


def _clutter(generator: np.random.Generator, canvas: Array) -> None:
    """Draws lines and soft blobs of random colours into ``canvas``; none looks like a digit for long."""
    side = len(canvas)
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    for _ in range(generator.integers(0, 4)):
        y, x = generator.uniform(0, side, 2)
        tall, wide = generator.uniform(4, 22, 2)
        opacity = 0.7 / (1 + np.exp(4 * (((rows - y) / tall) ** 2 + ((columns - x) / wide) ** 2 - 1).clip(-9, 9)))
        canvas += opacity[:, :, None] * (generator.uniform(30, 225, 3) - canvas)
    for _ in range(generator.integers(2, 8)):
        # drawn at four times the size: an anti-aliased line
        mask = Image.new("L", (4 * side, 4 * side))
        ends = [int(end) for end in generator.integers(0, 4 * side, 4)]
        ImageDraw.Draw(mask).line(ends, fill=255, width=int(generator.integers(4, 13)))
        opacity = np.asarray(mask.reduce(4), dtype=np.float64) / 255 * generator.uniform(0.5, 0.9)
        canvas += opacity[:, :, None] * (generator.uniform(30, 225, 3) - canvas)


def _glyph(generator: np.random.Generator, scan: Array, kind: str) -> Array:
    """The opacity (0..1) of an enlarged scan (8 x 8, 0..16), cut to its ink, at a drawn size and aspect ratio."""
    fine = _enlarge(scan, 128, 128) / 16
    fine = ((fine - 0.35) / 0.35).clip(0, 1)  # strokes with an edge instead of a blur
    rows, columns = np.flatnonzero((fine > _INK).any(axis=1)), np.flatnonzero((fine > _INK).any(axis=0))
    fine = fine[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    shortest, longest = _TINY_SIDE if kind == "tiny" else _LONG_SIDE
    long = round(float(np.exp(generator.uniform(np.log(shortest), np.log(longest)))))
    aspect = fine.shape[1] / fine.shape[0] * np.exp(generator.uniform(np.log(0.7), np.log(1.4)))
    aspect = float(np.clip(aspect, 0.35, 1 / 0.35))
    width, height = (long, round(long / aspect)) if aspect > 1 else (round(long * aspect), long)
    return _enlarge(fine, width, height)


def _paint(generator: np.random.Generator, canvas: Array, found: _Object, opacity: Array) -> None:
    """Paints a digit lighter or darker than what is behind it, and over a ``hidden`` one a patch."""
    area = canvas[found.top : found.top + found.height, found.left : found.left + found.width]
    behind = area.mean(axis=(0, 1))
    grey = float(behind.mean())
    contrast = generator.uniform(14, 22) if found.kind == "faint" else generator.uniform(60, 110)
    # the way that has room for the contrast, either where both have
    signs = [sign for sign in (-1, 1) if 5 <= grey + sign * contrast <= 250] or [-1 if grey > 127 else 1]
    colour = behind + int(generator.choice(signs)) * contrast + generator.uniform(-8, 8, 3)
    area += opacity[:, :, None] * (colour - area)
    if found.kind == "hidden":
        share = generator.uniform(0.5, 0.65)
        patch = (
            area[: round(share * found.height)] if generator.random() < 0.5 else area[:, : round(share * found.width)]
        )
        patch[:] = generator.uniform(40, 215, 3) + generator.normal(0.0, 8.0, patch.shape)


def _crowded(one: _Object, other: _Object) -> bool:
    wide = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
    tall = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
    both = max(wide, 0) * max(tall, 0)
    areas = (one.width * one.height, other.width * other.height)
    return both > _MAX_IOU * (sum(areas) - both) or both > _MAX_COVER * min(areas)


def _enlarge(values: Array, width: int, height: int) -> Array:
    image = Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float64)


def _jpeg(pixels: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def _voc_xml(stem: str, objects: list[_Object], side: int) -> str:
    root = ElementTree.Element("annotation")
    _add(root, {"folder": "scenes", "filename": f"{stem}.jpg"})
    _add(ElementTree.SubElement(root, "size"), {"width": side, "height": side, "depth": 3})
    _add(root, {"segmented": 0})
    for found in objects:
        element = ElementTree.SubElement(root, "object")
        difficult = int(found.kind != "plain")
        _add(element, {"name": CLASSES[found.label], "pose": "Unspecified", "truncated": 0, "difficult": difficult})
        right, bottom = found.left + found.width, found.top + found.height
        box = {"xmin": found.left + 1, "ymin": found.top + 1, "xmax": right, "ymax": bottom}
        _add(ElementTree.SubElement(element, "bndbox"), box)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(element: ElementTree.Element, values: dict[str, Any]) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(element, tag).text = str(value)


def _coco_json(scenes: dict[str, list[_Object]], side: int) -> dict[str, Any]:
    images = [{"id": int(stem), "file_name": f"{stem}.jpg", "width": side, "height": side} for stem in scenes]
    entries = [
        {
            "image_id": int(stem),
            "category_id": found.label + 1,
            "bbox": [found.left, found.top, found.width, found.height],
            "area": found.width * found.height,
            "iscrowd": int(found.kind != "plain"),
        }
        for stem, objects in scenes.items()
        for found in objects
    ]
    return {
        "images": images,
        "annotations": [{"id": number, **entry} for number, entry in enumerate(entries, 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
    }
