"""Which shard nginx takes a model to belong to."""

import re
from pathlib import Path

import pytest

from container import proxy


def entries(block, head):
    """What stands between the braces of one map or split_clients of a configuration."""
    found = re.search(rf"{re.escape(head)} \{{(.*?)\}}\n", block, re.DOTALL)
    assert found, head
    return found[1]


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 96, 180, 300, 512])
def test_every_part_has_its_share(parts):
    """nginx refuses shares of more than 100 percent in all."""
    written = proxy._evenly(parts)
    shares = [float(share) for share in re.findall(r"([\d.]+)% \d+;", written)]
    assert re.findall(r"(\d+);", written) == [str(part) for part in range(parts)]
    assert all(abs(share - 100 / parts) <= 0.01 for share in [*shares, 100 - sum(shares)] if parts < 500)
    assert sum(shares) < 100 or parts == 1


@pytest.mark.parametrize(("shards", "replicas"), [(1, 1), (3, 1), (3, 2), (3, 3)])
def test_copies_are_in_shards_of_their_own(shards, replicas):
    block = proxy.http_block(Path("/run/x"), shards, replicas)
    found = {(int(o), int(c)): int(s) for o, c, s in re.findall(r'"(\d+):(\d+)" (\d+);', entries(block, 'map "$owner:$replica" $shard'))}
    assert set(found) == {(owner, copy) for owner in range(shards) for copy in range(replicas)}
    for owner in range(shards):
        holders = [found[owner, copy] for copy in range(replicas)]
        assert holders[0] == owner
        assert len(set(holders)) == replicas
    assert re.findall(r"upstream (\w+)", block) == ["status", *(f"shard{shard}" for shard in range(shards))]


@pytest.mark.parametrize("name", ["a", "a/b", "/a", "a/", "a\nb", "é", "x/invoke", "invoke", "_load/a", "a b"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/models/{}/invoke"), ("GET", "/models/{}"), ("DELETE", "/models/{}"), ("POST", "/_load/{}")]
)
def test_the_name_that_decides_is_the_models(method, path, name):
    """By nginx's own expressions, the first that fits, as Python reads them."""
    block = proxy.http_block(Path("/run/x"), 2, 1)
    expressions = re.findall(r'"~(.*?)" \$of', entries(block, 'map "$request_method $uri" $model'))
    asked = f"{method} {path.format(name)}"
    matches = (re.match(expression.replace("(?<", "(?P<"), asked) for expression in expressions)
    found = next(match for match in matches if match)
    assert list(found.groupdict().values()) == [name]


def test_orders_that_shards_give_are_not_for_clients():
    for location in re.findall(r"location (?:~ )?\S*/_.*?\}", proxy.server_block(), re.DOTALL):
        assert "internal;" in location
    assert "internal;" in proxy.server_block()


def test_any_shard_takes_an_order():
    assert proxy.servers(Path("/run/x"), 2) == "server unix:/run/x/shard-0.sock max_fails=0; server unix:/run/x/shard-1.sock max_fails=0;"
