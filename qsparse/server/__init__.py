"""Server rules: importing the room registers them all."""

from qsparse.server.base import ServerClaims, ServerRule
from qsparse.server.descend import Descend
from qsparse.server.hold import Hold
from qsparse.server.majority import Majority
from qsparse.server.variance_reduced import Accelerated, ProxSVRG, VarianceReduced

__all__ = [
    "Accelerated",
    "Descend",
    "Hold",
    "Majority",
    "ProxSVRG",
    "ServerClaims",
    "ServerRule",
    "VarianceReduced",
]
