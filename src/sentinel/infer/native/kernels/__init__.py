"""What Numba compiles: everything from vector instructions to a whole pass.

Only `cpu`, `layout` and `names` are imported to run a model; the rest is read when it is compiled. A change of any file
in this folder makes compiled code on disk stale.
"""
