"""Benchmarks against a plain PyTorch loop, as ratios. Needs the extras `lab` and `bench`.

Unless a module says otherwise, a figure is the median of interleaved pairs (ours, peer, peer, ours, ...) in
one process on one machine, so that a slow machine slows both sides; `spread` is the range of the pairs'
ratios.
"""
