"""`python -m lthjax` is the command `lthjax`."""

from lthjax import command

if __name__ == "__main__":
    command.main()
