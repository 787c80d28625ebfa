"""Local steps: importing the room registers them all."""

from qsparse.local.adamw import AdamW
from qsparse.local.base import Local, LocalClaims, Oracle
from qsparse.local.gradient import Gradient
from qsparse.local.lasg import LASG
from qsparse.local.sgd import SGD
from qsparse.local.shared import Stretches
from qsparse.local.svrg import SVRG

__all__ = ["LASG", "SGD", "SVRG", "AdamW", "Gradient", "Local", "LocalClaims", "Oracle", "Stretches"]
