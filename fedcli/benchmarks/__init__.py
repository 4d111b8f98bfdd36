"""Benchmarks: the speed of this machine on reproducible jobs, beside its limits and other programs.

No module here reads a clock; the command passes one in.
"""
