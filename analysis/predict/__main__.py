"""The command of `analysis.predict`."""

from analysis import predict, record
from lthjax import cli

if __name__ == "__main__":
    cli.run(record.command(predict.ANALYSIS))
