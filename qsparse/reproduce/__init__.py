"""Published experiments on real data, with as many virtual workers as the papers had.

Each module is one experiment: `qsparse.reproduce.base.Experiment` says what it must be able to do, and
``qsparse reproduce NAME`` runs it.
"""
