"""The platform's side of a multi-model endpoint, against a small container that has room for a few models."""

import io
import json
import random
import tarfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from local_test import endpoint
from local_test.endpoint import Endpoint


class Container(ThreadingHTTPServer):
    """Has room for so many models and answers what their artifact says. said: statuses for the next calls, in the place of what they ask;
    meeting: loads wait there for each other; calls: in order; wrong: what the platform does not do.
    """

    def __init__(self, room: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.room, self.hangs_up = room, False
        self.meeting: threading.Barrier | None = None
        self.models: dict[str, str] = {}
        self.said: dict[str, list[int]] = {}
        self.calls: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.wrong: list[str] = []
        self.busy: Counter[str] = Counter()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Container

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/models":
            order = json.loads(body)
            self.answer("load", order["model_name"], lambda: self.load(order["model_name"], order["url"]))
        else:
            name = self.path.split("/")[2]
            self.server.headers.append(dict(self.headers))
            self.answer("invoke", name, lambda: self.invoke(name))

    def do_DELETE(self) -> None:
        name = self.path.split("/")[2]
        self.answer("unload", name, lambda: self.unload(name))

    def do_GET(self) -> None:
        self.answer("get", self.path, self.page)

    def answer(self, call: str, name: str, act) -> None:
        server = self.server
        if call == "load" and server.meeting:
            server.meeting.wait(10)
            server.meeting = None
        with server.lock:
            server.calls.append(f"{call} {name}")
            server.busy[f"{call} {name}"] += 1
            if call in ("load", "unload") and sum(server.busy[f"{other} {name}"] for other in ("load", "unload", "invoke")) > 1:
                server.wrong.append(f"{call} of a model that is being loaded, unloaded or asked")
            said = server.said.get(call)
            status, text = (said.pop(0), "as told") if said else act()
        with server.lock:
            server.busy[f"{call} {name}"] -= 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
        self.close_connection = self.close_connection or server.hangs_up

    def load(self, name: str, url: str) -> tuple[int, str]:
        if name in self.server.models:
            return 409, ""
        if len(self.server.models) >= self.server.room:
            return 507, ""
        self.server.models[name] = Path(url, "answer").read_text()
        return 200, ""

    def invoke(self, name: str) -> tuple[int, str]:
        return (200, self.server.models[name]) if name in self.server.models else (404, "")

    def unload(self, name: str) -> tuple[int, str]:
        return (200 if self.server.models.pop(name, None) else 404), ""

    def page(self) -> tuple[int, str]:
        """Two models a page."""
        names = sorted(self.server.models)
        start = int(parse_qs(urlsplit(self.path).query).get("next_page_token", ["0"])[0])
        page = {"models": [{"modelName": name} for name in names[start : start + 2]]}
        return 200, json.dumps(page | ({"nextPageToken": str(start + 2)} if len(names) > start + 2 else {}))

    def log_message(self, *message: object) -> None:
        """pytest shows what a test prints."""


@pytest.fixture
def container():
    with Container(3) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    assert server.wrong == []


@pytest.fixture
def platform(container, tmp_path):
    """Artifacts a to j, as archives, and `folder`, as a directory: each answers its own name."""
    artifacts = tmp_path / "artifacts"
    (artifacts / "folder").mkdir(parents=True)
    (artifacts / "folder" / "answer").write_text("folder")
    for name in "abcdefghij":
        archive(artifacts / f"{name}.tar.gz", "answer", name)
    with Endpoint(container.url, artifacts, tmp_path / "models") as platform:
        yield platform


def archive(path: Path, member: str, text: str) -> None:
    with tarfile.open(path, "w:gz") as file:
        info = tarfile.TarInfo(member)
        info.size = len(text)
        file.addfile(info, io.BytesIO(text.encode()))


def ask(platform: Endpoint, names: str) -> str:
    """The answers of a few models, one letter each."""
    return "".join(platform.invoke(f"{name}.tar.gz", b"0").body.decode() for name in names)


def calls(container: Container, names: str = "abcdefghij") -> list[str]:
    """The calls so far, with the names of artifacts in the place of their ids."""
    ids = {Endpoint.id(f"{name}.tar.gz"): name for name in names}
    return [f"{call} {ids.get(name, name)}" for call, name in (line.split() for line in container.calls)]


def test_a_model_is_loaded_when_it_is_first_asked_for(container, platform):
    assert ask(platform, "aaba") == "aaba"
    assert calls(container) == ["load a", "invoke a", "invoke a", "load b", "invoke b", "invoke a"]
    assert platform.loaded() == ["b.tar.gz", "a.tar.gz"]
    assert platform.calls == {("load", 200): 2, ("invoke", 200): 4}


def test_a_directory_is_an_artifact_too(platform):
    assert platform.invoke("folder", b"0").body == b"folder"


def test_what_a_model_is_told(container, platform):
    platform.invoke("a.tar.gz", b"0", "text/plain", {"Accept": "text/csv"})
    (headers,) = container.headers
    assert headers.items() >= {"Content-Type": "text/plain", "Accept": "text/csv", "X-Amzn-SageMaker-Target-Model": "a.tar.gz"}.items()


def test_the_container_may_see_the_models_elsewhere(container, tmp_path):
    (tmp_path / "a" / "x").mkdir(parents=True)
    (tmp_path / "a" / "x" / "answer").write_text("x")
    (tmp_path / "seen").symlink_to(tmp_path / "models")
    with Endpoint(container.url, tmp_path / "a", tmp_path / "models", seen_as=str(tmp_path / "seen")) as platform:
        assert platform.invoke("x", b"0").body == b"x"


def test_where_there_is_no_room_the_least_recently_used_goes(container, platform):
    assert ask(platform, "abcade") == "abcade"
    unloaded = [call for call in calls(container) if call.startswith("unload")]
    assert unloaded == ["unload b", "unload c"]
    assert platform.loaded() == ["a.tar.gz", "d.tar.gz", "e.tar.gz"]
    assert platform.calls["load", 507] == 2


def test_what_fits_into_no_room_is_refused(container, platform):
    container.room = 0
    assert platform.invoke("a.tar.gz", b"0").status == 507
    assert calls(container) == ["load a"]


def test_two_that_refused_each_other_are_tried_again(container, platform):
    """Each of two loads at once may be refused because of the other, though there is nothing to unload."""
    container.said["load"], container.meeting = [507, 507], threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda name: ask(platform, name), "ab")) == ["a", "b"]
    assert platform.calls["load", 507] == 2


def test_a_model_that_runs_out_of_memory_gets_room(container, platform):
    ask(platform, "ab")
    container.said["invoke"] = [507]
    assert ask(platform, "b") == "b"
    assert calls(container)[-3:] == ["invoke b", "unload a", "invoke b"]


def test_a_model_that_always_runs_out_of_memory_says_so(container, platform):
    ask(platform, "abc")
    container.said["invoke"] = [507] * 9
    assert platform.invoke("a.tar.gz", b"0").status == 507
    assert calls(container)[-5:] == ["invoke a", "unload b", "invoke a", "unload c", "invoke a"]


def test_a_model_that_is_loaded_already_is_asked(container, platform):
    ask(platform, "a")
    with Endpoint(container.url, platform._artifacts, platform._models) as successor:
        assert ask(successor, "a") == "a"
        assert successor.calls == {("load", 409): 1, ("invoke", 200): 1}


def test_a_container_that_was_restarted_loads_again(container, platform):
    ask(platform, "ab")
    container.models.clear()
    assert ask(platform, "a") == "a"
    assert calls(container)[-3:] == ["invoke a", "load a", "invoke a"]


def test_a_model_that_says_404_by_itself_is_believed_in_the_end(container, platform):
    container.said["invoke"] = [404] * 9
    assert platform.invoke("a.tar.gz", b"0").status == 404
    assert platform.calls["invoke", 404] == endpoint.TRIES


@pytest.mark.parametrize("status", [400, 500, 502])
def test_a_load_that_fails_is_tried_by_the_next_request(container, platform, status):
    container.said["load"] = [status]
    assert platform.invoke("a.tar.gz", b"0").status == status
    assert platform.loaded() == []
    assert ask(platform, "a") == "a"


def test_an_unload_that_fails_is_tried_again(container, platform):
    ask(platform, "abc")
    container.said["unload"] = [502]
    assert ask(platform, "d") == "d"
    assert [call for call in calls(container) if call.startswith("unload")] == ["unload a", "unload a"]


def test_unload(container, platform):
    ask(platform, "a")
    assert [platform.unload("a.tar.gz").status for _ in range(2)] == [200, 404]
    assert (container.models, platform.loaded()) == ({}, [])


def test_every_page_is_listed(platform):
    ask(platform, "abc")
    assert platform.listed() == sorted(map(Endpoint.id, platform.loaded()))


def test_a_list_that_is_refused(container, platform):
    container.said["get"] = [503]
    with pytest.raises(OSError, match="503"):
        platform.listed()


def test_ping(container, platform):
    assert platform.ping()
    container.said["get"] = [200, 404]
    assert not platform.ping()
    with Endpoint("http://127.0.0.1:1", Path(), Path()) as nobody:
        assert not nobody.ping()


def test_a_connection_that_was_closed_meanwhile_is_opened_again(container, platform):
    container.hangs_up = True
    assert ask(platform, "abab") == "abab"
    assert [call for call in calls(container) if call.startswith("load")] == ["load a", "load b"]


def test_many_at_once_never_load_one_twice_nor_unload_what_is_used(container, platform):
    """What must not be, the container has noted: see its fixture."""
    draw = random.Random(7)
    names = "".join(draw.choices("abcdefghij", range(10, 0, -1), k=600))
    with ThreadPoolExecutor(8) as pool:
        assert "".join(pool.map(lambda name: ask(platform, name), names)) == names
    assert platform.calls["load", 507] > 20
    assert platform.calls.total() == sum(count for (_, status), count in platform.calls.items() if status in (200, 507))
    assert platform.listed() == sorted(map(Endpoint.id, platform.loaded()))


def test_what_is_no_artifact(platform):
    with pytest.raises(FileNotFoundError, match=r"no 'z.tar.gz' in .*artifacts"):
        platform.invoke("z.tar.gz", b"0")


def test_an_archive_that_points_outside_is_not_unpacked(container, platform, tmp_path):
    archive(platform._artifacts / "evil.tar.gz", "../../../evil", "evil")
    with pytest.raises(tarfile.TarError):
        platform.invoke("evil.tar.gz", b"0")
    assert not list(tmp_path.rglob("evil"))
    assert container.calls == []
