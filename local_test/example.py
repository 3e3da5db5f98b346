"""`python -m local_test.example NAME PORT [--build DIRECTORY]`: trains an example if it has no model yet, serves it, says how to ask it.

Runs the same `train` and `serve` as the image, on this machine, with DIRECTORY/NAME in the place of /opt/ml.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
CONTENT_TYPES = {".csv": "text/csv", ".json": "application/json"}
POLL_SECONDS = 0.1


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped. Returns the exit code of `train` if that fails, else of `serve`."""
    parser = argparse.ArgumentParser(prog="local_test.example", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", choices=sorted(path.parent.name for path in EXAMPLES.glob("*/training.py")))
    parser.add_argument("port", type=int)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    given = parser.parse_args(arguments)
    base_dir = given.build.absolute() / given.name
    if not base_dir.is_dir():
        code = train(given.name, base_dir)
        if code:
            return code
    return serve(given.name, base_dir, given.port)


def train(name: str, base_dir: Path) -> int:
    """Make base_dir with the example's model in it, whole or not at all. Returns the exit code of `train`."""
    work = base_dir.with_name(f"{name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(work), "SAGEMAKER_SUBMIT_DIRECTORY": str(EXAMPLES / name)}
    code = subprocess.run([sys.executable, ROOT / "train"], env=environ, check=False).returncode
    if code == 0:
        work.rename(base_dir)
    return code


def serve(name: str, base_dir: Path, port: int) -> int:
    """Run `serve` in the foreground until it ends; once it answers, print the command that asks it. Returns its exit code."""
    command = question(EXAMPLES / name, port)
    return run({"SAGEMAKER_BASE_DIR": str(base_dir)}, port, lambda: print(f"\nAsk it, from {ROOT}:\n\n    {command}\n", flush=True))


def run(environ: Mapping[str, str], port: int, on_ready: Callable[[], None]) -> int:
    """Run `serve` in the foreground until it ends; calls on_ready once it answers. Returns its exit code.

    Raises SystemExit if the port is not to be had, for another server's answers would be taken for those of this one. What on_ready
    raises stops the server.
    """
    check(port)
    variables = {**os.environ, **environ, "SAGEMAKER_BIND_TO_PORT": str(port)}
    with subprocess.Popen([sys.executable, ROOT / "serve"], env=variables) as server:
        # Ctrl-C reaches the server too, as it is in the same process group: it stops, and this program ends with it.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        while server.poll() is None:
            if answers(f"http://127.0.0.1:{port}/ping"):
                try:
                    on_ready()
                except BaseException:
                    server.terminate()
                    raise
                break
            time.sleep(POLL_SECONDS)
        return server.wait()


def check(port: int) -> None:
    """Raises SystemExit, with what to do, if the port cannot be listened on."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port that was left just now is free
        try:
            tried.bind(("", port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise SystemExit(f"port {port} cannot be listened on ({why}): name another with PORT=..., as `make serve PORT=8081`") from error


def question(folder: Path, port: int) -> str:
    """The curl command that sends an example's payload."""
    payloads = [path for path in sorted(folder.glob("payload.*")) if path.suffix in CONTENT_TYPES]
    if not payloads:
        raise SystemExit(f"{folder} has no payload: accepted are {' and '.join(f'payload{suffix}' for suffix in CONTENT_TYPES)}")
    file, content_type = payloads[0].relative_to(ROOT), CONTENT_TYPES[payloads[0].suffix]
    return f"curl --data-binary @{file} -H 'Content-Type: {content_type}' http://127.0.0.1:{port}/invocations"


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - http to this machine
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
