"""The command of `analysis.predict`."""

from lthjax import cli

from .. import predict, record

if __name__ == "__main__":
    cli.run(record.command(predict.ANALYSIS))
