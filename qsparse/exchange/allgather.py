"""Every rank receives every payload, so each rank is its own coordinator."""

from __future__ import annotations

from dataclasses import dataclass

from qsparse.exchange.base import Cost, ExchangeClaims, Peers
from qsparse.registry import register


@register("allgather")
@dataclass(frozen=True)
class AllGather(Peers):
    """Each worker sends its payload to all others; every rank computes the same answer."""

    @property
    def claims(self) -> ExchangeClaims:
        """Every rank makes the answer."""
        return ExchangeClaims(answers=False)

    def cost(self, up: float, down: float, size: int) -> Cost:
        """Reports travel once, to all, and no answer does."""
        bytes_, others = (size - 1) * up, size - 1
        return Cost(
            sent=bytes_, received=bytes_, serial=bytes_, hops=1, messages=2 * others, merges=size, answers=0
        )
