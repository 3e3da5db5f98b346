"""An artifact of a fleet: the same bytes for the same model, whole or not there, and what is broken is seen."""

import gzip
import io
import json
import tarfile

import joblib
import numpy as np
import pytest

from container import bundles
from container.bundles import BundleError, Record

RECORD = Record("a/b", "digest", 365, {"mae": 1.5})
CODE = {"inference.py": b"def model_fn(directory): ...\n", "deep/er.py": b"x = 1\n"}


def write(directory, model=None, code=CODE, libraries=("numpy",), name="a.tar.gz"):
    path = directory / name
    digest = bundles.write(path, {"weights": np.arange(3.0)} if model is None else model, RECORD, libraries, code, ".algo-1-")
    return path, digest


def test_what_is_in_it(tmp_path):
    path, _ = write(tmp_path)
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["fleet.json", "code/deep/er.py", "code/inference.py", "model.joblib", "versions.json"]
        assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in archive} == {(0, 0, 0, "", 0o644)}
        archive.extractall(tmp_path / "model", filter="data")
    assert joblib.load(tmp_path / "model/model.joblib")["weights"].tolist() == [0, 1, 2]
    assert (tmp_path / "model/code/deep/er.py").read_bytes() == CODE["deep/er.py"]
    assert list(json.loads((tmp_path / "model/versions.json").read_text())["libraries"]) == ["numpy"]


def test_without_code_there_is_no_code(tmp_path):
    with tarfile.open(write(tmp_path, code={})[0]) as archive:
        assert archive.getnames() == ["fleet.json", "model.joblib", "versions.json"]


def test_libraries_that_the_model_is_made_of_are_told(tmp_path):
    from sklearn.linear_model import LinearRegression

    with tarfile.open(write(tmp_path, LinearRegression().fit([[0], [1]], [0, 1]), libraries=())[0]) as archive:
        file = archive.extractfile("versions.json")
        assert file is not None
        assert list(json.load(file)["libraries"]) == ["numpy", "sklearn"]


def test_the_same_model_gives_the_same_bytes(tmp_path):
    first, digest = write(tmp_path)
    again, same = write(tmp_path, code=dict(reversed(CODE.items())), name="b.tar.gz")
    assert first.read_bytes() == again.read_bytes()
    assert digest == same
    assert first.read_bytes()[4:8] == bytes(4), "gzip's time"
    assert write(tmp_path, model={"weights": np.arange(4.0)}, name="c.tar.gz")[1] != digest


def test_it_is_read_back(tmp_path):
    record = bundles.read(write(tmp_path)[0])
    assert (record.key, record.made_from, record.rows, record.metrics) == ("a/b", "digest", 365, {"mae": 1.5})


def repacked(content, change):
    """A bundle whose files were changed: {name: bytes} -> the same."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    return bundles._packed(change(files))


BREAK = {
    "truncated": lambda content: content[:-30],
    "empty": lambda content: b"",
    "no gzip": lambda content: b"x" * 2000,
    "no archive": lambda content: gzip.compress(b"x" * 2000),
    "a byte": lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
    "another model": lambda content: repacked(content, lambda files: {**files, "model.joblib": b"other"}),
    "a file less": lambda content: repacked(content, lambda files: {name: data for name, data in files.items() if name != "versions.json"}),
    "a file more": lambda content: repacked(content, lambda files: {**files, "more": b""}),
    "another record": lambda content: repacked(content, lambda files: {**files, "fleet.json": b'{"key": 1}'}),
    "record of text": lambda content: repacked(content, lambda files: {**files, "fleet.json": b"\xff"}),
    "record last": lambda content: repacked(content, lambda files: dict(reversed(files.items()))),
}


@pytest.mark.parametrize("how", BREAK)
def test_what_is_broken_is_seen(tmp_path, how):
    path, _ = write(tmp_path)
    path.write_bytes(BREAK[how](path.read_bytes()))
    with pytest.raises(BundleError, match=r"a\.tar\.gz"):
        bundles.read(path)


def test_what_is_not_there_is_no_broken_bundle(tmp_path):
    with pytest.raises(FileNotFoundError):
        bundles.read(tmp_path / "a.tar.gz")


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path, _ = write(tmp_path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, model={"other": 1})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_only_a_hosts_own_unfinished_files_are_swept(tmp_path):
    for name in (".algo-1-aa.unfinished", ".algo-2-aa.unfinished", "a.tar.gz", ".algo-1-b"):
        (tmp_path / name).touch()
    assert bundles.sweep(tmp_path, bundles.mark("algo-1")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".algo-1-b", ".algo-2-aa.unfinished", "a.tar.gz"]
