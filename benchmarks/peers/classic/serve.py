"""The classic `serve` program: starts nginx and gunicorn, ends when either of them does.

usage: serve.py APP NGINX PORT WORKERS RUN_DIR      in the directory that holds model/
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType


def main(app: str, nginx: str, port: str, workers: str, directory: str) -> None:
    """Runs until SIGTERM, or until nginx or gunicorn has ended."""
    run_dir = Path(directory)
    text = Path(__file__).with_name("nginx.conf").read_text()
    (run_dir / "nginx.conf").write_text(text.replace("PORT", port).replace("unix:", f"unix:{run_dir}/"))
    proxy = subprocess.Popen([nginx, "-p", str(run_dir), "-c", "nginx.conf", "-e", "error.log"])
    gunicorn = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--timeout", "60", "-k", "sync"]
    server = subprocess.Popen([*gunicorn, "-b", f"unix:{run_dir}/gunicorn.sock", "-w", workers, app])

    def stop(_signal: int, _frame: FrameType | None) -> None:
        proxy.send_signal(signal.SIGQUIT)
        server.terminate()

    signal.signal(signal.SIGTERM, stop)
    os.wait()
    stop(0, None)
    proxy.wait()
    server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
