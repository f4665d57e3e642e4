"""Passes on standard input to standard error, until JAX's runtime reports that process 0 has died.

That report, with its stack trace, is left out; the sentence in the first argument is there instead. A process
of its own (`lthjax.devices.hosts`), since the runtime aborts the process that it reports from.
"""

import signal
import sys

# Words of the report's first lines.
_REPORT = (b"Polled an error from coordination service", b"JAX distributed service detected fatal errors")
# The beginnings of the sentences with which a process ends.
_SENTENCES = (b"error: ", b"stopped")


def main() -> None:
    """Ends with its input: with the process that it belongs to."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    said = reported = False
    for line in sys.stdin.buffer:
        if any(words in line for words in _REPORT):
            # The process may have noticed it first, and have said why it ends.
            line = b"" if said or reported else sys.argv[1].encode() + b"\n"
            reported = True
        elif reported:
            continue
        said = said or line.startswith(_SENTENCES)
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()


if __name__ == "__main__":
    main()
