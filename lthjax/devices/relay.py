"""Passes on standard input to standard error, until JAX's runtime reports that process 0 has died.

That report, with its stack trace, is left out; the sentence in the first argument is there instead. A process
of its own (`lthjax.devices.hosts`), since the runtime aborts the process that it reports from.
"""

import signal
import sys

# Words of the report's first lines.
_REPORT = (b"Polled an error from coordination service", b"JAX distributed service detected fatal errors")


def main() -> None:
    """Ends with its input: with the process that it belongs to."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    told = False
    for line in sys.stdin.buffer:
        if not told and any(words in line for words in _REPORT):
            told = True
            line = sys.argv[1].encode() + b"\n"
        elif told:
            continue
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()


if __name__ == "__main__":
    main()
