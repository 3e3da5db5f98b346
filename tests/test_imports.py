"""The house's order: imports inside container/ point down, and one module reads the environment."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {path.stem: path for path in sorted((ROOT / "container").glob("*.py")) if path.stem != "__init__"}

UPWARDS = [
    *("settings", "message", "logs", "events", "errors", "namespace", "registry", "keys"),
    *("media", "arrays", "decoding", "encoding", "codecs"),
    *("resources", "artifact", "spared", "metrics", "user_code", "versions", "predictor", "batching"),
    *("rows", "pieces", "parquet", "prepare"),
    *("memory", "exchange", "status", "proxy", "peers", "isolation", "preload", "app", "models", "multi_app"),
    *("worker", "gunicorn_conf", "supervisor", "serving"),
    *("training_job", "training_script", "training"),
    *("shards", "bundles", "manifest", "fitting", "pools", "progress", "fleet"),
    *("mms_failures", "model_handler", "mms", "dockerd_entrypoint"),
    "__main__",
]
"""Every module of container/; each may import those before it."""

PUBLIC = {"serve": {"serving"}, "train": {"training"}, "wsgi.py": {"settings", "preload", "app", "multi_app", "exchange"}}
"""What the top of the repository imports: it decides nothing itself."""


def imported(source: str) -> set[str]:
    """Names of the modules of container/ that a source imports, wherever in it; relative imports count as an unknown one."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("container.")}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add("(relative)")
        elif isinstance(node, ast.ImportFrom) and node.module == "container":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("container."):
            found.add(str(node.module).split(".")[1])
    return found


def environment_uses(source: str) -> list[str]:
    """Every way to the process's environment in a source."""
    ways = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ways and isinstance(node.value, ast.Name) and node.value.id == "os":
            found.append(f"line {node.lineno}: os.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [f"line {node.lineno}: from os import {alias.name}" for alias in node.names if alias.name in ways]
    return found


def test_every_module_has_a_place():
    missing = [name for name in MODULES if name not in UPWARDS]
    assert not missing, "give it a place in UPWARDS, as low as its imports allow"
    assert [name for name in UPWARDS if name not in MODULES] == [], "in UPWARDS, but not in container/"


def rooms() -> list[list[str]]:
    """The modules of each row of the table in docs/architecture.md."""
    table = (ROOT / "docs" / "architecture.md").read_text().partition("## The rooms")[2].partition("## Starting")[0]
    return [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]


def test_every_module_is_in_the_table_of_rooms():
    assert sorted(name for row in rooms() for name in row) == sorted(set(MODULES) - {"__main__"})


@pytest.mark.parametrize("row", range(len(rooms())), ids=lambda row: "-".join(rooms()[row]))
def test_rooms_import_what_stands_above_or_beside_them(row):
    allowed = {name for above in rooms()[: row + 1] for name in above}
    assert set().union(*(imported(MODULES[name].read_text()) for name in rooms()[row])) <= allowed


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    allowed = set(UPWARDS[: UPWARDS.index(name)])
    assert imported(MODULES[name].read_text()) <= allowed


@pytest.mark.parametrize("name", PUBLIC)
def test_the_top_imports_little(name):
    assert imported((ROOT / name).read_text()) == PUBLIC[name]


@pytest.mark.parametrize("path", [*MODULES.values(), ROOT / "wsgi.py", ROOT / "serve", ROOT / "train"], ids=lambda path: path.name)
def test_only_settings_reads_the_environment(path):
    assert bool(environment_uses(path.read_text())) == (path.stem == "settings")


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import container.app", {"app"}),
        ("from container import logs, errors", {"logs", "errors"}),
        ("def f():\n    from container.app import App", {"app"}),
        ("from .app import App", {"(relative)"}),
        ("import containers.app\nfrom contain import er", set()),
    ],
)
def test_imports_are_seen(source, names):
    assert imported(source) == names


@pytest.mark.parametrize(
    "source",
    ["import os\nos.environ['A']", "import os\ndef f(): return os.getenv('A')", "from os import environ", "import os\nos.environb"],
)
def test_uses_of_the_environment_are_seen(source):
    assert len(environment_uses(source)) == 1
