"""The command of forgetting."""

from lthjax import cli

from .. import forgetting, record

if __name__ == "__main__":
    cli.run(record.command(forgetting.ANALYSIS))
