"""Where the user's script is looked for, what it may look like, and what is said of one that cannot be used."""

import re
import sys

import pytest

from container import user_code
from container.errors import StartupError
from container.settings import Settings

MODEL_FN = "def model_fn(model_dir): return model_dir\n"
PREDICT_FN = "def predict_fn(data, model): return data\n"


@pytest.mark.parametrize(
    ("there", "fields", "found"),
    [
        ([], {}, None),
        (["model/code/inference.py"], {}, "model/code/inference.py"),
        (["code/inference.py"], {}, "code/inference.py"),
        (["code/inference.py", "model/code/inference.py"], {}, "model/code/inference.py"),
        (["model/inference.py", "model/code/other.py"], {}, None),
        (["model/code/mine.py", "code/inference.py"], {"program": "mine.py"}, "model/code/mine.py"),
        (["code/mine.py", "model/code/inference.py"], {"program": "mine.py"}, "code/mine.py"),
        (["model/code/deep/mine.py"], {"program": "deep/mine.py"}, "model/code/deep/mine.py"),
        (["own/inference.py", "model/code/inference.py"], {"submit_directory": "own"}, "own/inference.py"),
        (["own/mine.py"], {"submit_directory": "own", "program": "mine.py"}, "own/mine.py"),
        (["model/code/inference.py/a-directory"], {}, None),
    ],
)
def test_find(script, tmp_path, there, fields, found):
    for path in there:
        script("", path)
    if "submit_directory" in fields:
        fields = fields | {"submit_directory": str(tmp_path / fields["submit_directory"])}
    assert user_code.find(Settings(base_dir=tmp_path, **fields)) == (tmp_path / found if found else None)


def test_another_default_name(script, tmp_path):
    assert user_code.find(script("", "code/training.py"), "training.py") == tmp_path / "code/training.py"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (
            {"SAGEMAKER_PROGRAM": "mine.py"},
            "there is no {0}/model/code/mine.py and no {0}/code/mine.py, but SAGEMAKER_PROGRAM=mine.py asks for one",
        ),
        (
            {"SAGEMAKER_SUBMIT_DIRECTORY": "/nowhere"},
            "there is no /nowhere/inference.py, but SAGEMAKER_SUBMIT_DIRECTORY=/nowhere asks for one",
        ),
        (
            {"SAGEMAKER_SUBMIT_DIRECTORY": "/nowhere", "SAGEMAKER_PROGRAM": "mine.py"},
            "there is no /nowhere/mine.py, but SAGEMAKER_PROGRAM=mine.py and SAGEMAKER_SUBMIT_DIRECTORY=/nowhere asks for one",
        ),
        (
            {"SAGEMAKER_SUBMIT_DIRECTORY": "s3://bucket/source.tar.gz"},
            (
                "SAGEMAKER_SUBMIT_DIRECTORY=s3://bucket/source.tar.gz is not on this machine: "
                "pack the script into the model archive as code/inference.py, or bake it into the image"
            ),
        ),
    ],
)
def test_a_script_that_was_asked_for_and_is_not_there(tmp_path, environ, said):
    with pytest.raises(StartupError) as refused:
        user_code.find(Settings.read({"SAGEMAKER_BASE_DIR": str(tmp_path), **environ}))
    assert str(refused.value) == said.format(tmp_path)


def load(script, source):
    """The script of this source; in its errors the directory is left out."""
    path = user_code.find(script(source))
    assert path is not None
    try:
        return user_code.load(path)
    except StartupError as error:
        raise StartupError(str(error).replace(f"{path.parent}/", "")) from error


@pytest.mark.parametrize(
    ("source", "hooks", "size", "warmup"),
    [
        (MODEL_FN, {"model_fn": False}, 1, None),
        (MODEL_FN + PREDICT_FN + "MAX_BATCH_SIZE = 32", {"model_fn": False, "predict_fn": False}, 32, None),
        (MODEL_FN + "def transform_fn(m, b, c, a, context): pass", {"model_fn": False, "transform_fn": True}, 1, None),
        (MODEL_FN + "def input_fn(body, content_type, anything): pass", {"model_fn": False, "input_fn": True}, 1, None),
        (MODEL_FN + "def input_fn(body, content_type, context=None): pass", {"model_fn": False, "input_fn": True}, 1, None),
        (MODEL_FN + "def input_fn(body, content_type, strict=True): pass", {"model_fn": False, "input_fn": False}, 1, None),
        (MODEL_FN + "def input_fn(body, content_type, *, strict=True): pass", {"model_fn": False, "input_fn": False}, 1, None),
        (MODEL_FN + "def predict_fn(*args): pass", {"model_fn": False, "predict_fn": False}, 1, None),
        (MODEL_FN + "def predict_fn(data, model, **more): pass", {"model_fn": False, "predict_fn": False}, 1, None),
        ("def model_fn(model_dir, context): return {}", {"model_fn": True}, 1, None),
        ("class model_fn:\n    def __init__(self, model_dir): pass", {"model_fn": False}, 1, None),
        ("import functools\nmodel_fn = functools.partial(print, end='')", {"model_fn": False}, 1, None),
        (MODEL_FN + 'WARMUP = ("text/csv", b"1,2")', {"model_fn": False}, 1, ("text/csv", b"1,2")),
        (MODEL_FN + 'WARMUP = ("text/plain", "é")', {"model_fn": False}, 1, ("text/plain", "é".encode())),
    ],
)
def test_a_script_is_read_with_its_hooks_and_constants(script, source, hooks, size, warmup):
    loaded = load(script, source)
    assert {name: hook.wants_context for name, hook in loaded.hooks.items()} == hooks
    assert (loaded.max_batch_size, loaded.warmup) == (size, warmup)
    assert loaded.hook("output_fn") is None


EXPECTED = "expected is {}, and the request's context as one more if it wants it"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "inference.py has no model_fn(model_dir): a script must have one; it returns the loaded model"),
        (PREDICT_FN, "inference.py has no model_fn(model_dir): a script must have one; it returns the loaded model"),
        ("model_fn = 7", "model_fn in inference.py is int: a function was expected"),
        ("def model_fn(): pass", f"model_fn in inference.py takes 0 arguments: {EXPECTED.format('model_fn(model_dir)')}"),
        ("def model_fn(a, b, c): pass", f"model_fn in inference.py takes 3 arguments: {EXPECTED.format('model_fn(model_dir)')}"),
        (
            MODEL_FN + "def predict_fn(data): pass",
            f"predict_fn in inference.py takes 1 argument: {EXPECTED.format('predict_fn(data, model)')}",
        ),
        (
            MODEL_FN + "def transform_fn(model, body, accept): pass",
            f"transform_fn in inference.py takes 3 arguments: {EXPECTED.format('transform_fn(model, body, content_type, accept)')}",
        ),
        (
            MODEL_FN + "def output_fn(prediction, accept, *, context): pass",
            f"output_fn in inference.py takes context by name only: {EXPECTED.format('output_fn(prediction, accept)')}, by position",
        ),
        (
            MODEL_FN + "predict_fn = max",
            "predict_fn in inference.py does not tell its arguments, as some of C's functions do not: "
            + EXPECTED.format("predict_fn(data, model)"),
        ),
        (
            MODEL_FN + PREDICT_FN + "def transform_fn(model, body, content_type, accept): pass",
            "inference.py has transform_fn and predict_fn: transform_fn takes the place of these; keep one or the other",
        ),
        *(
            (MODEL_FN + f"MAX_BATCH_SIZE = {value}", f"MAX_BATCH_SIZE in inference.py is {value}: a whole number of 1 or more was expected")
            for value in ("0", "-1", "2.0", "True", "'8'", "None")
        ),
        (
            MODEL_FN + "MAX_BATCH_SIZE = 8\ndef transform_fn(model, body, content_type, accept): pass",
            (
                "inference.py has MAX_BATCH_SIZE = 8, so one call predicts for several requests: "
                "transform_fn cannot do that; use input_fn, predict_fn and output_fn"
            ),
        ),
        (
            MODEL_FN + "MAX_BATCH_SIZE = 8\ndef predict_fn(data, model, context): pass",
            (
                "inference.py has MAX_BATCH_SIZE = 8, so one call predicts for several requests: "
                "predict_fn cannot take the context of one; input_fn and output_fn can"
            ),
        ),
        *(
            (MODEL_FN + f"WARMUP = {value}", f"WARMUP in inference.py is {value}: (content type, body) was expected, as ")
            for value in ("'text/csv'", "('text/csv',)", "('text/csv', [1])", "(b'text/csv', b'1')", "7")
        ),
        ("def model_fn(model_dir)\n  pass", "inference.py is not valid Python: expected ':' (inference.py, line 1)"),
        ("import helper_that_is_not_there", "inference.py, line 1, imports helper_that_is_not_there, which is not installed in this image"),
        ("\n\nopen('/nowhere/at/all')", "importing inference.py, line 3, raised FileNotFoundError: [Errno 2] No such file"),
        ("from json import nothing_such", "importing inference.py, line 1, raised ImportError: cannot import name 'nothing_such'"),
        ("def f():\n    raise KeyError\nf()", "importing inference.py, line 2, raised KeyError"),
        ("import sys\nsys.exit('usage: me')", "importing inference.py, line 2, raised SystemExit: usage: me"),
    ],
)
def test_what_is_said_of_a_script_that_cannot_be_used(script, source, said):
    with pytest.raises(StartupError, match=f"^{re.escape(said)}"):
        load(script, source)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def predictfn(d, m): return 1", {"predictfn": "predict_fn"}),
        ("def predict(d, m): return 1\ndef input_fm(b, c): return b", {"predict": "predict_fn", "input_fm": "input_fn"}),
        ("def predict_fn(d, m): return predict(d)\ndef predict(d): return 1", {}),
        ("def predict_fn(d, m): return transform(d)\ndef transform(d): return d", {}),
        ("def transform_fn(m, b, c, a): return predict(b), a\ndef predict(d): return d", {}),
        ("MAX_BATCHSIZE = 8\nWARM_UP = ('text/csv', b'1')", {"MAX_BATCHSIZE": "MAX_BATCH_SIZE", "WARM_UP": "WARMUP"}),
        ("from os.path import join as predictfn\ndef loss_fn(a): return a\ndef helper(): return 1\nPREDICT = 1", {}),
    ],
)
def test_what_is_nearly_a_hook_is_named(script, caplog, source, told):
    path = user_code.find(script("def model_fn(model_dir): return 1\n" + source))
    assert path
    user_code.load(path)
    assert caplog.messages == [f"{path} has {name}, which nothing here makes use of: did you mean {meant}?" for name, meant in told.items()]


@pytest.mark.parametrize(
    ("files", "found"), [([], []), (["code/predict.py", "code/data.csv", "inference.py"], ["code/predict.py", "inference.py"])]
)
def test_python_files_where_a_script_might_have_been_meant(tmp_path, files, found):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert user_code.unused(tmp_path) == [tmp_path / name for name in found]


@pytest.mark.parametrize("helper", ["model/code/helper.py", "model/code/lib/helper.py", "model/code/helper/__init__.py"])
def test_a_script_imports_what_lies_beside_it(script, helper):
    script("NAME = 'helped'", helper)
    assert load(script, "from helper import NAME\nMAX_BATCH_SIZE = len(NAME)\n" + MODEL_FN).max_batch_size == len("helped")


def test_an_error_in_a_helper_is_told_by_the_helpers_line(script):
    script("\n\n1 / 0", "model/code/helper.py")
    with pytest.raises(StartupError, match=r"^importing helper\.py, line 3, raised ZeroDivisionError: division by zero$"):
        load(script, "import helper")


def test_a_script_is_known_under_its_own_name_as_pickles_and_dataclasses_need(script):
    loaded = load(script, "import dataclasses\n@dataclasses.dataclass\nclass A:\n    b: int\n" + MODEL_FN)
    assert sys.modules["inference"].model_fn is loaded.hooks["model_fn"].function


def test_a_file_that_is_not_python(script, tmp_path):
    script("", "model/code/inference.txt")
    with pytest.raises(StartupError, match=r"inference\.txt is not a Python file: its name must end in \.py"):
        user_code.import_script(tmp_path / "model/code/inference.txt")


@pytest.mark.parametrize(
    ("error", "text"),
    [(ValueError("two\n  lines"), "ValueError: two lines"), (KeyError(), "KeyError"), (KeyError("a"), "KeyError: 'a'")],
)
def test_an_error_in_one_line(error, text):
    assert user_code.describe(error) == text
