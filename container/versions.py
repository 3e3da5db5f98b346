"""The versions of Python and of the libraries that made a model: written into its artifact, compared where it is loaded."""

import json
import mmap
import pickle
import platform
import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from container.errors import StartupError
from container.settings import variables

FILE = "versions.json"
SAME, MINOR, MAJOR = range(3)

DISTRIBUTIONS = {
    "catboost": "catboost",
    "cloudpickle": "cloudpickle",
    "gensim": "gensim",
    "imblearn": "imbalanced-learn",
    "joblib": "joblib",
    "keras": "keras",
    "lightgbm": "lightgbm",
    "nltk": "nltk",
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "pandas": "pandas",
    "polars": "polars",
    "prophet": "prophet",
    "pyarrow": "pyarrow",
    "scipy": "scipy",
    "skl2onnx": "skl2onnx",
    "sklearn": "scikit-learn",
    "skops": "skops",
    "spacy": "spacy",
    "statsmodels": "statsmodels",
    "tensorflow": "tensorflow",
    "thinc": "thinc",
    "torch": "torch",
    "transformers": "transformers",
    "xgboost": "xgboost",
}
"""Import name -> the name it is installed by, of the libraries whose version a saved model depends on."""

PICKLES = (".joblib", ".pkl", ".pickle")


def imported() -> list[str]:
    """Import names of the known libraries that this process has imported."""
    return [name for name in DISTRIBUTIONS if name in sys.modules]


def installed() -> list[str]:
    """Import names of the known libraries that are installed here, imported or not."""
    return [name for name in DISTRIBUTIONS if _version(name)]


def record(model_dir: Path, libraries: Iterable[str] | None = None) -> Path:
    """Writes versions.json into an artifact: {"python": "3.11.9", "libraries": {"numpy": "2.3.1", ...}}.

    libraries: import names, by default those of the known ones that this process has imported. Ones that are not
    installed are left out. Returns the file.
    """
    path = model_dir / FILE
    path.write_text(text(imported() if libraries is None else libraries))
    return path


def text(libraries: Iterable[str]) -> str:
    """What versions.json says where these libraries, by their import names, make a model."""
    versions = {name: version for name in sorted(libraries) if (version := _version(name))}
    return json.dumps({"python": platform.python_version(), "libraries": versions}, indent=2) + "\n"


def check(model_dir: Path, allow_mismatch: bool) -> list[str]:
    """Compares what made the artifact with what is here; returns warnings, one line each.

    A patch release apart: silent. A minor one: a warning. A major one, or a library that is missing: StartupError if the
    model needs the library, unless allow_mismatch makes a warning of it. "Major" is what semantic versioning lets break: the first
    number, and for 0.x the second. An artifact without versions.json has no warnings.
    """
    try:
        made_by = _read(model_dir / FILE)
    except FileNotFoundError:
        return []
    except (ValueError, OSError) as error:
        return [f"{model_dir / FILE} is not a record of versions ({error}): nothing was compared"]
    warnings: list[str] = []
    refusals: list[str] = []
    for name, then in made_by.items():
        now = platform.python_version() if name == "python" else _version(name)
        distance = _distance(then, now) if now else MAJOR
        if distance == SAME:
            continue
        title = DISTRIBUTIONS.get(name, name)
        line = f"the model was made with {title} {then}, but " + (f"{title} {now} is here" if now else f"{title} is not installed here")
        needed = distance == MAJOR and _needs(model_dir, name)
        # What cannot be seen may break with another major version; if it is missing, loading will name it.
        (refusals if needed or (needed is None and now) else warnings).append(line)
    if refusals and not allow_mismatch:
        raise StartupError(
            f"{'; '.join(refusals)}. Train it again with what is here, serve it with what made it, or set {_allowing()}=true to try it"
        )
    return warnings + refusals


def _read(path: Path) -> dict[str, str]:
    document = json.loads(path.read_text())
    if not isinstance(document, dict) or not isinstance(document.get("python"), str) or not isinstance(document.get("libraries"), dict):
        raise ValueError('expected was {"python": ..., "libraries": {...}}')  # noqa: TRY004 - one kind of error for all that is not ours
    return {"python": document["python"], **{str(name): str(version) for name, version in document["libraries"].items()}}


def _distance(then: str, now: str) -> int:
    """How far apart two releases are: SAME (or a patch apart), MINOR (also: a version that is no number) or MAJOR."""
    before, after = _numbers(then), _numbers(now)
    if before is None or after is None:
        return SAME if then == now else MINOR
    if before == after:
        return SAME
    return MAJOR if before[0] != after[0] or before[0] == 0 else MINOR


def _numbers(version: str) -> tuple[int, int] | None:
    found = re.match(r"v?(?:\d+!)?(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2] or 0)) if found else None


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(DISTRIBUTIONS.get(name, name))
    except metadata.PackageNotFoundError:
        return None


def _needs(model_dir: Path, name: str) -> bool | None:
    """Whether the artifact needs a library to load: its pickles name it, or it has a spaCy pipeline; None if that cannot be seen.

    A library that only the training used (pandas to read the data) is in neither. A compressed pickle, or a model in a form of
    its own, shows nothing.
    """
    if name == "python":
        return True
    pickles = [path for path in model_dir.rglob("*") if path.suffix in PICKLES]
    pipeline = any(_mentions(path, '"spacy_version"') for path in model_dir.rglob("meta.json"))
    if (pipeline and name in ("spacy", "thinc")) or any(_mentions(path, name) for path in pickles):
        return True
    return False if (pickles or pipeline) and all(map(_is_plain, pickles)) else None


def _is_plain(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO


def _mentions(path: Path, text: str) -> bool:
    if not path.stat().st_size:  # mmap refuses an empty file
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text.encode()) >= 0


def _allowing() -> str:
    return next(variable.names[0] for field, variable in variables() if field == "allow_version_mismatch")
