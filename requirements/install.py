#!/usr/bin/env python3
"""Makes a virtual environment from a lock file: `install.py DIRECTORY LOCK [OPTIONAL]`, with nothing but a Python 3.11 to 3.13.

Every package is checked against the hashes of the lock. uv does the installing, four times as fast as pip; where it cannot (an index
or a proxy that only pip is configured for), pip does. A Python without ensurepip (Debian without python3-venv) fetches pip itself.

OPTIONAL is a lock with packages that exist as source only: they are built where a C compiler and Python's headers are, else left out.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urljoin

BOOTSTRAP = Path(__file__).with_name("bootstrap.txt")
INDEX = os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
SUPPORTED = ((3, 11), (3, 14))


def main() -> None:
    """Read the command line and install; one line on stderr and exit code 1 where that fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("lock", type=Path)
    parser.add_argument("optional", type=Path, nargs="?")
    arguments = parser.parse_args()
    if not SUPPORTED[0] <= sys.version_info[:2] < SUPPORTED[1]:
        sys.exit(f"install.py: this is Python {sys.version.split()[0]}; 3.11 to 3.13 are supported")
    try:
        python = create(arguments.directory)
        install(python, arguments.lock)
        if arguments.optional:
            build(python, arguments.optional)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"install.py: {error}")


def create(directory: Path) -> Path:
    """A new virtual environment with the locked pip and uv in it, in place of what was there; returns its interpreter."""
    with_pip = find_spec("ensurepip") is not None
    venv.create(directory, clear=True, symlinks=True, with_pip=with_pip)
    python = directory.absolute() / "bin" / "python"
    pip = ["-m", "pip"] if with_pip else [str(fetch_pip(directory) / "pip")]
    run(python, *pip, "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", BOOTSTRAP)
    return python


def fetch_pip(directory: Path) -> Path:
    """Pip's own wheel, which runs without being installed, from the index; checked against the hashes of the lock."""
    version, hashes = locked("pip")
    page = f"{INDEX.rstrip('/')}/pip/"
    try:
        links = re.findall(r'href="([^"#]+)', read(page).decode())
        link = next(link for link in links if link.endswith(f"/pip-{version}-py3-none-any.whl"))
        wheel = read(urljoin(page, link))
    except (OSError, StopIteration) as error:
        raise RuntimeError(
            f"this Python has no ensurepip (on Debian: apt-get install python3-venv), and pip {version} could not be fetched from {page}: "
            f"{error or 'not listed there'}"
        ) from error
    if hashlib.sha256(wheel).hexdigest() not in hashes:
        raise RuntimeError(f"pip {version} from {page} is not what {BOOTSTRAP} has locked: its sha256 differs")
    path = directory / f"pip-{version}-py3-none-any.whl"
    path.write_bytes(wheel)
    return path


def read(url: str) -> bytes:
    """The body of an https answer, within 60 seconds a read."""
    if not url.startswith("https://"):
        raise RuntimeError(f"{url} is not an https address")
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - https only, see above
        return bytes(answer.read())


def locked(package: str) -> tuple[str, set[str]]:
    """Version and sha256 hashes of a package in the bootstrap lock."""
    entry = re.search(rf"^{package}==(\S+)((?:.*\\\n)(?:\s+--hash=\S+.*\n)+)", BOOTSTRAP.read_text(), re.MULTILINE)
    if entry is None:
        raise RuntimeError(f"{BOOTSTRAP} does not lock {package}")
    return entry[1], set(re.findall(r"sha256:(\w+)", entry[2]))


def install(python: Path, lock: Path) -> None:
    """Everything in the lock, as wheels."""
    wheels = ["--require-hashes", "--only-binary", ":all:", "-r", str(lock)]
    try:
        run(python, "-m", "uv", "pip", "install", "--quiet", "--python", python, *wheels, env=uv_environment())
    except subprocess.CalledProcessError:
        print("install.py: uv could not install (above is why); trying pip, which takes longer", file=sys.stderr)
        run(python, "-m", "pip", "install", "--quiet", *wheels)


def uv_environment() -> dict[str, str]:
    """The environment, in which uv finds pip's index and certificate where it has none of its own."""
    environment = dict(os.environ)
    for ours, pips in (("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), ("SSL_CERT_FILE", "PIP_CERT")):
        if pips in environment:
            environment.setdefault(ours, environment[pips])
    return environment


def build(python: Path, lock: Path) -> None:
    """What is only there as source, from a lock that the last one is part of; without it everything works, slower."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    command: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--require-hashes", "-r", lock]
    if not compiler or not headers.exists():
        print(f"install.py: no C compiler or no {headers}: going without what {lock} adds (a faster HTTP parser)")
    elif subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
        print(f"install.py: could not build what {lock} adds (a faster HTTP parser): going without it")


def run(python: Path, *arguments: str | Path, env: dict[str, str] | None = None) -> None:
    """Run the environment's interpreter; raises CalledProcessError where it fails."""
    subprocess.run([python, *arguments], check=True, env=env)


if __name__ == "__main__":
    main()
