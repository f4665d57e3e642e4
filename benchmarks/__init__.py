"""Side by side with a plain PyTorch loop, as ratios. Needs the extra `bench`.

Every figure is the median of interleaved pairs (ours, peer, ours, peer, ...) in one process on one
machine, so that what slows the machine slows both; `spread` is the range of the pairs' ratios.
"""
