"""Numba kernels: arrays in, ``out`` arrays in, integers and floats out.

The only room that imports numba. Rules that all kernels keep:

* indices are signed 64-bit; sums are float64 in a fixed order, so that every rank, thread count and
  machine gets the same bits, with the JIT on and off;
* ``fastmath`` is off: NaN and infinity must be seen, and no operation may be reordered;
* input is checked by the caller, so kernels do not raise.
"""
