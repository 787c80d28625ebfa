"""Every rank receives every payload, so each rank is its own coordinator."""

from __future__ import annotations

from dataclasses import dataclass

from qsparse.exchange.base import ExchangeClaims, Peers
from qsparse.registry import register


@register("allgather")
@dataclass(frozen=True)
class AllGather(Peers):
    """Each worker sends its payload to all others; every rank computes the same answer."""

    @property
    def claims(self) -> ExchangeClaims:
        """Every rank makes the answer."""
        return ExchangeClaims(answers=False)
