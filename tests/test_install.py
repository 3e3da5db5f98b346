"""requirements/install.py: what happens before there is a pip."""

import hashlib
import os
import re
import sys

import pytest

from requirements import install

INDEX_PAGE = '<a href="../files/pip-{0}.tar.gz#sha256=00">x</a> <a href="../files/pip-{0}-py3-none-any.whl#sha256=00">x</a>'


@pytest.fixture
def index(monkeypatch):
    """An index that has the locked pip; its wheel's bytes can be changed."""
    version, _ = install.locked("pip")
    files = {
        "https://pypi.org/simple/pip/": INDEX_PAGE.format(version).encode(),
        f"https://pypi.org/simple/files/pip-{version}-py3-none-any.whl": b"wheel",
    }

    def read(url):
        if url not in files:
            raise OSError(f"{url} is not there")
        return files[url]

    monkeypatch.setattr(install, "INDEX", "https://pypi.org/simple")
    monkeypatch.setattr(install, "read", read)
    return files


@pytest.mark.parametrize("package", ["pip", "uv"])
def test_the_bootstrap_lock_is_read(package):
    version, hashes = install.locked(package)
    assert re.fullmatch(r"[\d.]+", version)
    assert hashes
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes)


def test_a_package_that_is_not_locked_is_named():
    with pytest.raises(RuntimeError, match="does not lock flask"):
        install.locked("flask")


def test_pip_is_fetched(index, tmp_path, monkeypatch):
    version, _ = install.locked("pip")
    monkeypatch.setattr(install, "locked", lambda package: (version, {hashlib.sha256(b"wheel").hexdigest()}))
    wheel = install.fetch_pip(tmp_path)
    assert (wheel.name, wheel.read_bytes()) == (f"pip-{version}-py3-none-any.whl", b"wheel")


def test_another_wheel_than_the_locked_one_is_refused(index, tmp_path):
    with pytest.raises(RuntimeError, match="its sha256 differs"):
        install.fetch_pip(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", [b"<a href='nothing'>", None], ids=["not listed", "unreachable"])
def test_an_index_without_pip_says_what_would_help(index, tmp_path, page):
    del index["https://pypi.org/simple/pip/"]
    if page is not None:
        index["https://pypi.org/simple/pip/"] = page
    with pytest.raises(RuntimeError, match=r"apt-get install python3-venv.*https://pypi\.org/simple/pip/"):
        install.fetch_pip(tmp_path)


def test_only_https_is_read():
    with pytest.raises(RuntimeError, match="not an https address"):
        install.read("file:///etc/passwd")


def test_uv_is_told_what_only_pip_was_told(monkeypatch):
    monkeypatch.setattr(os, "environ", {"PIP_INDEX_URL": "https://pips", "PIP_CERT": "pips.crt", "SSL_CERT_FILE": "own.crt"})
    told = install.uv_environment()
    assert (told["UV_DEFAULT_INDEX"], told["SSL_CERT_FILE"]) == ("https://pips", "own.crt")


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 14, 0)])
def test_another_python_is_refused(monkeypatch, version):
    monkeypatch.setattr(sys, "argv", ["install.py", "venv", "lock"])
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit, match=r"3\.11 to 3\.13 are supported"):
        install.main()
