"""lthjax: a laboratory for the Lottery Ticket Hypothesis in JAX.

`from lthjax import prune` is the pruning library; `lthjax.study` runs whole studies.
"""

__version__ = "0.1.0"
