"""manifest.jsonl: one line a key at the end, whatever came before."""

import json
import resource
from contextlib import contextmanager

import pytest

from container import manifest
from container.manifest import Entry, Manifest, ManifestError

A, B = Entry("a", 0.5, 365, {"mae": 1.5}, "a.tar.gz", "f00"), Entry("b", rows=3, error="ValueError: no (x.py:1 in fit)")


def test_lines_are_there_at_once_and_sorted_in_the_end(tmp_path):
    path = tmp_path / "manifest.jsonl"
    with Manifest(path) as found:
        found.add(B)
        found.add(A)
        assert [entry.key for entry in manifest.read(path)] == ["b", "a"]
    assert list(manifest.read(path)) == [A, B]
    assert json.loads(path.read_text().splitlines()[0]) == {
        "key": "a", "seconds": 0.5, "rows": 365, "metrics": {"mae": 1.5}, "file": "a.tar.gz", "sha256": "f00", "error": None,
    }  # fmt: skip


def test_a_later_line_takes_the_place_of_an_earlier_one(tmp_path):
    path = tmp_path / "manifest.jsonl"
    again = Entry("b", 0.1, 3, file="b.tar.gz", sha256="ba1")
    with Manifest(path) as found:
        found.add(B)
        found.add(A)
    with Manifest(path) as found:
        assert found.get("b") == B
        assert found.get("c") is None
        found.add(again)
        assert found.get("b") == again
    assert list(manifest.read(path)) == [A, again]


@pytest.mark.parametrize("torn", ['{"key": "b", "sec', "\n", "[1]", '{"a": 1}', "\xff", '{"key": "b"'])
def test_a_killed_run_leaves_what_it_had_written(tmp_path, torn):
    path = tmp_path / "manifest.jsonl"
    with Manifest(path) as found:
        found.add(A)
    path.write_text(path.read_text() + torn, encoding="latin-1")
    with Manifest(path) as found:
        found.add(B)
        assert found.get("a") == A
    assert list(manifest.read(path)) == [A, B]


@contextmanager
def full_after(size):
    """No file may grow beyond this; as a disk that is full, an error of each write and each flush."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_is_told_by_the_name_of_the_file(tmp_path):
    path = tmp_path / "manifest.jsonl"
    with Manifest(path) as found:
        found.add(B)
        with full_after(path.stat().st_size + 9):
            for call in (lambda: found.add(A), lambda: found.get("b")):
                with pytest.raises(ManifestError, match=rf"{path} cannot be written: File too large"):
                    call()


def test_a_disk_that_is_full_in_the_beginning_is_told(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"key": "b"')
    with full_after(11), pytest.raises(ManifestError, match="cannot be written"):
        Manifest(path)


def test_a_disk_that_is_full_in_the_end_leaves_the_lines(tmp_path):
    path = tmp_path / "manifest.jsonl"
    found = Manifest(path)
    found.add(B)
    found.add(A)
    with full_after(20), pytest.raises(ManifestError):
        found.__exit__(None, None, None)
    assert list(manifest.read(path)) == [B, A]
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_does_not_hide_what_has_ended_the_block(tmp_path):
    found = Manifest(tmp_path / "manifest.jsonl")
    found.add(A)
    with full_after(20):
        found.__exit__(ValueError, ValueError(), None)


def test_it_is_sorted_when_a_run_fails_too(tmp_path):
    path = tmp_path / "manifest.jsonl"

    def fail():
        with Manifest(path) as found:
            found.add(B)
            found.add(A)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(manifest.read(path)) == [A, B]
    assert list(tmp_path.iterdir()) == [path]
