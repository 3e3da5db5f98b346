"""versions.json: what is written, and what a difference leads to."""

import json
import pickle
import platform
import zlib

import numpy
import pytest

from container import versions
from container.errors import StartupError

PYTHON = platform.python_version()
MAJOR, MINOR = (int(part) for part in numpy.__version__.split(".")[:2])


def artifact(directory, python=PYTHON, **libraries):
    """An artifact that says what made it."""
    (directory / versions.FILE).write_text(json.dumps({"python": python, "libraries": libraries}))
    return directory


def test_what_is_recorded_is_what_is_imported_and_compares_silently(tmp_path):
    recorded = json.loads(versions.record(tmp_path).read_text())
    assert recorded["python"] == PYTHON
    assert recorded["libraries"]["numpy"] == numpy.__version__
    assert versions.check(tmp_path, allow_mismatch=False) == []


def test_libraries_by_name_and_none_that_is_not_installed(tmp_path):
    recorded = json.loads(versions.record(tmp_path, ["sklearn", "catboost"]).read_text())
    assert list(recorded["libraries"]) == ["sklearn"]
    assert "sklearn" in versions.installed()


@pytest.mark.parametrize(
    ("then", "now", "distance"),
    [
        ("1.9.1", "1.9.1", versions.SAME),
        ("1.9.0", "1.9.1", versions.SAME),
        ("1.9", "1.9.0rc1", versions.SAME),
        ("1.4.2", "1.9.1", versions.MINOR),
        ("1.9.1", "1.4.2", versions.MINOR),
        ("1.26.4", "2.0.0", versions.MAJOR),
        ("0.14.1", "0.14.9", versions.SAME),
        ("0.13.0", "0.14.0", versions.MAJOR),
        ("0.24.2", "1.0.0", versions.MAJOR),
        ("1!2.3", "2.3", versions.SAME),
        ("main", "main", versions.SAME),
        ("main", "1.2", versions.MINOR),
    ],
)
def test_distance(then, now, distance):
    assert versions._distance(then, now) == distance


@pytest.mark.parametrize(
    ("libraries", "warnings"),
    [
        ({"numpy": f"{MAJOR}.{MINOR}.999"}, []),
        ({"numpy": f"{MAJOR}.{MINOR + 1}.0"}, [f"made with numpy {MAJOR}.{MINOR + 1}.0, but numpy {numpy.__version__} is here"]),
        ({"python": "3.1.0"}, [f"made with python 3.1.0, but python {PYTHON} is here"]),
        ({"catboost": "1.2.3"}, ["catboost is not installed here"]),
    ],
)
def test_patch_is_silent_and_minor_warns(tmp_path, libraries, warnings):
    found = versions.check(artifact(tmp_path, **libraries), allow_mismatch=False)
    assert len(found) == len(warnings)
    assert all(expected in line for expected, line in zip(warnings, found, strict=True))


def test_major_refuses_unless_allowed(tmp_path):
    artifact(tmp_path, numpy=f"{MAJOR - 1}.0.0", python="2.7.18")
    with pytest.raises(StartupError, match=r"made with python 2\.7\.18.*made with numpy .*MODEL_SERVER_ALLOW_VERSION_MISMATCH"):
        versions.check(tmp_path, allow_mismatch=False)
    assert len(versions.check(tmp_path, allow_mismatch=True)) == 2


USED = pickle.dumps({"made by": "catboost.core"})
UNUSED = pickle.dumps({"made by": "somebody"})
COMPRESSED = zlib.compress(USED)


@pytest.mark.parametrize(("content", "refused"), [(USED, True), (UNUSED, False), (COMPRESSED, False), (b"", False), (None, False)])
def test_missing_library_refuses_only_where_the_artifact_is_seen_to_need_it(tmp_path, content, refused):
    assert refused == is_refused(tmp_path, content)


@pytest.mark.parametrize(("content", "refused"), [(USED, True), (UNUSED, False), (COMPRESSED, True), (None, True)])
def test_major_mismatch_refuses_unless_the_artifact_is_seen_not_to_need_it(tmp_path, monkeypatch, content, refused):
    monkeypatch.setattr(versions, "_version", lambda name: "2.0.0")
    assert refused == is_refused(tmp_path, content)


def is_refused(directory, content):
    """Whether an artifact made with catboost 1.2.3 is refused; if not, there is a warning."""
    artifact(directory, catboost="1.2.3")
    if content is not None:
        (directory / "model.pkl").write_bytes(content)
    try:
        assert len(versions.check(directory, allow_mismatch=False)) == 1
    except StartupError as error:
        return "catboost" in str(error)
    return False


def test_missing_spacy_refuses_where_there_is_a_pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "_version", lambda name: None)
    artifact(tmp_path, spacy="3.8.0")
    assert len(versions.check(tmp_path, allow_mismatch=False)) == 1
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "meta.json").write_text('{"lang": "en", "spacy_version": ">=3.8.0,<3.9.0"}')
    with pytest.raises(StartupError, match="spacy is not installed here"):
        versions.check(tmp_path, allow_mismatch=False)


def test_no_record_no_warnings(tmp_path):
    assert versions.check(tmp_path, allow_mismatch=False) == []


@pytest.mark.parametrize("text", ["[]", "{", '{"python": 3, "libraries": {}}', '{"python": "3.11.0"}'])
def test_somebody_elses_versions_json_is_a_warning(tmp_path, text):
    (tmp_path / versions.FILE).write_text(text)
    (warning,) = versions.check(tmp_path, allow_mismatch=False)
    assert "nothing was compared" in warning
