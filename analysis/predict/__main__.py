"""The command of `analysis.predict`."""

from lthjax import cli

from .. import predict, record

main = record.command(predict.ANALYSIS)

if __name__ == "__main__":
    cli.run(main)
