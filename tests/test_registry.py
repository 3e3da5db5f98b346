"""The ledger of a shard, and the catalogue of all: what a death, a full disk or a rewrite leaves of them."""

import errno
import json
import os

import pytest

from container import registry
from container.registry import Catalogue, Ledger


@pytest.fixture
def ledger(tmp_path):
    """Opens the ledger of a slot, as a shard and its successors do."""
    opened = []

    def open_ledger(slot=0):
        opened.append(Ledger(tmp_path / f"models-{slot}.jsonl"))
        return opened[-1]

    yield open_ledger
    for each in opened:
        each.close()


def names(catalogue, limit=1000):
    """All names, page by page."""
    found, after = [], ""
    while True:
        page, after = catalogue.page(limit, after)
        found += [name for name, _ in page]
        if not after:
            return found


@pytest.mark.parametrize("name", ["a", "a/b", "é\n", 'q"\\', "\u2028", "x" * 1024, " ", "\x00"])
def test_a_successor_and_the_catalogue_know_what_was_loaded(ledger, tmp_path, name):
    first = ledger()
    first.add(name, "/url")
    first.add("gone", "/url")
    first.remove("gone")
    assert ledger().models == {name: "/url"}
    assert Catalogue(tmp_path).page(10) == ([(name, "/url")], "")


def test_nothing_is_removed_twice(ledger):
    one = ledger()
    one.remove("never there")
    one.add("a", "/1")
    one.remove("a")
    one.remove("a")
    assert ledger().models == {}


@pytest.mark.parametrize("torn", [b"{", b'{"name": "b", "url": "/b"}', b"\xff"])
def test_half_a_line_of_one_that_died_is_not_believed_and_spoils_nothing(ledger, tmp_path, torn):
    catalogue = Catalogue(tmp_path)
    ledger().add("a", "/a")
    with (tmp_path / "models-0.jsonl").open("ab") as file:
        file.write(torn)
    assert names(catalogue) == ["a"], "it may still be in the middle of being written"
    successor = ledger()
    assert successor.models == {"a": "/a"}
    successor.add("c", "/c")
    assert names(catalogue) == names(Catalogue(tmp_path)) == ["a", "c"]
    assert ledger().models == {"a": "/a", "c": "/c"}


def test_a_full_disk_adds_nothing_and_leaves_no_half_line(ledger, tmp_path, monkeypatch):
    one = ledger()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    with pytest.raises(OSError, match="the disk is full"):
        one.add("a", "/a")
    monkeypatch.undo()
    assert one.models == {}
    one.add("b", "/b")
    assert names(Catalogue(tmp_path)) == ["b"]


@pytest.mark.parametrize("room", [0, 5], ids=["no byte", "half a line"])
def test_a_full_disk_keeps_no_model_in_memory_and_the_next_change_tells_of_it(ledger, tmp_path, monkeypatch, caplog, room):
    one, write = ledger(), os.write
    for name in ("a", "b"):
        one.add(name, "/url")

    def full(file, data):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:room])

    monkeypatch.setattr(os, "write", full)
    one.remove("a")
    monkeypatch.undo()
    assert "does not say yet that 'a' is unloaded" in caplog.text
    assert (one.models, names(Catalogue(tmp_path))) == ({"b": "/url"}, ["a", "b"])
    one.add("a", "/again")
    assert Catalogue(tmp_path).page(10)[0] == [("a", "/again"), ("b", "/url")]
    one.remove("a")
    assert names(Catalogue(tmp_path)) == ["b"]
    assert ledger().models == {"b": "/url"}


def test_a_list_that_cannot_be_written_anew_is_written_on(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "REWRITE_AFTER", 0)
    one = ledger()
    (tmp_path / "models-0.new").mkdir()
    for name in ("a", "b"):
        one.add(name, "/url")
    one.remove("a")
    assert names(Catalogue(tmp_path)) == ["b"]
    (tmp_path / "models-0.new").rmdir()


@pytest.mark.parametrize("torn", [b"", b'{"name": "b", "u'])
def test_a_successor_on_a_full_disk_goes_on_with_the_list_that_is_there(ledger, tmp_path, torn):
    ledger().add("a", "/url")
    with (tmp_path / "models-0.jsonl").open("ab") as file:
        file.write(torn)
    (tmp_path / "models-0.new").mkdir()
    one = ledger()
    assert one.models == {"a": "/url"}
    one.add("c", "/url")
    assert names(Catalogue(tmp_path)) == ["a", "c"]
    (tmp_path / "models-0.new").rmdir()


def test_the_first_list_of_all_on_a_full_disk(tmp_path):
    (tmp_path / "models-0.new").mkdir()
    with pytest.raises(OSError, match=r"models-0\.jsonl"):
        Ledger(tmp_path / "models-0.jsonl")


def test_lines_about_models_that_are_gone_do_not_pile_up(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "REWRITE_AFTER", 10)
    catalogue, one = Catalogue(tmp_path), ledger()
    one.add("stays", "/stays")
    for number in range(100):
        one.add(str(number), "/url")
        one.remove(str(number))
        if number % 7 == 0:
            assert names(catalogue) == ["stays"]
    assert names(catalogue) == ["stays"]
    assert len((tmp_path / "models-0.jsonl").read_bytes().splitlines()) < 20
    assert ledger().models == {"stays": "/stays"}


def test_two_rewrites_between_two_looks_are_seen(ledger, tmp_path):
    """A file's number on the disk may be used again for the next file but one."""
    catalogue = Catalogue(tmp_path)
    for round_ in range(6):
        ledger().add(f"{round_}", "/url")
        if round_ % 2:
            assert names(catalogue) == [str(number) for number in range(round_ + 1)]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 21])
@pytest.mark.parametrize("limit", [1, 10, 1000])
def test_pages_have_every_name_once_and_no_empty_page_follows(ledger, tmp_path, count, limit):
    shards = [ledger(slot) for slot in range(3)]
    every = [f"m{number}" for number in range(count)]
    for number, name in enumerate(every):
        shards[number % 3].add(name, "/url")
        shards[(number + 1) % 3].add(name, "/url")  # a replica
    catalogue, after, pages = Catalogue(tmp_path), "", 0
    found: list[str] = []
    while True:
        page, after = catalogue.page(limit, after)
        found += [name for name, _ in page]
        pages += 1
        if not after:
            break
        assert len(page) == limit
    assert found == sorted(every)
    assert pages == max(1, -(-count // limit))


def test_a_page_goes_on_behind_a_name_that_is_gone(ledger, tmp_path):
    one, catalogue = ledger(), Catalogue(tmp_path)
    for name in "abcd":
        one.add(name, "/url")
    assert catalogue.page(2)[1] == "b"
    one.remove("b")
    assert [name for name, _ in catalogue.page(2, "b")[0]] == ["c", "d"]


def test_lines_are_json_one_each(ledger, tmp_path):
    ledger().add("a\nb", "/url")
    first, line = (tmp_path / "models-0.jsonl").read_bytes().splitlines()
    assert json.loads(line) == {"name": "a\nb", "url": "/url"}
    assert len(first) == 32
