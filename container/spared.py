"""An import that costs much and brings nothing, left out."""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

IMPORTER, IMPORTED = "sklearn.utils.fixes", "pandas"
"""scikit-learn imports pandas where it is installed and, in 1.9, makes no use of it: 33 MB and half a second for each server."""


class _Without(MetaPathFinder, Loader):
    """Imports the one module as if the other were not installed; whoever else asks for that one gets it."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == IMPORTER else None
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        assert self._loader is not None
        modules: dict[str, Any] = sys.modules
        absent = IMPORTED not in modules
        if absent:
            modules[IMPORTED] = None  # as the import system writes it: not to be found
        try:
            self._loader.exec_module(module)
        finally:
            if absent:
                del modules[IMPORTED]


def leave_out_pandas() -> None:
    """From now on in this process. May be called again."""
    if not any(isinstance(finder, _Without) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Without())
