"""Finds and imports the user's script, and binds its functions. Says why not."""

import difflib
import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from container.errors import StartupError
from container.namespace import Namespace
from container.settings import Settings

log = logging.getLogger(__name__)

ARGUMENTS = {
    "model_fn": ("model_dir",),
    "input_fn": ("body", "content_type"),
    "predict_fn": ("data", "model"),
    "output_fn": ("prediction", "accept"),
    "transform_fn": ("model", "body", "content_type", "accept"),
}
"""Each hook's arguments; one more, last, is the request's context."""
CONSTANTS = ("MAX_BATCH_SIZE", "WARMUP")
ALTERNATIVES = {"input_fn", "predict_fn", "output_fn"}
"""What transform_fn takes the place of."""


@dataclass(frozen=True)
class Hook:
    """A function of the user's, and whether it asks for the context."""

    name: str
    function: Callable[..., Any]
    wants_context: bool

    def __call__(self, *arguments: Any, context: Any) -> Any:
        return self.function(*arguments, context) if self.wants_context else self.function(*arguments)


@dataclass(frozen=True)
class Script:
    """An imported script: its hooks by name, and its constants."""

    path: Path
    hooks: dict[str, Hook]
    max_batch_size: int
    warmup: tuple[str, bytes] | None

    def hook(self, name: str) -> Hook | None:
        return self.hooks.get(name)


def find(settings: Settings, default: str = "inference.py", model_dir: Path | None = None) -> Path | None:
    """The user's script, or None if there is none and none was asked for.

    Looked for in SAGEMAKER_SUBMIT_DIRECTORY, else in code/ of the model directory, else in code/ of the base directory.
    Raises StartupError if a variable names a script or a directory that is not there.
    """
    directories = [(model_dir or settings.model_dir) / "code", settings.code_dir]
    if settings.submit_directory:
        if "://" in settings.submit_directory:
            raise StartupError(
                f"{settings.source('submit_directory')}={settings.submit_directory} is not on this machine: "
                "pack the script into the model archive as code/inference.py, or bake it into the image"
            )
        directories = [Path(settings.submit_directory)]
    candidates = [directory / (settings.program or default) for directory in directories]
    for path in candidates:
        if path.is_file():
            return path
    if settings.program or settings.submit_directory:
        names = [name for name in ("program", "submit_directory") if name in settings.given]
        asked = " and ".join(f"{settings.source(name)}={getattr(settings, name)}" for name in names)
        raise StartupError(f"there is no {' and no '.join(map(str, candidates))}, but {asked or 'a script'} asks for one")
    return None


def load(path: Path, namespace: Namespace | None = None) -> Script:
    """Imports a script and binds its hooks. Raises StartupError that names the file, the function and what was expected.

    namespace: for one model of many, so that another's modules of the same names are not met.
    """
    module = import_script(path, namespace)
    hooks = {name: _bind(path, name, getattr(module, name)) for name in ARGUMENTS if hasattr(module, name)}
    if "model_fn" not in hooks:
        raise StartupError(f"{path} has no model_fn(model_dir): a script must have one; it returns the loaded model")
    both = sorted(set(hooks) & ALTERNATIVES)
    if "transform_fn" in hooks and both:
        raise StartupError(f"{path} has transform_fn and {', '.join(both)}: transform_fn takes the place of these; keep one or the other")
    script = Script(path, hooks, _max_batch_size(path, module), _warmup(path, module))
    if script.max_batch_size > 1:
        _refuse_unjoinable(script)
    for name, meant in misspelled(module).items():
        log.warning("%s has %s, which nothing here makes use of: did you mean %s?", path, name, meant)
    return script


def misspelled(module: ModuleType) -> dict[str, str]:
    """Functions and constants of a script that are nearly called like one that it could have and has not, each with that one's name."""
    has = set(vars(module))
    replaced = ALTERNATIVES if "transform_fn" in has else {"transform_fn"} if has & ALTERNATIVES else set()
    missing = {*ARGUMENTS, *CONSTANTS} - has - replaced
    own = [name for name, value in vars(module).items() if name.isupper() or getattr(value, "__globals__", None) is vars(module)]
    near = {name: difflib.get_close_matches(name, missing, n=1, cutoff=0.8) for name in own if name not in (*ARGUMENTS, *CONSTANTS)}
    return {name: found[0] for name, found in near.items() if found}


def unused(model_dir: Path) -> list[Path]:
    """Python files where a script might have been meant, of a model that has none."""
    root = model_dir / "inference.py"
    return [*sorted((model_dir / "code").glob("*.py")), *([root] if root.is_file() else [])]


def import_script(path: Path, namespace: Namespace | None = None) -> ModuleType:
    """Imports a file under its own name, its directory (and lib/ in it) first on sys.path. Raises StartupError with the line at fault."""
    if path.suffix != ".py":
        raise StartupError(f"{path} is not a Python file: its name must end in .py")
    try:
        return namespace.run(path) if namespace else _import_globally(path)
    except SyntaxError as error:
        raise StartupError(f"{path} is not valid Python: {error.msg} ({error.filename}, line {error.lineno})") from error
    except ModuleNotFoundError as error:
        raise StartupError(
            f"{where(error, path)} imports {error.name}, which is not installed in this image and not beside the script"
        ) from error
    except (Exception, SystemExit) as error:  # a script that is also a program may read arguments and end
        raise StartupError(f"importing {where(error, path)} raised {describe(error)}") from error


def beside(script: Path) -> list[Path]:
    """The files that belong to a script's code, by path: the Python files beside it, requirements.txt, and directories with Python in them.

    Such a directory counts whole, hidden files apart; data beside the script does not count, nor does a virtual environment.
    """
    found: list[Path] = []
    for path in sorted(script.parent.iterdir()):
        if path.is_dir() and _is_code(path):
            found += sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path)))
        elif path.is_file() and (path.suffix == ".py" or path.name == "requirements.txt"):
            found.append(path)
    return found


def _is_code(directory: Path) -> bool:
    return not directory.name.startswith((".", "__")) and not (directory / "pyvenv.cfg").exists() and any(directory.rglob("*.py"))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _import_globally(path: Path) -> ModuleType:
    for directory in (path.parent / "lib", path.parent):
        if directory.is_dir() and str(directory) not in sys.path:
            sys.path.insert(0, str(directory))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def describe(error: BaseException) -> str:
    """'ValueError: its message', on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def where(error: BaseException, path: Path) -> str:
    """'file, line N' of the deepest frame of an error that is in the user's directory; else the script itself."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(path.parent)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}," if frames else str(path)


def _refuse_unjoinable(script: Script) -> None:
    predict_fn = script.hook("predict_fn")
    if "transform_fn" in script.hooks:
        wrong = "transform_fn cannot do that; use input_fn, predict_fn and output_fn"
    elif predict_fn and predict_fn.wants_context:
        wrong = "predict_fn cannot take the context of one; input_fn and output_fn can"
    else:
        return
    raise StartupError(f"{script.path} has MAX_BATCH_SIZE = {script.max_batch_size}, so one call predicts for several requests: {wrong}")


def _bind(path: Path, name: str, function: Any) -> Hook:
    if not callable(function):
        raise StartupError(f"{name} in {path} is {type(function).__name__}: a function was expected")
    wanted = ARGUMENTS[name]
    expected = f"expected is {name}({', '.join(wanted)}), and the request's context as one more if it wants it"
    try:
        everything = inspect.signature(function).parameters.values()
    except ValueError:
        raise StartupError(f"{name} in {path} does not tell its arguments, as some of C's functions do not: {expected}") from None
    by_name = [p.name for p in everything if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if by_name:
        raise StartupError(f"{name} in {path} takes {', '.join(by_name)} by name only: {expected}, by position")
    parameters = [p for p in everything if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in parameters)
    extra = parameters[len(wanted) : len(wanted) + 1]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in everything)
    if required > len(wanted) + 1 or (len(parameters) < len(wanted) and not any_number):
        raise StartupError(f"{name} in {path} takes {len(parameters)} argument{'s' * (len(parameters) != 1)}: {expected}")
    return Hook(name, function, any(p.default is p.empty or p.name == "context" for p in extra))


def _max_batch_size(path: Path, module: ModuleType) -> int:
    value = getattr(module, "MAX_BATCH_SIZE", 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise StartupError(f"MAX_BATCH_SIZE in {path} is {value!r}: a whole number of 1 or more was expected")
    return value


def _warmup(path: Path, module: ModuleType) -> tuple[str, bytes] | None:
    value = getattr(module, "WARMUP", None)
    if value is None:
        return None
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], bytes | str):
        return value[0], value[1].encode() if isinstance(value[1], str) else value[1]
    raise StartupError(f'WARMUP in {path} is {value!r}: (content type, body) was expected, as ("text/csv", b"5.1,3.5,1.4,0.2")')
