"""How fast it is on this machine, beside what others do: ``qsparse bench``.

`kernels` measures compressors on one rank. The other benches start their ranks themselves, as real processes
under ``mpiexec``, through shared memory or over links of a limited rate. Methods take turns in one run, so
that whatever else the machine does falls on all alike.
"""
