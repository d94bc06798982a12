"""Images that are read many times and never held as floating-point numbers: decoded once, kept with 8 bits.

A calibration passes over its images once for every layer.  Beyond a small size they lie in a temporary file, so memory
does not depend on their number.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bench.data.images import Split
from bench.store import disk_errors

# bytes of 8-bit images that stay in memory
_RESIDENT = 16_000_000


class ImageStream(Sequence[Tensor]):
    """Batches (B x 3 x H x W, float32, normalised) of the images of ``split`` at ``places``, without augmentation.

    All image files are decoded when the stream is made, by ``workers`` processes.  Raises :class:`UserError` naming a
    file that cannot be decoded.
    """

    def __init__(
        self, split: Split, places: Sequence[int], batch: int, workers: int = 0, progress: bool = False
    ) -> None:
        self.split, self.images = split, len(places)
        self.chunks = [list(places[first : first + batch]) for first in range(0, len(places), batch)]
        self._file: IO[bytes] | None = None
        self._held: list[Tensor] = []
        self._shape: tuple[int, ...] = ()
        if split.decodes:
            self._decode(split, workers, progress)

    def _decode(self, split: Split, workers: int, progress: bool) -> None:
        loader: Any = DataLoader(
            _Pixels(split),
            sampler=self.chunks,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=workers,
        )
        for pixels in tqdm(loader, "reading calibration images", disable=not progress, leave=False):
            self._shape = tuple(pixels.shape[1:])
            if self._file is None and self.images * pixels[0].numel() <= _RESIDENT:
                self._held.append(pixels)
                continue
            with disk_errors(Path(tempfile.gettempdir())):
                if self._file is None:
                    self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as this object)
                self._file.write(pixels.numpy().tobytes())

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))

    @overload
    def __getitem__(self, place: int) -> Tensor: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, place: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        if not self.split.decodes:
            return self.split.batch(self.chunks[place])
        return self.split.normalised(self._held[place] if self._file is None else self._read(place))

    def _read(self, place: int) -> Tensor:
        assert self._file is not None
        image = int(np.prod(self._shape))
        # chunks have one size but for the last
        self._file.seek(place * len(self.chunks[0]) * image)
        values = bytearray(len(self.chunks[place]) * image)
        self._file.readinto(values)  # type: ignore[attr-defined]
        return torch.frombuffer(values, dtype=torch.uint8).reshape(-1, *self._shape)


class _Pixels(Dataset[Tensor]):
    """A split's 8-bit images, indexed by lists of places."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, places: list[int]) -> Tensor:
        return self.split.pixels(places)
