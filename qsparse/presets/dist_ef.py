"""dist-EF-SGD and its kin: two-way compression with errors kept on both sides."""

from __future__ import annotations

from qsparse.algorithm import Algorithm
from qsparse.compressors import Blockwise, Compressor, Sign
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.registry import register


@register("dist-ef-sgd", "algorithm")
def dist_ef_sgd(weight_decay: float = 0.0, compressor: Compressor = Sign()) -> Algorithm:
    """Workers push Δ_i = C(η g_i + e_i), the server answers with C(mean Δ + ẽ); both keep their errors.

    dist-EF-SGD (Zheng et al., 2019, Algorithm 2), in units of the parameters: e here is the paper's
    error times η, so its factor η_{t−1}/η_t is gone. The server's error memory is the innovation
    memory of the down link. C is the scaled sign of the whole vector unless given. Weight decay is applied by
    every rank to the model itself, and not compressed; see sgd(decoupled).
    """
    return _dist_ef(SGD(weight_decay=weight_decay, decoupled=weight_decay > 0), compressor)


@register("dist-ef-sgdm", "algorithm")
def dist_ef_sgdm(weight_decay: float = 0.0, compressor: Compressor = Sign()) -> Algorithm:
    """As dist-ef-sgd with m_i = μm_i + g_i and g_i + μm_i in place of g_i, on the workers only; μ = 0.9.

    Momentum makes of every gradient 1/(1 − μ) steps, so lr is 0.01, a tenth of that of dist-ef-sgd.
    """
    return _dist_ef(_heavy(weight_decay), compressor)


@register("dist-ef-blocksgd", "algorithm")
def dist_ef_blocksgd(
    weight_decay: float = 0.0, size: int | None = None, bucket: int | None = None
) -> Algorithm:
    """As dist-ef-sgd with (‖v_b‖₁/d_b)·sign(v_b) for each layer, block of a size, or bucket of layers.

    The authors' code takes layers for CIFAR, and for ImageNet buckets of 50 MiB, bucket=13107200.
    """
    return dist_ef_sgd(weight_decay=weight_decay, compressor=_blocks(size, bucket))


@register("dist-ef-blocksgdm", "algorithm")
def dist_ef_blocksgdm(
    weight_decay: float = 0.0, size: int | None = None, bucket: int | None = None
) -> Algorithm:
    """As dist-ef-sgdm with (‖v_b‖₁/d_b)·sign(v_b) for the blocks of dist-ef-blocksgd."""
    return dist_ef_sgdm(weight_decay=weight_decay, compressor=_blocks(size, bucket))


def _heavy(weight_decay: float) -> SGD:
    return SGD(0.01, momentum=0.9, nesterov=True, weight_decay=weight_decay, decoupled=weight_decay > 0)


def _dist_ef(local: SGD, compressor: Compressor) -> Algorithm:
    return Algorithm(local=local, up=Link(compressor, ErrorFeedback()), down=Link(compressor, Innovation()))


def _blocks(size: int | None, bucket: int | None) -> Blockwise:
    return Blockwise(Sign(), size, layers=size is None and bucket is None, bucket=bucket)
