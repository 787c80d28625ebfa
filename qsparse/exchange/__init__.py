"""Exchanges; importing this package registers all of them."""

from qsparse.exchange.allgather import AllGather
from qsparse.exchange.base import Exchange, ExchangeClaims, Stretch
from qsparse.exchange.nodes import Nodes
from qsparse.exchange.parameter_server import ParameterServer
from qsparse.exchange.sharded import Sharded
from qsparse.exchange.tree import TreeBroadcast

__all__ = [
    "AllGather",
    "Exchange",
    "ExchangeClaims",
    "Nodes",
    "ParameterServer",
    "Sharded",
    "Stretch",
    "TreeBroadcast",
]
