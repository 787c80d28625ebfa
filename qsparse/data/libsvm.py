"""LIBSVM text: read fast where all of it is right, and else line by line, to say which one is wrong."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from qsparse.data.readers import read_bytes
from qsparse.data.sparse import SparseRows
from qsparse.errors import DataError
from qsparse.files import MARK

#: The largest vector that a linear model of two classes may have, in bytes: a wrong digit in an index is no
#: feature.
_MODEL_LIMIT: Final = 8 * 2**30
#: Beyond it the fast reader has no indices.
_LARGEST: Final = 2**31 - 1
_MARK: Final = MARK.encode()

_NUMBER: Final = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE)
_INDEX: Final = re.compile(rb"\+?\d+")


def read_libsvm(paths: Sequence[Path]) -> list[tuple[SparseRows, npt.NDArray[np.float64]]]:
    """Read LIBSVM text files that belong together: x ``(n, features)`` and labels as written.

    All files get the number of features of the widest. Indices count from 1, or from 0 if a 0 occurs
    in any file, and come in any order. Rows without features are kept; comments, ``qid:`` and byte order
    marks are skipped.

    Args:
        paths: plain or packed.

    Raises:
        DataError: a line is wrong, which is named: text of another format, an index that comes twice, a
            label that is not a whole number, a value that is not finite in float32, an index too large for
            any model; or there are no rows.
    """
    # Marks within, too: where files with marks were joined.
    texts = [read_bytes(path).replace(_MARK, b"") for path in paths]
    read = _fast(texts)
    if read is None:
        texts = [_ordered(path, text) for path, text in zip(paths, texts, strict=True)]
        read = _fast(texts)
    if read is None:
        raise DataError(
            f"{' with '.join(map(str, paths))} is not LIBSVM text, 'label index:value ...' a line"
        )
    files = list(zip(paths, texts, read[0::2], read[1::2], strict=True))
    for path, _, x, _ in files:
        if not x.shape[0]:
            raise DataError(f"{path} has no rows")
    features = files[0][2].shape[1]
    if (size := features * 2 * 4) > _MODEL_LIMIT:
        path, text, x, _ = max(files, key=lambda each: int(each[2].indices.max(initial=-1)))
        what = (
            f"has the largest index: a linear model of {features} features and two classes has vectors of "
            f"{size / 2**30:.0f} GiB, more than {_MODEL_LIMIT / 2**30:.0f}"
        )
        _refuse(path, text, _row_of(x, int(np.argmax(x.indices))), what)
    result = []
    for path, text, x, y in files:
        odd = np.flatnonzero(~np.isfinite(y) | (y != np.rint(y)))
        if odd.size:
            what = f"has a label {y[odd[0]]:g}: labels of classes are whole numbers"
            _refuse(path, text, int(odd[0]), what)
        with np.errstate(over="ignore"):  # becomes infinity, which is refused
            values = x.data.astype(np.float32)
        odd = np.flatnonzero(~np.isfinite(values))
        if odd.size:
            what = f"has a value {x.data[odd[0]]:g}, which is not finite, or too large for float32"
            _refuse(path, text, _row_of(x, int(odd[0])), what)
        starts, columns = x.indptr.astype(np.int64), x.indices.astype(np.int32)
        result.append((SparseRows(starts, columns, values, features), y))
    return result


def _fast(texts: Sequence[bytes]) -> list[Any] | None:
    """Sparse x and labels of each text by turns; None where one is wrong, or its indices do not ascend."""
    from sklearn.datasets import load_svmlight_files

    # Python takes 1_0 for 10; nobody who wrote such a file does.
    if any(b"_" in re.sub(rb"#[^\n]*", b"", text) for text in texts if b"_" in text):
        return None
    try:
        read: list[Any] = load_svmlight_files([io.BytesIO(text) for text in texts], dtype=np.float64)
    except (ValueError, OverflowError):
        return None
    return read


def _row_of(x: Any, entry: int) -> int:
    """The row of the sparse x that has its entry of this number."""
    return int(np.searchsorted(x.indptr, entry, side="right")) - 1


def _refuse(path: Path, text: bytes, row: int, what: str) -> NoReturn:
    """Name the line of a row."""
    rows = (number for number, line in enumerate(text.split(b"\n"), 1) if line.partition(b"#")[0].split())
    number = next(number for at, number in enumerate(rows) if at == row)
    raise DataError(f"{path}, line {number}, {what}")


def _ordered(path: Path, text: bytes) -> bytes:
    """The text with indices that ascend in every line; `DataError` names the first line that is wrong."""
    lines = []
    for number, line in enumerate(text.split(b"\n"), 1):
        words = line.partition(b"#")[0].split()
        try:
            lines.append(_in_order(words))
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}, is not 'label index:value ...' of LIBSVM text: {error}"
            ) from None
    return b"\n".join(lines)


def _in_order(words: Sequence[bytes]) -> bytes:
    """The words of a line with indices that ascend; `ValueError` says what is wrong with it."""
    if not words:
        return b""
    label, *pairs = words
    if not _NUMBER.fullmatch(label):
        first = "it begins with an index, without a label" if b":" in label else "its label"
        raise ValueError(f"{first}, {_shown(label)}" + ("" if b":" in label else ", is not one number"))
    if pairs and pairs[0].startswith(b"qid:"):
        del pairs[0]
    found: dict[int, bytes] = {}
    for pair in pairs:
        index, colon, value = pair.partition(b":")
        if not colon:
            raise ValueError(f"{_shown(pair)} has no colon")
        if not _INDEX.fullmatch(index):
            raise ValueError(f"the index in {_shown(pair)} is not a whole number of at least 0")
        # Python refuses to make numbers of thousands of digits.
        if len(index) > 4000 or int(index) > _LARGEST:
            raise ValueError(f"the index in {_shown(pair)} is larger than {_LARGEST}")
        if not value:
            raise ValueError(f"{_shown(pair)} has no value behind the colon, which no space may follow")
        if not _NUMBER.fullmatch(value):
            raise ValueError(f"the value in {_shown(pair)} is not a number, such as 1.5")
        if int(index) in found:
            raise ValueError(f"index {int(index)} comes twice")
        found[int(index)] = value
    return b" ".join([label, *(b"%d:%b" % each for each in sorted(found.items()))])


def _shown(word: bytes) -> str:
    """A word as a message has it: not a whole file without line ends."""
    text = word.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
