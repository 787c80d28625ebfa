"""Compressors, one operator in each file; importing this package registers all of them."""

from qsparse.compressors.base import Claims, Compressor
from qsparse.compressors.blockwise import Blockwise, BySize, Policy
from qsparse.compressors.composed import Composed, Everything, Float32, Quantizer, Selector
from qsparse.compressors.decoding import accumulate_into, decompress, subtract_from, unpack
from qsparse.compressors.floats import BFloat16, Float16
from qsparse.compressors.lowprecision import LowPrecision
from qsparse.compressors.minmax import MinMax
from qsparse.compressors.qsgd import QSGD
from qsparse.compressors.randk import RandK
from qsparse.compressors.randsparse import RandSparse
from qsparse.compressors.sign import Sign
from qsparse.compressors.ternary import Ternary
from qsparse.compressors.topk import TopK
from qsparse.compressors.uniform import Uniform

__all__ = [
    "QSGD",
    "BFloat16",
    "Blockwise",
    "BySize",
    "Claims",
    "Composed",
    "Compressor",
    "Everything",
    "Float16",
    "Float32",
    "LowPrecision",
    "MinMax",
    "Policy",
    "Quantizer",
    "RandK",
    "RandSparse",
    "Selector",
    "Sign",
    "Ternary",
    "TopK",
    "Uniform",
    "accumulate_into",
    "decompress",
    "subtract_from",
    "unpack",
]
