"""Pictures in files of their own, of any size, which are decoded when they are taken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from qsparse.errors import DataError, installing
from qsparse.seeds import Seed

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = npt.NDArray[np.float32]
#: A part of a picture: its left, upper, right and lower edge, in pixels.
Box = tuple[float, float, float, float]

#: The names that files of pictures end with.
ENDINGS: Final = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
#: What `Dataset.describe` reads as a whole.
_SAMPLED: Final = 16
#: How often a part of a picture is drawn before the middle is taken.
_TRIES: Final = 10
#: The parts that may be drawn: of this share of the picture at least, and of which widths by heights.
_LEAST: Final = 0.08
_ASPECT: Final = math.log(4 / 3)


class PictureFiles:
    """An array of float32, (N, 3, size, size), of which only the names of the files are kept.

    A picture is scaled so that its shorter side is 8/7 of the size (256 for 224), and its middle is cut out.
    What is taken with a seed is another part of it each time: see `take`. Bytes are looked up in a table.

    Args:
        folder: where the files lie.
        names: of the files, below the folder.
        table: (3, 256), float32: what each byte stands for.
        size: of a picture that is taken, in pixels, both ways.
    """

    dtype = np.dtype(np.float32)
    ndim = 4

    def __init__(self, folder: Path, names: Sequence[str], table: Floats, size: int) -> None:
        self.folder, self.names, self.table, self._size = folder, names, table, size
        self.shape = (len(names), 3, size, size)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """How many values there are."""
        return math.prod(self.shape)

    def __getitem__(self, which: Any) -> Floats:
        """Some of the pictures, by index or slice of the first axis."""
        chosen = np.arange(len(self))[which]
        if chosen.ndim != 1:
            raise DataError("pictures are taken by a slice or by an array of indices of the first axis")
        return self.take(chosen, np.empty((len(chosen), *self.shape[1:]), np.float32))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All of them, decoded."""
        if copy is False:
            raise ValueError("pictures are decoded, which cannot be done without a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def take(self, indices: npt.NDArray[Any], out: Floats, seed: Seed | None = None) -> Floats:
        """Those at ``indices``, (n,), into ``out``, (n, 3, size, size).

        Args:
            indices: of the pictures.
            out: where they go.
            seed: of this batch: of each picture a part of 8 to 100 % of its area, 3:4 to 4:3, is scaled to
                the size and mirrored or not (Szegedy et al., 2015). None: its middle, as it is.

        Raises:
            DataError: a file cannot be read, or holds no picture; it is named.
        """
        words: npt.NDArray[np.uint64] | None = None
        if seed is not None:
            drawn = np.asarray(seed.generator().bit_generator.random_raw(len(indices) * (1 + 4 * _TRIES)))
            words = drawn.reshape(len(indices), -1)
        for place, index in enumerate(indices):
            raw = self._decoded(int(index), None if words is None else words[place])
            for channel, values in enumerate(self.table):
                out[place, channel] = values[raw[:, :, channel]]
        return out

    def samples(self) -> Iterator[npt.NDArray[Any]]:
        """What tells whether two ranks have the same pictures: all names, and the bytes of a few files."""
        yield np.frombuffer("\0".join(self.names).encode("utf-8", "surrogateescape"), np.uint8)
        for index in range(0, len(self), max(1, len(self) // _SAMPLED)):
            path = self.folder / self.names[index]
            try:
                yield np.frombuffer(path.read_bytes(), np.uint8)
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error}") from error

    def _decoded(self, index: int, words: npt.NDArray[np.uint64] | None) -> npt.NDArray[np.uint8]:
        """The bytes of a picture, (size, size, 3)."""
        image = opened(self.folder / self.names[index])
        from PIL.Image import Resampling, Transpose

        box = (
            _middle(image.width, image.height) if words is None else _drawn(image.width, image.height, words)
        )
        part = image.resize((self._size, self._size), Resampling.BILINEAR, box)
        if words is not None and words[-1] >> 63:
            part = part.transpose(Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(part)


def opened(path: Path) -> Image:
    """The picture in a file, with three colours.

    Raises:
        DataError: the file cannot be read, or holds no picture.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DataError(f"pictures are decoded by Pillow, which is missing: {installing('train')}") from error
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise DataError(f"{path} is no picture that can be read: {type(error).__name__}: {error}") from error


def _middle(width: int, height: int) -> Box:
    """The square of 7/8 of the shorter side: what is left where 224 x 224 pixels are cut out of 256 x 256."""
    side = min(width, height) * 7 / 8
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def _drawn(width: int, height: int, words: npt.NDArray[np.uint64]) -> Box:
    """A part of a picture by chance; where none of the parts that are drawn fits in, the middle as it is."""
    shares = (words >> np.uint64(11)).astype(np.float64) / 2**53
    for area, aspect, right, down in shares[:-1].reshape(-1, 4).tolist():
        pixels = width * height * (_LEAST + (1 - _LEAST) * area)
        ratio = math.exp(_ASPECT * (2 * aspect - 1))
        wide, high = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, upper = int(right * (width - wide + 1)), int(down * (height - high + 1))
            return left, upper, left + wide, upper + high
    return _middle(width, height)
