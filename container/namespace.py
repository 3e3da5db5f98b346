"""Modules of one model's own: two artifacts may both ship inference.py and utils.py, and each meets its own, in one process.

Python finds a module by its name in sys.modules, so one process has one `utils`. But an import statement asks the __import__ among the
builtins of the module that it stands in. A module of a model gets builtins of its own, with an __import__ that looks among the model's
files first: at the top of a file, inside a function, or years later.
"""

import builtins
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_exposing = threading.RLock()
"""Held while a model's modules stand in sys.modules, where all models' would meet; and over a fork, or the child would wait for ever."""
os.register_at_fork(before=_exposing.acquire, after_in_parent=_exposing.release, after_in_child=_exposing.release)


class Namespace:
    """The modules below some directories (code/ and code/lib of an artifact)."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._path = [str(directory) for directory in directories if directory.is_dir()]
        self._modules: dict[str, ModuleType] = {}
        self._hidden: dict[str, ModuleType] = {}
        self._is_exposed = False
        self._of_image: dict[str, bool] = {}
        self._builtins = {**vars(builtins), "__import__": self._import}

    def run(self, path: Path) -> ModuleType:
        """Imports one file of the model, under its own name. Raises what the file raises."""
        with self.exposed():
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None
            return self._load(spec)

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """The model's modules in sys.modules and its directories on sys.path: for pickle, which looks classes up there."""
        with _exposing:
            path_before, before = list(sys.path), set(sys.modules)
            self._is_exposed = True
            for name, module in self._modules.items():
                self._show(name, module)
            sys.path[:0] = self._path
            try:
                yield
            finally:
                self._is_exposed = False
                # what the script itself has put there is not for other models either
                sys.path[:] = [entry for entry in sys.path if entry in path_before or not self._is_below(entry)]
                self._gather(set(sys.modules) - before)
                sys.modules.update(self._hidden)
                self._hidden.clear()

    def close(self) -> None:
        """Takes the modules apart when the model is gone: they hold each other, and what they hold, in cycles."""
        for module in self._modules.values():
            if not _is_compiled(getattr(module, "__file__", None)):
                vars(module).clear()
        self._modules.clear()
        self._builtins.clear()
        for directory in self._path:
            sys.path_importer_cache.pop(directory, None)

    def _show(self, name: str, module: ModuleType) -> None:
        other = sys.modules.get(name)
        if other is not None and other is not module:
            self._hidden.setdefault(name, other)
        sys.modules[name] = module

    def _gather(self, new: set[str]) -> None:
        """Takes out of sys.modules what is the model's own: loaded here, or by Python (a pickle's class, say)."""
        for name in new | set(self._modules):
            module = sys.modules.get(name)
            if module is not None and (module is self._modules.get(name) or self._is_own(module)):
                self._modules.setdefault(name, module)
                del sys.modules[name]

    def _is_own(self, module: ModuleType) -> bool:
        return self._is_below(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), ""))

    def _is_below(self, path: str) -> bool:
        return any(path == directory or path.startswith(f"{directory}/") for directory in self._path)

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
        if self._known(top) is None and self._find(top) is None:
            with self._past_own() if self._of_image.get(top) else nullcontext():
                return builtins.__import__(name, globals, locals, fromlist or (), 0)
        module = self._import_dotted(name)
        if not fromlist:
            return module if level else self._modules[top]
        if hasattr(module, "__path__"):
            for item in fromlist:
                self._import_item(module, item)
        return module

    @contextmanager
    def _past_own(self) -> Iterator[None]:
        """sys.path without the model's directories, for what is to come from the image though they have it too."""
        before = list(sys.path)
        sys.path[:] = [entry for entry in before if not self._is_below(entry)]
        try:
            yield
        finally:
            sys.path[:] = before

    def _import_item(self, package: ModuleType, item: str) -> None:
        """`from package import item`, where item may be a module; one that is not there is for the import statement to miss."""
        if item == "*":
            for listed in getattr(package, "__all__", ()):
                self._import_item(package, listed)
        elif not hasattr(package, item) and self._find(f"{package.__name__}.{item}", list(package.__path__)) is not None:
            self._import_dotted(f"{package.__name__}.{item}")

    def _known(self, name: str) -> ModuleType | None:
        module = self._modules.get(name)
        if module is None and self._is_exposed:
            there = sys.modules.get(name)
            if there is not None and self._is_own(there):  # imported by Python in the meantime
                module = self._modules[name] = there
        return module

    def _find(self, name: str, path: Sequence[str] | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, self._path if path is None else path)
        return None if spec is None or (path is None and self._is_of_image(spec)) else spec

    def _is_of_image(self, spec: ModuleSpec) -> bool:
        """Whether the image's module of this name is meant: a mere directory is no package where there is one, and what is compiled
        can often be loaded only once in a process (numpy says so), which the image's own has the better right to.
        """
        if spec.name not in self._of_image:
            places = list(spec.submodule_search_locations or ())
            yields = spec.origin is None or _is_compiled(spec.origin) or any(next(Path(p).rglob("*.so"), None) for p in places)
            elsewhere = [entry for entry in sys.path if not self._is_below(entry)]
            self._of_image[spec.name] = yields and PathFinder.find_spec(spec.name, elsewhere) is not None
        return self._of_image[spec.name]

    def _import_dotted(self, name: str) -> ModuleType:
        known = self._known(name)
        if known is not None:
            return known
        parent_name, _, child = name.rpartition(".")
        parent = self._import_dotted(parent_name) if parent_name else None
        known = self._known(name)  # its package may have imported it
        if known is not None:
            return known
        spec = self._find(name, None if parent is None else list(getattr(parent, "__path__", [])))
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        module = self._load(spec)
        if parent is not None:
            setattr(parent, child, module)
        return module

    def _load(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.util.module_from_spec(spec)
        vars(module)["__builtins__"] = self._builtins
        self._modules[spec.name] = module
        if self._is_exposed:
            self._show(spec.name, module)
        try:
            if spec.loader is not None:
                spec.loader.exec_module(module)
        except BaseException:
            self._modules.pop(spec.name, None)
            if self._is_exposed:
                sys.modules.pop(spec.name, None)
            raise
        return self._modules.get(spec.name, module)


def _is_compiled(file: str | None) -> bool:
    return file is not None and file.endswith(".so")
