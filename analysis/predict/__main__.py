"""The command of `analysis.predict`."""

from .. import predict, record

main = record.command(predict.ANALYSIS, __name__)
