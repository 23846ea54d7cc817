"""What Numba compiles: everything from vector instructions to a whole pass.

A change of any file in this folder makes the compiled code on disk stale; see `participate`.
"""
