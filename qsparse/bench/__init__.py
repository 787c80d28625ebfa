"""What exchanges cost on this machine, measured beside what others do: ``qsparse bench``.

A bench starts its ranks itself, as real processes under ``mpiexec``, through shared memory or over links of
a limited rate. Methods take turns in one run, so that whatever else the machine does falls on all alike.
"""
