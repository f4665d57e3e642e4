"""In a checkout: the package `analysis` beside this one, under the name that it has when installed.

The wheel holds that package itself instead of this file. Both names give the same modules, so that there are
never two classes of one name.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import analysis
from lthjax import home

_OURS = f"{__name__}."


class _Other(MetaPathFinder, Loader):
    """Finds `lthjax.analysis.X` as the module `analysis.X`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        known = fullname.startswith(_OURS) and importlib.util.find_spec(_real(fullname)) is not None
        return ModuleSpec(fullname, self) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(_real(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has replaced it by that of the other name.
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _real(name: str) -> str:
    return name.removeprefix("lthjax.")


if Path(str(analysis.__file__)).parent.resolve() != (home.FOLDER / "analysis").resolve():
    raise ImportError(
        f"lthjax.analysis: {analysis.__file__} comes first as `analysis`, and is not the package beside "
        f"lthjax in {home.FOLDER}; start from another folder.",
        name=__name__,
    )
sys.meta_path.insert(0, _Other())
sys.modules[__name__] = analysis
