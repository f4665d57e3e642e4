"""The command of forgetting."""

from lthjax import cli

from .. import forgetting, record

main = record.command(forgetting.ANALYSIS)

if __name__ == "__main__":
    cli.run(main)
