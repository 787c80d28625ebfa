"""Published experiments on real data, with as many workers in one process as the papers had.

Each is a module with one `qsparse.reproduce.base.Experiment` and a command of a few lines in
``qsparse/cli/reproduce.py``: ``qsparse reproduce NAME``. The base finds the data, checks before the run
that the figure can be drawn, and writes ``NAME.json`` and ``NAME.png``.
"""
