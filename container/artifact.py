"""A model directory without a script: what is in it, how it is loaded, and how its library predicts."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from container.errors import ClientError, StartupError

log = logging.getLogger(__name__)

PICKLES = ("model.joblib", "model.pkl")
MAX_BATCH_SIZE = 64
"""Requests predicted together. Both libraries predict row by row, so what is predicted together stays the same."""


@dataclass(frozen=True)
class Library:
    """How a loaded model is asked: decoded input -> what predict takes -> predictions, one a row -> what is encoded."""

    name: str
    to_input: Callable[[Any], Any]
    predict: Callable[[Any], Any]
    to_output: Callable[[Any], Any]
    warmup: Any = None
    """Something that predict takes; None if nothing is known."""


def load(model_dir: Path) -> Any:
    """The model of a directory that holds model.joblib, model.pkl or a spaCy pipeline; one directory too many is forgiven.

    Raises StartupError that says what was found and what is accepted.
    """
    found = _find(model_dir) or next((inner for path in _directories(model_dir) if (inner := _find(path))), None)
    if found is None:
        names = ", ".join(sorted(path.name for path in model_dir.iterdir())[:10]) if model_dir.is_dir() else ""
        raise StartupError(
            f"{model_dir} {f'holds {names}' if names else 'is empty' if model_dir.is_dir() else 'is not there'}: "
            f"accepted are {', '.join(PICKLES)}, a spaCy pipeline folder, or a script, code/inference.py with model_fn"
        )
    if found.parent != model_dir and found != model_dir and not (found / "meta.json").is_file():
        log.warning("the model is in %s: one directory too many in the archive", found.parent)
    model = _load_pipeline(found) if found.is_dir() else _load_pickle(found)
    if model is None:
        raise StartupError(f"{found} holds None: a model with a predict method was expected")
    return model


def library(model: Any) -> Library:
    """How to ask a model that `load`, or a script's model_fn, returned. Raises StartupError if it cannot predict."""
    if model is None:  # only model_fn returns that
        raise StartupError("model_fn returned None: it must return the loaded model")
    if type(model).__module__.startswith("spacy.") or hasattr(model, "pipe_names"):
        return Library("spaCy", _texts, lambda texts: list(model.pipe(texts)), lambda docs: [_entities(doc) for doc in docs], ["Warm."])
    if not callable(getattr(model, "predict", None)):
        raise StartupError(
            f"the artifact is {type(model).__module__}.{type(model).__qualname__}, which has no predict method: "
            "bring a script, code/inference.py with model_fn and predict_fn"
        )
    width = getattr(model, "n_features_in_", None)
    names = getattr(model, "feature_names_in_", None)
    return Library(
        "scikit-learn",
        lambda value: _table(value, None if names is None else [str(name) for name in names]),
        _predicting(model),
        lambda prediction: prediction,
        np.zeros((1, width)) if isinstance(width, int) else None,
    )


def _find(directory: Path) -> Path | None:
    for name in PICKLES:
        if (directory / name).is_file():
            return directory / name
    return directory if (directory / "config.cfg").is_file() and (directory / "meta.json").is_file() else None


def _directories(directory: Path) -> Iterable[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir() and path.name != "code") if directory.is_dir() else ()


def _load_pickle(path: Path) -> Any:
    import joblib  # with scikit-learn behind it the slowest import there is: not for those who bring a script

    try:
        return joblib.load(path)
    except ModuleNotFoundError as error:
        raise StartupError(f"{path} needs {error.name}, which is not installed in this image") from error
    except Exception as error:
        raise StartupError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error


def _load_pipeline(path: Path) -> Any:
    try:
        import spacy

        return spacy.load(path)
    except Exception as error:
        raise StartupError(f"{path} cannot be loaded as a spaCy pipeline: {type(error).__name__}: {error}") from error


def _predicting(model: Any) -> Callable[[Any], Any]:
    import warnings

    def predict(table: Any) -> Any:
        """scikit-learn says that rows do not fit with a ValueError, that a cell does not with a TypeError: the request's fault."""
        try:
            return model.predict(table)
        except (ValueError, TypeError) as error:
            if isinstance(error, TypeError) and table.dtype != object:
                raise
            raise ClientError(f"the rows do not fit the model: {' '.join(str(error).split())}") from error

    # The order of the columns is the contract of CSV and of JSON arrays; scikit-learn's reminder at each request says nothing new.
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    return predict


def _table(value: Any, names: list[str] | None) -> Any:
    """Rows for scikit-learn: shape (rows, columns). Records are put into the order of the model's feature names."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = _from_records(value, names)
    table = _array(value) if isinstance(value, list | tuple) else value
    if not hasattr(table, "shape"):
        raise ClientError(f"the model takes rows of numbers, shape (rows, columns); this is {type(value).__name__}")
    return table.reshape(1, -1) if len(table.shape) == 1 else table


def _array(rows: Any) -> Any:
    """Numbers as numbers and texts as texts, side by side, as models of mixed columns were fitted; nothing is nan."""
    try:
        table = np.asarray(rows)
    except ValueError as error:
        raise ClientError("the rows differ in their number of columns") from error
    if table.dtype.kind in "biuf":
        return table
    table = np.array(rows, dtype=object)
    table[table == None] = np.nan  # noqa: E711 - cell by cell
    return table


def _from_records(records: list[Any], names: list[str] | None) -> Any:
    columns = names or list(records[0])
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or set(record) != set(columns):
            keys = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
            raise ClientError(f"record {number} has {keys}; expected is {', '.join(columns)}")
    return [[record[name] for name in columns] for record in records]


def _texts(value: Any) -> list[str]:
    """Texts for spaCy: a text, a list of texts, or objects with a text under 'input', 'inputs' or 'text'; CSV: one text a row."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, dict):
        value = next((value[key] for key in ("input", "inputs", "text") if key in value), None)
    if isinstance(value, str):
        return [value]
    rows = value.tolist() if isinstance(value, np.ndarray) else value
    texts: list[str] = []
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        text = row.get("text", row.get("input")) if isinstance(row, dict) else row[0] if isinstance(row, list) and len(row) == 1 else row
        if not isinstance(text, str):
            raise ClientError(f"item {number} is {type(text).__name__}: a text was expected, or a list of texts, or objects with a text")
        texts.append(text)
    return texts


def _entities(doc: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"ents": [{"text": e.text, "label": e.label_, "start": e.start_char, "end": e.end_char} for e in doc.ents]}
    return found | {"cats": doc.cats} if doc.cats else found
