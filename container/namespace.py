"""Modules of one model's own: two artifacts may both ship inference.py and utils.py, and each meets its own, in one process.

Python finds a module by its name in sys.modules, so one process has one `utils`. But an import statement asks the __import__ among the
builtins of the module that it stands in. A module of a model gets builtins of its own, with an __import__ that looks among the model's
files first: at the top of a file, inside a function, or years later.
"""

import builtins
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

_exposing = threading.RLock()
"""Held while a model's modules stand in sys.modules, where all models' would meet."""


class Namespace:
    """The modules below some directories (code/ and code/lib of an artifact). Compiled modules are shared: Python loads them once."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._path = [str(directory) for directory in directories if directory.is_dir()]
        self._modules: dict[str, ModuleType] = {}
        self._builtins = {**vars(builtins), "__import__": self._import}

    def run(self, path: Path) -> ModuleType:
        """Imports one file of the model, under its own name. Raises what the file raises."""
        with self.exposed():
            return self._load(importlib.util.spec_from_file_location(path.stem, path))

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """The model's modules in sys.modules and its directories on sys.path: for pickle, which looks classes up there."""
        with _exposing:
            hidden = {name: sys.modules[name] for name in self._modules if name in sys.modules}
            sys.modules.update(self._modules)
            sys.path[:0] = self._path
            before = set(sys.modules)
            try:
                yield
            finally:
                for directory in self._path:
                    sys.path.remove(directory)
                for name in set(sys.modules) - before | set(self._modules):
                    module = sys.modules.get(name)
                    if module is not None and (name in self._modules or self._is_own(module)):
                        self._modules.setdefault(name, module)
                        del sys.modules[name]
                sys.modules.update(hidden)

    def _is_own(self, module: ModuleType) -> bool:
        file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")
        return any(file.startswith(f"{directory}/") for directory in self._path) and not file.endswith(".so")

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 - __import__'s own names
        locals: Mapping[str, object] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """What an import statement in one of the model's modules does; its arguments and result are those of builtins.__import__."""
        if level:
            package = str((globals or {}).get("__package__") or "")
            name = importlib.util.resolve_name("." * level + name, package)
        top = name.partition(".")[0]
        if self._find(top) is None:
            return builtins.__import__(name, globals, locals, fromlist or (), 0)
        module = self._import_dotted(name)
        if not fromlist:
            return module if level else self._modules[top]
        for item in fromlist:
            if item != "*" and not hasattr(module, item) and hasattr(module, "__path__"):
                self._import_dotted(f"{name}.{item}")
        return module

    def _find(self, name: str, path: Sequence[str] | None = None) -> importlib.machinery.ModuleSpec | None:
        if name in self._modules:
            return self._modules[name].__spec__
        spec = importlib.machinery.PathFinder.find_spec(name, self._path if path is None else path)
        return None if spec is None or str(spec.origin).endswith(".so") else spec

    def _import_dotted(self, name: str) -> ModuleType:
        if name in self._modules:
            return self._modules[name]
        parent_name, _, child = name.rpartition(".")
        parent = self._import_dotted(parent_name) if parent_name else None
        spec = self._find(name, None if parent is None else list(getattr(parent, "__path__", [])))
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        module = self._load(spec)
        if parent is not None:
            setattr(parent, child, module)
        return module

    def _load(self, spec: importlib.machinery.ModuleSpec | None) -> ModuleType:
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        vars(module)["__builtins__"] = self._builtins
        self._modules[spec.name] = module
        if spec.loader is not None:
            try:
                spec.loader.exec_module(module)
            except BaseException:
                self._modules.pop(spec.name, None)
                raise
        return module
