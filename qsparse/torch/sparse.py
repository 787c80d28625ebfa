"""Linear models of sparse examples: products that touch what is not 0, and no more."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from qsparse.data import Examples, SparseRows


class SparseBatch(NamedTuple):
    """Examples as a module that ``takes_sparse`` gets them.

    Attributes:
        rows, columns, values: of each value that is not 0, (m,), row by row.
        size: how many examples there are.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor
    size: int


def takes_sparse(model: torch.nn.Module, x: Examples) -> bool:
    """Whether examples go into the model as they are, as a `SparseBatch`.

    Raises:
        DataError: they would have to be unfolded, and are too many for that.
    """
    if not isinstance(x, SparseRows):
        return False
    if bool(getattr(model, "takes_sparse", False)):
        return True
    x.check_unfolds()
    return False


def sparse_batch(x: SparseRows, indices: np.ndarray) -> SparseBatch:
    """Some of the examples."""
    chosen = x.rows(indices)
    return SparseBatch(
        torch.from_numpy(chosen.numbers()),
        torch.from_numpy(chosen.columns.astype(np.int64)),
        torch.from_numpy(chosen.values),
        len(chosen),
    )


def linear(batch: SparseBatch, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x·Wᵀ + b, as `torch.nn.functional.linear` has it of dense examples, to rounding.

    Every sum is formed by one thread, in the order of the values, so its bits depend on nothing else; torch's
    own products of sparse matrices promise neither.

    Args:
        batch: x, (n, features).
        weight: W, (classes, features).
        bias: b, (classes,).
    """
    product: torch.Tensor = _Product.apply(weight, batch)
    return product + bias


class _Product(torch.autograd.Function):
    """x·Wᵀ, class by class: sums of numbers in a row are many times faster than those of vectors."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, batch: SparseBatch) -> torch.Tensor:
        ctx.batch, ctx.shape = batch, weight.shape
        scores = weight.new_zeros((len(weight), batch.size))
        for row, score in zip(weight, scores, strict=True):
            score.index_add_(0, batch.rows, row[batch.columns] * batch.values)
        return scores.t().contiguous()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        batch: SparseBatch = ctx.batch
        gradient = slope.new_zeros(ctx.shape)
        for row, each in zip(gradient, slope.t().contiguous(), strict=True):
            row.index_add_(0, batch.columns, each[batch.rows] * batch.values)
        return gradient, None
