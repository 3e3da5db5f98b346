"""A running `serve`, on this machine or in a container, behind one face. Linux only (/proc). Knows nothing of what is served."""

import json
import os
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Any

import requests

from tests.waiting import until

ROOT = Path(__file__).parent.parent.parent
READY_SECONDS = 60

PROCESSES = """
import json, pathlib, re, sys
root, found = int(sys.argv[1]), []
for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
        command = (path / "cmdline").read_bytes().replace(b"\\0", b" ").decode(errors="replace")
    except OSError:
        continue
    try:
        share = int(re.search(r"^Pss: +(\\d+)", (path / "smaps_rollup").read_text(), re.M)[1])
    except (OSError, TypeError):  # another user's, or a zombie
        share = 0
    found.append((int(path.name), int(parent), command, share))
tree = {root}
for _ in found:
    tree |= {pid for pid, parent, *_ in found if parent in tree}
print(json.dumps([entry for entry in found if entry[0] in tree]))
"""
"""Prints [pid, parent's pid, command line, proportional memory in KB] of a process and its descendants."""

LISTENING = """
import json, os, pathlib, sys
held = set()
for pid in sys.argv[1:]:
    try:
        held |= {os.readlink(link) for link in pathlib.Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        continue
rows = [line.split() for name in ("tcp", "tcp6") for line in pathlib.Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
print(json.dumps([int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in held]))
"""
"""Prints the TCP ports that some processes listen on. Another user's processes do not show what they hold: their parents do."""

KILL = "import os, sys; os.kill(int(sys.argv[1]), int(sys.argv[2]))"


@dataclass(frozen=True)
class Process:
    """role: serve, gunicorn, worker, nginx, nginx worker, or empty. memory: bytes, shared pages in proportion; 0 if not shown."""

    pid: int
    role: str
    command: str
    memory: int


class Server(ABC):
    """url: http://127.0.0.1:PORT; empty where the network is cut off. base_dir: what it has as /opt/ml."""

    url: str = ""
    base_dir: Path

    @abstractmethod
    def output(self) -> tuple[str, str]:
        """All that it has printed so far: stdout, stderr."""

    @abstractmethod
    def inside(self, code: str, *arguments: object) -> str:
        """Runs a Python program where the server runs. Returns what it printed."""

    @abstractmethod
    def signal(self, number: Signals) -> None:
        """Sends a signal to the program itself, as the platform does."""

    @abstractmethod
    def ended(self) -> int | None:
        """The exit code; None while it runs."""

    @abstractmethod
    def remove(self) -> None:
        """Ends it with all its processes, whatever state it is in."""

    @property
    @abstractmethod
    def root(self) -> int:
        """The pid of the program where it runs."""

    def logs(self) -> str:
        return "".join(self.output())

    def last_words(self) -> str:
        """The last line on stderr."""
        return (self.output()[1].splitlines() or [""])[-1]

    def wait(self, within: float = 30) -> int:
        """The exit code, once it has ended."""
        until(lambda: self.ended() is not None, within, "the end of the server")
        code = self.ended()
        assert code is not None
        return code

    def processes(self) -> list[Process]:
        rows = json.loads(self.inside(PROCESSES, self.root))
        return [Process(pid, _role(self.root, pid, parent, rows), command, share * 1024) for pid, parent, command, share in rows]

    def pids(self, role: str) -> list[int]:
        return sorted(process.pid for process in self.processes() if process.role == role)

    def kill(self, pid: int, number: Signals = SIGKILL) -> None:
        """Signals one of its processes; pid as in `processes`."""
        self.inside(KILL, pid, int(number))

    def await_ready(self, within: float = READY_SECONDS) -> None:
        until(lambda: self._ping() == 200, within, f"{self.url}/ping being 200")

    def await_listening(self, within: float = READY_SECONDS) -> None:
        until(self._ping, within, f"{self.url}/ping being answered")

    def _ping(self) -> int:
        """The status of /ping; 0 while nobody answers."""
        assert self.ended() is None, f"the server ended with code {self.ended()}:\n{self.logs()}"
        try:
            return self.get("/ping").status_code
        except requests.ConnectionError:
            return 0

    def await_log(self, text: str, within: float = 20) -> str:
        """The whole log, once it has this text."""
        return until(lambda: log if text in (log := self.logs()) else "", within, f"{text!r} in the log")

    def listening(self) -> set[int]:
        """The TCP ports that its processes listen on."""
        return set(json.loads(self.inside(LISTENING, *(process.pid for process in self.processes()))))

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path, **options)

    def post(self, body: Any, content_type: str | None = "text/csv", accept: str | None = None, **options: Any) -> requests.Response:
        """POST /invocations. content_type, accept: None sends no such header. headers: further ones."""
        headers = {"Content-Type": content_type, "Accept": accept} | options.pop("headers", {})
        return self.request("POST", "/invocations", data=body, headers=headers, **options)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False  # no proxy stands between a test and its server
            return session.request(method, self.url + path, **{"timeout": 70, "allow_redirects": False} | options)

    def connect(self, timeout: float = 30) -> socket.socket:
        """A plain connection, for what a well-behaved client cannot say."""
        return socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), timeout)

    def raw(self, data: bytes, timeout: float = 30) -> bytes:
        """Sends bytes on a connection of their own and returns all that comes back until the server closes it."""
        with self.connect(timeout) as connection:
            answer = b""
            try:
                connection.sendall(data)
                while chunk := connection.recv(65536):
                    answer += chunk
            except ConnectionError:
                pass  # the server has said what it had to say, and hung up
            return answer


def _role(root: int, pid: int, parent: int, rows: Sequence[Sequence[Any]]) -> str:
    commands = {row[0]: row[2] for row in rows}
    command, above = commands[pid], commands.get(parent, "")
    if pid == root:
        return "serve"
    if parent == root:
        return "nginx" if "nginx: master" in command else "gunicorn" if "gunicorn" in command else ""
    return "nginx worker" if "nginx: worker" in command else "worker" if "gunicorn" in above else ""


class HostServer(Server):
    """`python serve` on this machine. base_dir: what /opt/ml is in a container. folder: for its log and its temporary files; any
    user must be able to reach it, for nginx started by root becomes another. command: another program than `python WORD`.
    """

    def __init__(self, base_dir: Path, folder: Path, env: Mapping[str, str], word: str = "serve", command: Sequence[str] = ()) -> None:
        port = env.get("SAGEMAKER_BIND_TO_PORT") or str(free_port())
        self.url = f"http://127.0.0.1:{port}"
        self.base_dir = base_dir
        self._out, self._err = folder / "stdout", folder / "stderr"
        environment = {
            "PATH": os.environ["PATH"],
            "TMPDIR": str(folder),
            "SAGEMAKER_BASE_DIR": str(base_dir),
            "SAGEMAKER_BIND_TO_PORT": port,
            **env,
        }
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                command or [sys.executable, str(ROOT / word)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd="/",
                start_new_session=True,
            )

    @property
    def root(self) -> int:
        return self._process.pid

    def output(self) -> tuple[str, str]:
        return self._out.read_text(errors="replace"), self._err.read_text(errors="replace")

    def inside(self, code: str, *arguments: object) -> str:
        command = [sys.executable, "-ISc", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    def signal(self, number: Signals) -> None:
        self._process.send_signal(number)

    def ended(self) -> int | None:
        return self._process.poll()

    def remove(self) -> None:
        if self._process.poll() is None:
            for pid in self.left():
                os.kill(pid, SIGKILL)
            self._process.wait()
        until(lambda: not self.left(), 5, "the end of every process of the server")

    def left(self) -> list[int]:
        """The pids of its session that live: what it has started, and the grandchildren that lost their parents."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self._process.pid and state not in "ZX":
                found.append(int(path.parent.name))
        return found


class DockerServer(Server):
    """`docker run IMAGE serve`. label: on the container, so that what a broken run leaves can be found."""

    root = 1

    def __init__(
        self, image: str, label: str, base_dir: Path, env: Mapping[str, str], arguments: Sequence[str] = (), word: str = "serve"
    ) -> None:
        self.base_dir = base_dir
        port = env.get("SAGEMAKER_BIND_TO_PORT", "8080")
        published = [] if "--network" in arguments else ["--publish", f"127.0.0.1::{port}"]
        variables = [part for name, value in env.items() for part in ("--env", f"{name}={value}")]
        mounts = [part for path in sorted(base_dir.iterdir()) for part in ("--volume", f"{path}:/opt/ml/{path.name}:{_mode(path)}")]
        self._id = _docker("run", "--detach", "--label", label, *published, *variables, *mounts, *arguments, image, word).strip()
        if published and self.ended() is None:
            self.url = self._published(port)

    def _published(self, port: str) -> str:
        answer = subprocess.run(["docker", "port", self._id, port], capture_output=True, text=True, check=False, timeout=60)
        return f"http://{answer.stdout.splitlines()[0]}" if answer.returncode == 0 else ""  # it may have ended meanwhile

    def inspect(self, template: str) -> str:
        return _docker("inspect", "--format", template, self._id).strip()

    def output(self) -> tuple[str, str]:
        answer = subprocess.run(["docker", "logs", self._id], capture_output=True, check=True, timeout=60)
        return answer.stdout.decode(errors="replace"), answer.stderr.decode(errors="replace")

    def inside(self, code: str, *arguments: object) -> str:
        return _docker("exec", self._id, "python3", "-ISc", code, *map(str, arguments))

    def signal(self, number: Signals) -> None:
        _docker("kill", "--signal", number.name, self._id)

    def ended(self) -> int | None:
        status, _, code = self.inspect("{{.State.Status}} {{.State.ExitCode}}").partition(" ")
        return int(code) if status in ("exited", "dead") else None

    def remove(self) -> None:
        _docker("rm", "--force", "--volumes", self._id)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _mode(path: Path) -> str:
    """Only a training job writes, and into these."""
    return "rw" if path.name in ("output", "checkpoints") or (path.name == "model" and not any(path.iterdir())) else "ro"


def _docker(*arguments: str) -> str:
    answer = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, f"docker {' '.join(arguments)}: {answer.stderr.strip()}"
    return answer.stdout
