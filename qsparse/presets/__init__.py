"""Published algorithms as rows of the design space.

Each is a function of a few lines that picks parts; its docstring states the update in the paper's
symbols. ``qsparse list algorithms`` prints them, ``build("name(setting=value)", "algorithm")``
makes one. Importing the room registers them all.
"""

from qsparse.presets import classic, dist_ef, double, lazy, qsparse_local

__all__ = ["classic", "dist_ef", "double", "lazy", "qsparse_local"]
