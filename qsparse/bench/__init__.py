"""How fast it is: measurements that print what they compare with.

`kernels` measures compressors on one rank.
"""
