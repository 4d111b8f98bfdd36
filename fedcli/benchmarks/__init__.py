"""Benchmarks: the speed of this machine on reproducible jobs, beside its limits and other programs.

The command passes in the clock. Only `torch_peer` reads one itself, to choose a memory layout.
"""
