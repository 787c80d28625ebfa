"""How fast qsparse is on this machine, compared with other programs: ``qsparse bench``.

`kernels` measures compressors on one rank. The other benches start their ranks themselves, as real processes
under ``mpiexec``, through shared memory or over links of a limited rate. Methods take turns in one run, so
that other work of the machine affects all of them alike.
"""
