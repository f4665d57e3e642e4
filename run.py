"""Runs a lottery-ticket study from a checkout, as `lthjax run` does; the code is in lthjax/launch.py."""

import sys

from lthjax import command

if __name__ == "__main__":
    command.perform("run", sys.argv[1:])
