"""The version: on the ground floor, so that whoever writes it into a file need not pass the front door."""

__version__ = "0.1.0"
