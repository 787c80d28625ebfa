"""Data sets as NumPy arrays, their shards and their batches; nothing here needs torch.

>>> from qsparse.seeds import Seed
>>> digits = load("digits")
>>> digits.describe()
'digits: 1437 + 360 examples of (1, 8, 8), 10 classes, crc32 1a9132f1'
>>> mine = shard(digits.train_y, ranks=4, how="random", seed=Seed(7))[1]
>>> Batches(mine, 32, Seed(7, rank=1, use="batch")).batch(0).shape
(32,)
"""

from qsparse.data.base import Sharding, Source
from qsparse.data.dataset import Dataset
from qsparse.data.download import search_path
from qsparse.data.imagefolder import ImageFolder
from qsparse.data.images import Examples, Pictures
from qsparse.data.libsvm_sets import Libsvm
from qsparse.data.photos import PictureFiles
from qsparse.data.shards import Batches, shard
from qsparse.data.sources import load
from qsparse.data.sparse import SparseRows

__all__ = [
    "Batches",
    "Dataset",
    "Examples",
    "ImageFolder",
    "Libsvm",
    "PictureFiles",
    "Pictures",
    "Sharding",
    "Source",
    "SparseRows",
    "load",
    "search_path",
    "shard",
]
