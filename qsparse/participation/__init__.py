"""Participation: importing the room registers all parts."""

from qsparse.participation.ask import Ask
from qsparse.participation.base import Everyone, Participation, ParticipationClaims
from qsparse.participation.sample import Sample

__all__ = ["Ask", "Everyone", "Participation", "ParticipationClaims", "Sample"]
