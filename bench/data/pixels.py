"""Pixels of image files: whatever a file holds becomes 8-bit RGB, upright, or is refused in one line that says why.

Decided on purpose, because each of these changes what a network sees: 16-bit values are scaled to 8 bits,
floating-point values must lie between 0 and 1, what is transparent is shown on white, EXIF orientation is applied,
several images in one file are refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from bench.errors import UserError

# what was done to an image that is not plain 8-bit RGB or grey, as counted in a data set's ``problems``
DEEP, TRANSPARENT, TURNED = "scaled to 8 bits", "transparent, shown on white", "turned by EXIF"

_ORIENTATION = 0x0112
_PHOTOMETRIC = 262
# a 16-bit image without a value from here on may hold 8-, 10-, 12- or 14-bit values that nobody has scaled
_LEAST_PEAK = 1 << 14


def open_image(path: Path) -> Image.Image:
    """The decoded 8-bit RGB image, upright.  Raises :class:`UserError` naming a file that is missing or unusable."""
    return look(path)[0]


def look(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    """The decoded 8-bit RGB image, upright, and what was done to it (of ``DEEP``, ``TRANSPARENT``, ``TURNED``)."""
    try:
        with Image.open(path) as image:
            # colours of 16 bits are read by their high byte; looked at first, because reading EXIF data empties the
            # tiles
            deep = any(";16" in str(tile[3]) for tile in image.tile)
            _check_single(image, path)
            done = []
            if orientation(image) != 1:
                done.append(TURNED)
            white_is_zero = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
            image.load()
            upright = ImageOps.exif_transpose(image)
            assert upright is not None
            if upright.mode.startswith("I") or upright.mode == "F":
                upright = Image.fromarray(_eight_bits(np.asarray(upright), upright.mode, white_is_zero, path))
                done.append(DEEP)
            elif deep and upright.mode in ("RGB", "RGBA"):
                high = max(band[1] for band in upright.convert("RGB").getextrema())  # type: ignore[index]
                _check_peak(256 * high, path)  # type: ignore[operator]
                done.append(DEEP)
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                if rgba.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
                    done.append(TRANSPARENT)
                    rgba = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
                upright = rgba
            return upright.convert("RGB"), tuple(done)
    except FileNotFoundError as error:
        raise UserError(f"image {path} is missing: put it back or remove it from the list") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"image {path} is too large ({error}): make it smaller") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"image {path} cannot be decoded ({error}): replace or remove the file") from error


def header(path: Path) -> tuple[tuple[int, int], int]:
    """Width and height as stored, and the EXIF orientation (1 to 8; 1: upright), without decoding the pixels.

    Raises :class:`UserError` naming a file that is missing, no image, or of a kind that OpenCV (mmdet's reader) does
    not show right: more than 8 bits, transparency, EXIF orientation outside JPEG.
    """
    try:
        with Image.open(path) as image:
            deep = image.mode[0] in "IF" or any(";16" in str(tile[3]) for tile in image.tile)
            if deep:
                raise UserError(f"image {path} has more than 8 bits a channel, which OpenCV cuts: save it with 8 bits")
            if image.has_transparency_data and _least_alpha(image) < 255:
                raise UserError(f"image {path} is transparent in places, which OpenCV ignores: save it without")
            turns = orientation(image)
            if turns != 1 and image.format not in ("JPEG", "MPO"):
                raise UserError(f"image {path} is to be turned by its EXIF data: save it upright, or as JPEG")
            return image.size, turns
    except FileNotFoundError as error:
        raise UserError(f"image {path} is missing: put it back or remove it from the list") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"image {path} cannot be decoded ({error}): replace or remove the file") from error


def _least_alpha(image: Image.Image) -> float:
    """Of the pixels' opacities (0 to 255) the least."""
    least, _ = image.convert("RGBA").getchannel("A").getextrema()
    assert isinstance(least, int | float)
    return least


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or a number without a meaning."""
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _check_single(image: Image.Image, path: Path) -> None:
    """Refuses stacks and animations; a camera's MPO file holds further views of the same picture behind the first."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise UserError(f"image {path} holds {frames} images: save the one that is meant as a file of its own")


def _eight_bits(values: npt.NDArray[np.generic], mode: str, white_is_zero: bool, path: Path) -> npt.NDArray[np.uint8]:
    """Grey values (H x W) of 16 bits or floating point as 8 bits; refused where their range is not certain."""
    if mode == "F":
        grey = values.astype(np.float64)
        low, high = float(grey.min()), float(grey.max())
        if not (low >= 0.0 and high <= 1.0):  # also where a value is not a number
            raise UserError(
                f"image {path} has floating-point values from {low:g} to {high:g}: scale them to 0 ... 1 or save 8 bits"
            )
    else:
        whole = values.astype(np.int64)
        low, high = int(whole.min()), int(whole.max())
        if low < 0 or high > 65535:
            raise UserError(f"image {path} has values from {low} to {high}: scale them to 16 bits or save 8 bits")
        _check_peak(high, path)
        grey = whole / 65535.0
    return np.rint(255.0 * (1.0 - grey if white_is_zero else grey)).astype(np.uint8)


def _check_peak(high: int, path: Path) -> None:
    if 0 < high < _LEAST_PEAK:
        raise UserError(
            f"image {path} has 16 bits but no value above about {high}, so its range is not known: scale it to "
            "0 ... 65535 or save 8 bits"
        )
