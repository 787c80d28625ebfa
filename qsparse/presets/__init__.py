"""Published algorithms as rows of the design space.

Each is a function of a few lines that picks parts; its docstring states the update in the paper's
symbols. ``qsparse list algorithms`` prints them, ``build("name(setting=value)", "algorithm")``
makes one. Importing the room registers them all.
"""

from qsparse.presets.classic import (
    ef_signsgd,
    local_sgd,
    qsgd,
    sgd,
    signtopk_sgd,
    signum_majority,
    terngrad,
    topk_sgd,
)
from qsparse.presets.dist_ef import dist_ef_blocksgd, dist_ef_blocksgdm, dist_ef_sgd, dist_ef_sgdm
from qsparse.presets.double import acc_asyfpg, acc_asylpg, asyfpg, asylpg, qsvrg, sparse_asylpg
from qsparse.presets.lazy import gd, lag_ps, lag_wk, laq, lasg_wk1, lasg_wk2, qgd, slaq
from qsparse.presets.qsparse_local import (
    qsparse_local_sgd,
    qsparse_local_sgd_2way,
    qsparse_local_sgd_async,
)

__all__ = [
    "acc_asyfpg",
    "acc_asylpg",
    "asyfpg",
    "asylpg",
    "dist_ef_blocksgd",
    "dist_ef_blocksgdm",
    "dist_ef_sgd",
    "dist_ef_sgdm",
    "ef_signsgd",
    "gd",
    "lag_ps",
    "lag_wk",
    "laq",
    "lasg_wk1",
    "lasg_wk2",
    "local_sgd",
    "qgd",
    "qsgd",
    "qsparse_local_sgd",
    "qsparse_local_sgd_2way",
    "qsparse_local_sgd_async",
    "qsvrg",
    "sgd",
    "signtopk_sgd",
    "signum_majority",
    "slaq",
    "sparse_asylpg",
    "terngrad",
    "topk_sgd",
]
