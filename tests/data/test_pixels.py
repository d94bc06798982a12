"""Image files of every kind: the pixels are those that the file means, or the file is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from bench.data.folder import IN_BOTH, image_folder
from bench.data.images import FileSplit
from bench.data.pixels import DEEP, TRANSPARENT, TURNED, look, open_image
from bench.errors import UserError

RAMP = np.linspace(0, 255, 48 * 40).reshape(48, 40).round().astype(np.uint8)


def grey(path: Path) -> np.ndarray:
    """The red channel of an image whose three channels must be equal."""
    pixels = np.asarray(open_image(path))
    assert pixels.dtype == np.uint8 and (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_keep_their_greys(tmp_path: Path, name: str) -> None:
    """Every 16-bit grey becomes the nearest of 256 (255 / 65535 of it), also in colour and with an alpha channel."""
    deep = (RAMP.astype(np.uint16) * 257) ^ 3
    Image.fromarray(deep).save(tmp_path / name)
    np.testing.assert_array_equal(grey(tmp_path / name), np.rint(deep / 257.0))
    assert look(tmp_path / name)[1] == (DEEP,)
    cv2.imwrite(str(tmp_path / name), np.stack([deep] * 3, axis=-1))
    assert np.abs(grey(tmp_path / name).astype(int) - RAMP).max() <= 1
    assert look(tmp_path / name)[1] == (DEEP,)


def test_floats_and_32_bit_integers(tmp_path: Path) -> None:
    Image.fromarray((RAMP / 255.0).astype(np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(RAMP.astype(np.int32) * 257).save(tmp_path / "i.tif")
    for name in ("f.tif", "i.tif"):
        np.testing.assert_array_equal(grey(tmp_path / name), RAMP)


def unscaled(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "12 of 16 bits": (lambda f: unscaled(f / "a.png", RAMP.astype(np.uint16) * 16), "range is not known"),
    "8 of 16 bits": (lambda f: unscaled(f / "a.png", RAMP.astype(np.uint16)), "range is not known"),
    "floats in 0 to 255": (lambda f: unscaled(f / "a.tif", RAMP.astype(np.float32)), "floating-point"),
    "a float that is none": (lambda f: unscaled(f / "a.tif", np.full((4, 4), np.nan, np.float32)), "floating-point"),
    "negative numbers": (lambda f: unscaled(f / "a.tif", RAMP.astype(np.int32) - 9), "from -9"),
    "beyond 16 bits": (lambda f: unscaled(f / "a.tif", RAMP.astype(np.int32) * 999), "scale them"),
    "several images": (lambda f: stack(f / "a.tif"), "holds 2 images"),
    "12 of 16 bits in colour": (lambda f: colour(f / "a.png"), "range is not known"),
}


def stack(path: Path) -> Path:
    Image.fromarray(RAMP).save(path, save_all=True, append_images=[Image.fromarray(255 - RAMP)])
    return path


def colour(path: Path) -> Path:
    cv2.imwrite(str(path), np.stack([RAMP.astype(np.uint16) * 16] * 3, axis=-1))
    return path


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_certain_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    write, named = REFUSED[what]
    with pytest.raises(UserError, match=named) as caught:
        open_image(write(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_the_transparent_is_shown_on_white_and_the_opaque_is_as_it_is(tmp_path: Path) -> None:
    """v = a c + (1 - a) 255, whatever colour hides behind a transparent pixel; palettes and grey too."""
    alpha = np.broadcast_to(np.array([0, 128, 255, 255], np.uint8), (3, 4))
    rgba = np.dstack([np.full((3, 4), value, np.uint8) for value in (200, 10, 60)] + [alpha])
    Image.fromarray(rgba, "RGBA").save(tmp_path / "a.png")
    share = alpha[..., None] / 255.0
    found, done = look(tmp_path / "a.png")
    np.testing.assert_allclose(np.asarray(found), share * rgba[..., :3] + (1 - share) * 255, atol=1)
    assert done == (TRANSPARENT,)
    Image.fromarray(rgba[:, 2:], "RGBA").save(tmp_path / "opaque.png")
    found, done = look(tmp_path / "opaque.png")
    np.testing.assert_array_equal(np.asarray(found), rgba[:, 2:, :3])
    assert done == ()
    Image.fromarray(np.dstack([rgba[..., 0], alpha]), "LA").save(tmp_path / "grey.png")
    assert grey(tmp_path / "grey.png")[0].tolist() == [255, pytest.approx(227, abs=1), 200, 200]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([9, 8, 7, 50, 60, 70])
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.asarray(open_image(tmp_path / "p.png"))[0].tolist() == [[255, 255, 255], [50, 60, 70]]


def test_palettes_black_and_white_and_cmyk(tmp_path: Path) -> None:
    Image.fromarray(RAMP > 99).save(tmp_path / "1.png")
    np.testing.assert_array_equal(grey(tmp_path / "1.png"), np.where(RAMP > 99, 255, 0))
    ink = np.dstack([RAMP, RAMP * 0, RAMP * 0, RAMP * 0])
    Image.fromarray(ink, "CMYK").save(tmp_path / "c.tif")
    np.testing.assert_allclose(np.asarray(open_image(tmp_path / "c.tif"))[..., 0], 255 - RAMP, atol=1)


# the meaning of Exif's orientations: rows and columns of the upright image, from those of the stored one
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photos_are_turned_as_their_exif_data_say(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(grey(tmp_path / "a.png"), UPRIGHT[orientation](RAMP))
    assert look(tmp_path / "a.png")[1] == (() if orientation == 1 else (TURNED,))
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", exif=exif, quality=100)
    as_opencv = cv2.imread(str(tmp_path / "a.jpg"))[..., 0].astype(int)
    assert np.abs(grey(tmp_path / "a.jpg").astype(int) - as_opencv).max() <= 2


def two_classes(root: Path, size: int) -> Path:
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


@pytest.mark.parametrize("size", [32, 80])
def test_a_folder_tells_what_it_did_and_test_images_that_are_training_images(
    tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the copy is another kind of file with the same pixels."""
    root = two_classes(tmp_path, size)
    assert image_folder(root, size, "short256", progress=False).problems == {}
    assert capsys.readouterr().err == ""
    Image.open(root / "train/dog/1.png").save(root / "test/dog/1.bmp")
    Image.fromarray(np.full((50, 50), 60_000, np.uint16)).save(root / "train/cat/deep.png")
    found = image_folder(root, size, "short256", progress=False).problems
    assert found == {DEEP: 1, IN_BOTH: 1}
    notice = capsys.readouterr().err
    assert notice.count("\n") == 1 and "1 of 7 test images" in notice and "1.bmp" in notice


def test_a_broken_image_anywhere_is_named_when_the_folder_is_opened(tmp_path: Path) -> None:
    root = two_classes(tmp_path, 80)
    file = root / "test/dog/2.png"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UserError, match=r"2\.png cannot be decoded"):
        image_folder(root, 80, "short256", progress=False)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "lanczos"])
@pytest.mark.parametrize("size", [24, 70])
def test_interpolation_and_normalisation_are_those_that_were_given(
    tmp_path: Path, interpolation: str, size: int
) -> None:
    root = two_classes(tmp_path, 90)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    data = image_folder(
        root, size, "squash", progress=False, mean=mean, std=std, interpolation=interpolation, in_memory=size < 65
    )
    image = Image.open(root / "test/cat/1.png").resize((size, size), Image.Resampling[interpolation.upper()])
    expected = ((np.asarray(image) / 255.0 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(data.test.batch([1])[0].numpy(), expected, atol=1e-5)
    assert data.interpolation == interpolation


def test_stored_pixels_are_the_inputs_before_they_are_normalised(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    split = FileSplit([(tmp_path / "a.png", 0)], 32, "short256", (0.5,) * 3, (0.25,) * 3)
    pixels = split.pixels([0])
    assert pixels.dtype == torch.uint8
    torch.testing.assert_close(split.batch([0]), (pixels / 255 - 0.5) / 0.25)
