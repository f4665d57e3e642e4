"""The names that a study may choose from, for `--help`, without loading JAX.

The tables are `arms.ARMS`, `criteria.CRITERIA`, `models.MODELS`, `optim.OPTIMISERS` and `data.SOURCES`. If a
table's module is loaded, its keys are listed, with those that a config file has added; otherwise the names
are read from the module's source.
"""

import ast
import functools
import sys
from pathlib import Path

from typing_extensions import Doc


def names(module: str, table: str) -> list[str]:
    """The keys of a table, in its order.

    Args:
        module: of this package, for example "arms".
        table: for example "ARMS".
    """
    loaded = sys.modules.get(f"lthjax.{module}")
    if loaded is not None and hasattr(loaded, table):
        return list(getattr(loaded, table))
    return list(shipped(module, table))


@functools.cache
def shipped(module: str, table: str) -> tuple[str, ...]:
    """The keys of a table without those that a config file has added; arguments as for `names`."""
    source = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == table:
            assert isinstance(node.value, ast.Dict)
            return tuple(ast.literal_eval(key) for key in node.value.keys if key is not None)
    raise LookupError(f"lthjax/{module}.py has no table {table}")


class Listed(Doc):
    """Help text of a field whose values are the keys of a table.

    Args:
        text: description of the field; `{}` marks the place of the keys.
        module: as for `names`.
        table: likewise.
    """

    def __init__(self, text: str, module: str, table: str) -> None:
        self._text, self._module, self._table = text, module, table

    @property
    def documentation(self) -> str:  # type: ignore[override]
        """The help text, with the current keys."""
        return self._text.format(", ".join(names(self._module, self._table)))

    def __hash__(self) -> int:
        return hash((self._text, self._module, self._table))
