"""The benchmark of many models: what it takes for a right answer, and what its tables say."""

import dataclasses
import http.server
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from benchmarks import endpoints, goals, load, many, many_report, processes
from benchmarks.endpoints import Endpoint, Weight
from benchmarks.many_report import Engine, Grown, Step

MB = 10**6


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers each path with what `said` has for it; 200 and an empty page otherwise."""

    protocol_version = "HTTP/1.1"
    said: ClassVar[dict[str, tuple[int, bytes]]] = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = next((path for path in self.said if path in self.path or path.encode() in body), "")
        status, answer = self.said.get(key, (200, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self):
        self.do_POST()

    def do_DELETE(self):
        self.do_POST()

    def log_message(self, *_):
        pass


@contextmanager
def endpoint(**said):
    handler = type("Handler", (Answers,), {"said": {path.replace("__", "/"): answer for path, answer in said.items()}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Endpoint(server.server_address[1], os.getpid(), None)
        finally:
            server.shutdown()
            thread.join()


def cases(*expected):
    return load.Requests("", many.CSV, [load.Case(b"0", text, f"/models/m{number}/invoke") for number, text in enumerate(expected)])


class TestEndpoint:
    def test_answers_are_checked_each_with_its_own_request(self):
        with endpoint(m0=(200, b"[0.0]"), m1=(200, b"[1.0]"), m2=(200, b"[2.0]")) as server:
            assert len(server.ask(cases("[0.0]", "[1.0]", "[ 2.0 ]"), at_once=2)) == 3
            with pytest.raises(load.LoadError, match=r"m1/invoke answered b'\[1.0\]' instead of '\[2.0\]'"):
                server.ask(cases("[0.0]", "[2.0]"))

    def test_loads_end_where_there_is_no_room_and_at_nothing_else(self):
        with endpoint(m2=(507, b"full"), m3=(500, b"broken")) as server:
            models = {f"m{number}": Path("/x") for number in range(4)}
            assert len(server.load(models)) == 2
            assert server.refusal == "full"
            with pytest.raises(load.LoadError, match="500: b'broken'"):
                server.load({"m3": Path("/x")})

    def test_pages_are_followed(self):
        first, second = b'{"models": [{"modelName": "a"}], "nextPageToken": "t"}', b'{"models": [{"modelName": "b"}]}'
        with endpoint(next_page_token=(200, second), __models=(200, first)) as server:
            names, seconds = server.pages()
        assert (names, len(seconds)) == (["a", "b"], 2)

    def test_an_unload_that_fails_is_an_error(self):
        with endpoint(m1=(404, b"none")) as server, pytest.raises(load.LoadError, match="DELETE /models/m1 was answered with 404"):
            server.unload(["m0", "m1"], at_once=2)


def test_each_model_of_the_benchmark_answers_with_its_number(tmp_path):
    import joblib

    models = many.small_models(tmp_path, 3)
    assert [case.path for case in models.requests.cases] == [f"/models/m{number:06d}/invoke" for number in range(3)]
    loaded = [joblib.load(directory / "model.joblib") for directory in models.directories.values()]
    assert [str(model.predict([[0.0]])[0]) for model in loaded] == [case.expected for case in models.requests.cases]
    assert list(models.part(1).directories) == ["m000001", "m000002"]


def test_a_case_goes_to_its_own_path():
    text = load.as_lua(load.Requests("/all", {}, [load.Case(b"0", "0"), load.Case(b"0", "0", "/one")]))
    assert [line.split(",")[0] for line in text.splitlines()[1:3]] == ['  {path = "\\047all"', '  {path = "\\047one"']


def test_a_memory_group_counts_its_processes():
    with processes.memory_group() as group:
        if group is None:
            pytest.skip("no memory cgroup can be made here")
        code = "kept = b'x' * 50_000_000; print('up', flush=True); input()"
        command = processes.in_group([sys.executable, "-c", code], group)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            assert 50 * MB < processes.group_bytes(group) < 150 * MB
            process.communicate(b"\n", timeout=30)
    assert not group.exists()


@pytest.mark.parametrize(
    ("bound", "value", "verdict"),
    [
        (goals.Bound(), 1, ""),
        (goals.Bound(least=200), 200, "at least 200: met"),
        (goals.Bound(least=200), 199, "at least 200: missed"),
        (goals.Bound(most=1.2), 1.21, "at most 1.2: missed"),
    ],
)
def test_verdicts(bound, value, verdict):
    assert bound.verdict(value) == verdict


def weight(pss, group=None):
    return Weight(pss * MB, None if group is None else group * MB, 6)


def step(models, pss, one=1000.0, few=1000.0):
    return Step(models, 2.0, 1.5, weight(pss), 3.0, {"one model": one, "50 models": 500.0}, {"one model": few, "50 models": 500.0})


class TestReport:
    ours = Engine([0.002], [0.004], [0.001], {10: weight(200, 190), 50: weight(201, 190)}, {"one model": 500.0, "50 models": 400.0})
    theirs = Engine([0.6], [3.2], [0.01], {10: weight(900, 900), 50: weight(4900, 4900)}, {"one model": 200.0, "50 models": 400.0})
    grown = Grown(weight(150), [step(50, 200), step(1000, 219, one=850.0)], 1.5, "", 1.0, weight(190))

    def test_ratios_are_how_many_times_better(self):
        table = many_report.versus_table("tabular", {"berth": self.ours, "mms": self.theirs}, self.grown)
        for line in (
            "| load p50, ms | 2 | 600 | 300.0 x (at least 200: met) |",
            "| load p50, 8 at once, ms | 4 | 3,200 | 800.0 x (at least 200: met) |",
            "| memory for each further model (Pss), MB | 0.02 | 100 | 5,000.0 x (at least 1000: met) |",
            "| requests a second, one model, 8 clients | 500 | 200 | 2.5 x (at least 2: met) |",
            "| requests a second, 50 models, 8 clients | 400 | 400 | 1.0 x (at least 1.8: missed) |",
        ):
            assert line in table

    def test_what_was_not_counted_is_left_out(self):
        table = many_report.versus_table("entities", {"berth": Engine([1.0]), "mms": Engine([5.0])} | self.weighed())
        assert "8 at once" not in table
        assert "cgroup" not in table

    @staticmethod
    def weighed():
        return {name: Engine([1.0], weights={2: weight(1), 10: weight(2)}) for name in ("berth", "mms")}

    def test_steps_beside_a_server_with_few(self):
        table = many_report.grown_table(self.grown)
        assert "| 1,000 | 2.0 (at most 5: met) | 1.50 | 219 (at most 400: met) | - | 3.0 | 850 = 0.85 of one with 50 |" in table

    def test_the_end_is_compared_with_the_start(self):
        assert "| the same as a ratio | 1.27 |" in many_report.end_table(self.grown)

    def test_a_full_container_says_why(self):
        assert "it was not full" in many_report.container_markdown(self.grown, "4g")
        full = dataclasses.replace(self.grown, refused="no room")
        assert "At 1,000 the next load was refused: no room" in many_report.container_markdown(full, "4g")

    @pytest.mark.parametrize("container", [False, True])
    def test_the_plot_is_the_same_file_each_time(self, tmp_path, container):
        pytest.importorskip("matplotlib")
        found = {"tabular": {"mms": self.theirs}, "grown": self.grown}
        for name in ("many", "many_container")[: 1 + container]:
            (tmp_path / f"{name}.json").write_text(json.dumps(found, default=dataclasses.asdict))
        for name in ("a.svg", "b.svg"):
            many_report.plot(tmp_path, tmp_path / name)
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
        assert (b"a container of 4 GB" in (tmp_path / "a.svg").read_bytes()) == container


def test_the_engines_are_told_the_same_port(tmp_path, monkeypatch):
    monkeypatch.setattr(endpoints, "find_java_home", lambda: "/java")
    launches = {name: engine.launch("tabular", 20001, tmp_path) for name, engine in endpoints.ENGINES.items()}
    assert launches["berth"].env["SAGEMAKER_BIND_TO_PORT"] == "20001"
    assert (
        "inference_address=http://127.0.0.1:20001\nmanagement_address=http://127.0.0.1:20001"
        in (tmp_path / "config.properties").read_text()
    )
