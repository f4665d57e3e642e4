"""The one error a user can cause, and how names are suggested in it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: its message is one sentence that names the field, the value and what is allowed.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def unknown(field: str, value: object, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not in a table, with the nearest name that is."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"{field}: {value!r} is not known; {hint}Known: {', '.join(names)}.")
