"""The repository's frame: names at the top, lock files that agree, an image that SageMaker accepts."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from container.serving import find_nginx

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {path.stem: path.read_text() for path in sorted((ROOT / "requirements").glob("*.txt"))}
DOCKERFILE = (ROOT / "Dockerfile").read_text()

ENTRY = re.compile(r"^([\w.-]+)==(\S+)(?: ; [^\\\n]+)?((?: \\\n    --hash=\S+)*)$", re.MULTILINE)
"""One package of a lock: name, version, hashes."""

TOP = (
    *("README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "Makefile", ".ci/run", "Dockerfile", ".dockerignore"),
    *("serve", "train", "wsgi.py", "nginx.conf", "container", "local_test", "examples", "benchmarks", "tests", "docs"),
)


def locked(name: str) -> dict[str, str]:
    """Package -> version of a lock file."""
    return {package: version for package, version, _ in ENTRY.findall(LOCKS[name])}


def declared(*groups: str) -> list[Requirement]:
    """The project's requirements and those of some dependency groups, as pyproject.toml bounds them."""
    rows = list(PROJECT["project"]["dependencies"])
    for group in groups:
        rows += [row for row in PROJECT["dependency-groups"][group] if isinstance(row, str)]
    return [Requirement(row) for row in rows]


@pytest.mark.parametrize("name", TOP)
def test_top_level_names(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize(
    "path", ["serve", "train", ".ci/run", "requirements/install.py", *sorted(map(str, Path("local_test").glob("*.sh")))]
)
def test_programs_are_executable(path):
    assert os.access(ROOT / path, os.X_OK)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_hashes(lock):
    lines = [line for line in LOCKS[lock].splitlines() if line and not line.lstrip().startswith(("#", "--hash"))]
    entries = ENTRY.findall(LOCKS[lock])
    assert len(entries) == len(lines) > 0
    assert all("--hash=sha256:" in hashes for _, _, hashes in entries)


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_name_no_place(lock):
    assert not re.search(r"https?://|file:|--index-url|--find-links|-c /|-r /", LOCKS[lock])


@pytest.mark.parametrize(("lock", "groups"), [("serve", []), ("image", ["image"]), ("mms", ["mms"]), ("dev", ["dev", "bootstrap"])])
def test_locks_keep_to_the_bounds_of_pyproject(lock, groups):
    versions = locked(lock)
    for requirement in declared(*groups):
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier
        assert any(part.operator == "<" for part in requirement.specifier), f"{requirement.name} has no upper bound"


@pytest.mark.parametrize("lock", ["image", "mms", "dev"])
def test_locks_contain_what_serves(lock):
    assert locked("serve").items() <= locked(lock).items()


@pytest.mark.parametrize("lock", LOCKS)
def test_all_locks_agree_on_what_the_project_depends_on(lock):
    ours = {canonicalize_name(requirement.name) for requirement in declared()}
    differing = {name: version for name, version in locked(lock).items() if name in ours and locked("serve")[name] != version}
    assert not differing


def instruction(word: str) -> list[str]:
    """The arguments of every instruction of one kind in the Dockerfile."""
    return re.findall(rf"^{word} (.+)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


def test_the_stages():
    """Where no target is named the last is built. What `server` is made of comes first: the classic builder builds all before a target."""
    assert instruction("ARG")[0] == "BASE=debian:trixie-slim"
    assert instruction("FROM") == ["${BASE} AS builder", "${BASE} AS server", "server AS mms", "server"]


def test_the_entry_points_are_the_programs_themselves():
    entry_points = [["python3", "-m", "container"], ["python3", "-m", "container.dockerd_entrypoint"]]
    assert [json.loads(words) for words in instruction("ENTRYPOINT")] == entry_points
    assert [json.loads(words) for words in instruction("CMD")] == [["serve"]] * 2


def test_the_image_says_that_it_binds_to_any_port():
    assert "com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true" in instruction("LABEL")[0]


def test_the_image_installs_from_locks_only():
    installs = [line for line in DOCKERFILE.splitlines() if re.search(r"\bpip3? install\b", line)]
    assert installs
    assert all("--require-hashes" in line and "-r /tmp/requirements/" in line for line in installs)


def test_the_dockerfile_needs_no_buildkit():
    assert "<<" not in DOCKERFILE
    assert not re.search(r"--mount=|--chmod=|--link", DOCKERFILE)


def test_the_build_context_is_there():
    names = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert "container" in names
    assert [name for name in names if not list(ROOT.glob(name))] == []


@pytest.mark.parametrize("name", ["nginx.conf", "container/mms_nginx.conf"])
def test_nginx_takes_the_configuration_as_it_stands(tmp_path, name):
    """Only where it writes is another place here, so that nothing is left behind."""
    configuration = tmp_path / "nginx.conf"
    configuration.write_text((ROOT / name).read_text().replace("/tmp/", f"{tmp_path}/"))
    command = [find_nginx(os.environ["PATH"]), "-t", "-q", "-e", "stderr", "-p", str(tmp_path), "-c", str(configuration)]
    tested = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (tested.returncode, tested.stderr) == (0, "")
