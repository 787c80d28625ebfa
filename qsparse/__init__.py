"""Training that sends little."""

__version__ = "0.1.0"
