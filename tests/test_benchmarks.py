"""The benchmarks' own arithmetic and checks: a harness that lets a wrong answer pass would prove nothing."""

import http.server
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import goals, load, memory, one_model, processes, report, split

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk, which makes the load, is not on PATH")


def measured(rate: float = 1000.0, p50: float = 1.0, p99: float = 2.0, **changes: object) -> load.Measured:
    values = {"answers": 100, "wrong": 0, "failed": 0, **changes}
    return load.Measured(requests_per_second=rate, p50_ms=p50, p99_ms=p99, **values)  # type: ignore[arg-type]


def speed(ours: load.Measured, classic: load.Measured) -> report.Speed:
    cells = [report.Cell("regression", "berth", 8, [ours]), report.Cell("regression", "classic", 8, [classic])]
    titles = {"regression": "regression", "berth": "Berth", "classic": "classic"}
    return report.Speed(titles, ["regression"], ["berth", "classic"], [8], cells, {"regression": {1: 0.0002, 8: 0.0003}})


class TestParse:
    def test_figures(self):
        output = "Running 1s test @ http://127.0.0.1:1\n\nfigures 2000000 9000 3 1 1500 4250\nsample 200 1 instead of 0\n"
        found = load.parse(output)
        assert (found.requests_per_second, found.p50_ms, found.p99_ms) == (4500.0, 1.5, 4.25)
        assert (found.answers, found.wrong, found.failed, found.sample) == (9000, 3, 1, "200 1 instead of 0")

    @pytest.mark.parametrize("output", ["", "figures 1 2 3\nsample \n", "figures 1 2 3 4 5 6\n"])
    def test_output_without_figures_is_an_error(self, output):
        with pytest.raises(load.LoadError, match="printed no figures"):
            load.parse(output)

    @pytest.mark.parametrize(
        ("changes", "good"),
        [({}, True), ({"answers": 0}, False), ({"wrong": 1}, False), ({"failed": 1}, False)],
    )
    def test_only_right_answers_and_some_of_them_are_good(self, changes, good):
        assert measured(**changes).good is good


def test_lua_strings_hold_any_byte():
    body = bytes(range(256))
    text = load.as_lua(load.Requests("/x", {"Content-Type": "text/csv"}, [load.Case(body, "a b\n")]))
    literal = re.search(r'body = "([^"]*)"', text)
    assert literal is not None
    assert re.sub(r"\\(\d{3})", lambda match: chr(int(match[1])), literal[1]).encode("latin-1") == body
    assert 'expected = "ab"' in text


def test_a_missing_wrk_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(load.LoadError, match="apt-get install wrk"):
        load.find_wrk()


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the body, doubled: a right answer to the cases below. `wrong` turns every tenth into another's."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wrong = ""
    count = 0

    def do_GET(self):
        self.reply(200, b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).count += 1
        spoiled = self.wrong and self.count % 10 == 0
        self.reply(500 if spoiled and self.wrong == "status" else 200, b"11\n" if spoiled and self.wrong == "body" else body + body + b"\n")

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def echo(wrong: str) -> Iterator[int]:
    handler = type("Handler", (Echo,), {"wrong": wrong, "count": 0})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


CASES = load.Requests("/invocations", {"Content-Type": "text/plain"}, [load.Case(str(n).encode(), f"{n}{n}") for n in range(2, 10)])


@needs_wrk
@pytest.mark.live
@pytest.mark.parametrize(("clients", "wrong"), [(3, ""), (1, "body"), (16, "body"), (16, "status")])
def test_every_answer_is_checked_against_its_own_request(clients, wrong, tmp_path):
    with echo(wrong) as port:
        assert load.is_ready(port, CASES)
        found = load.measure(port, CASES, clients, 1, tmp_path)
    assert found.answers > 20
    assert found.failed == 0
    assert bool(found.wrong) is bool(wrong)
    assert found.wrong <= found.answers // 10 + clients
    assert found.sample.startswith({"": "", "body": "200 11 instead of", "status": "500"}[wrong])


class TestProcesses:
    def test_a_server_is_gone_with_its_descendants(self, tmp_path):
        command = [sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=-1)"]
        with processes.serving(command, tmp_path, os.environ, tmp_path / "log", ready=lambda: True) as pid:
            deadline = time.monotonic() + 10
            while len(processes.family(pid)) < 2:
                assert time.monotonic() < deadline, "the child did not start"
            members = processes.family(pid)
            assert processes.proportional_bytes(pid) > 1_000_000
            assert processes.cpu_seconds(pid) >= 0
        assert not [member for member in members if is_running(member)]

    def test_a_server_that_ends_says_what_it_logged(self, tmp_path):
        command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
        server = processes.serving(command, tmp_path, os.environ, tmp_path / "log", ready=lambda: False)
        with pytest.raises(processes.ServerError, match=r"ended with code 1(.|\n)*no such model"), server:
            pass


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


class TestReport:
    def test_ratios_stand_beside_their_goals(self):
        text = report.speed_markdown(speed(measured(5000, p50=1, p99=3, cpu_ms=0.25), measured(1000)))
        assert "| 5,000 | 1,000 | 5.00 (floor 4.2 met) |" in text
        assert "| 1.00 / 3.00 | 1.00 / 2.00 | 3.00 (at most 2.5: missed) |" in text
        assert "| regression | 8 | 0.250 | 0.000 |" in text
        assert "| regression | 0.200 | 0.300 |" in text

    def test_a_cell_is_the_median_of_its_rounds(self):
        cell = report.Cell("regression", "berth", 1, [measured(rate, p50, p99) for rate, p50, p99 in ((1, 9, 90), (5, 7, 70), (3, 8, 10))])
        assert (cell.rate, cell.p50_ms, cell.p99_ms) == (3, 8, 70)

    def test_only_what_is_between_the_markers_is_replaced(self):
        text = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n"
        assert report.between(text, "x", "new") == "a\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nb\n"
        assert report.between(report.between(text, "x", "other"), "x", "new") == report.between(text, "x", "new")

    @pytest.mark.parametrize("text", ["", "<!-- x: begin -->", "<!-- x: end --> <!-- x: begin -->"])
    def test_missing_markers_are_an_error(self, text):
        with pytest.raises(ValueError, match="no <!-- x: begin --> followed by <!-- x: end -->"):
            report.between(text, "x", "new")

    def test_results_are_kept_as_json(self, tmp_path):
        (tmp_path / "README.md").write_text("<!-- one_model: begin --><!-- one_model: end -->")
        cells = [report.Cell("regression", "berth", 8, [measured(5000)])]
        report.write("one_model", "| table |", {"cells": cells}, tmp_path)
        kept = json.loads((tmp_path / "results" / "one_model.json").read_text())
        assert kept["cells"][0]["rounds"][0]["requests_per_second"] == 5000
        assert "| table |" in (tmp_path / "README.md").read_text()

    def test_the_readme_has_the_markers(self):
        text = (Path(report.HERE) / "README.md").read_text()
        for name in ("one_model", "memory", "split"):
            assert report.between(text, name, "new").count("\nnew\n") == 1

    def test_memory_stands_beside_its_goals(self):
        text = memory.as_markdown({"berth": 70_000_000, "classic": 100_000_000}, {1: 400_000_000, 4: 420_000_000})
        assert "| MB | 70.0 | 100.0 | 0.70 (at most 0.6: missed) |" in text
        assert "| MB | 400.0 | 420.0 | 5.0% (at most 10%: met) |" in text


class TestSplit:
    @pytest.fixture
    def table(self, tmp_path):
        return split.generate(tmp_path / "table.csv", 60, 3)

    @pytest.fixture
    def target(self, table, tmp_path):
        """What ours makes of it."""
        split.by_berth(str(table.path), str(tmp_path / "out"))
        return tmp_path / "out"

    def test_the_right_files_pass(self, table, target):
        assert len(table.path.read_text().splitlines()) == 61
        assert split.check(table, target) is True

    def test_another_order_is_seen(self, table, target):
        file = target / "C00001.csv"
        header, *rows = file.read_text().splitlines(keepends=True)
        file.write_text(header + "".join(reversed(rows)))
        assert split.check(table, target) is False

    def test_a_key_in_several_files_counts_as_one(self, table, target):
        for file in list(target.iterdir()):
            directory = target / f"customer_id={file.stem}"
            directory.mkdir()
            header, *rows = file.read_text().splitlines(keepends=True)
            (directory / "data_0.csv").write_text(header + "".join(rows[:5]))
            (directory / "data_1.csv").write_text(header + "".join(rows[5:]))
            file.unlink()
        assert split.check(table, target) is True

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda file: file.unlink(), "files of 2 keys instead of 3"),
            (lambda file: file.write_text(file.read_text().replace("2000-01-05", "2000-01-06")), "changed the rows of C00001"),
            (lambda file: file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1])), "changed the rows of C00001"),
        ],
    )
    def test_wrong_files_are_an_error(self, table, target, spoil, message):
        spoil(target / "C00001.csv")
        with pytest.raises(split.WrongSplitError, match=message):
            split.check(table, target)

    def test_each_figure_is_the_median_of_the_rounds(self):
        rounds = [split.Result("berth", 10, *figures) for figures in ((9.0, 1.0, 5, True), (2.0, 3.0, 7, True), (3.0, 2.0, 6, False))]
        assert split.median(rounds) == split.Result("berth", 10, 3.0, 2.0, 6, False)

    def test_ratios_are_to_ours_with_as_many_keys(self):
        found = [split.Result("berth", 10, 2, 2.0, 100_000_000, True), split.Result("pandas", 10, 9, 7.0, 250_000_000, False)]
        assert "| pandas, groupby | 10 | 9.0 | 7.0 | 250 | 3.50 | 2.50 | no |" in split.as_markdown(found, 1000)


class TestGoals:
    @pytest.mark.parametrize(
        ("goal", "ratio", "verdict"),
        [
            (goals.Goal("m", "p", 8), 9.0, ""),
            (goals.Goal("m", "p", 8, floor=4.2), 4.2, "floor 4.2 met"),
            (goals.Goal("m", "p", 8, floor=4.2), 4.19, "floor 4.2 missed"),
            (goals.Goal("m", "p", 8, floor=1.25, aim=1.6), 1.3, "floor 1.25 met, aim 1.6 missed"),
        ],
    )
    def test_verdict(self, goal, ratio, verdict):
        assert goal.verdict(ratio) == verdict

    def test_goals_name_what_is_measured(self):
        from benchmarks.models import MODELS

        assert {goal.model for goal in goals.SPEED} == set(MODELS)
        assert len({(goal.model, goal.peer, goal.clients) for goal in goals.SPEED}) == len(goals.SPEED)
        assert goals.speed_goal("regression", "mms", 8) == goals.Goal("regression", "mms", 8)


class TestCommand:
    def test_complaints_name_the_cell(self):
        bad = measured(wrong=2, sample="200 1 instead of 0")
        cells = [report.Cell("forest", "berth", 8, [measured(), bad]), report.Cell("forest", "mms", 8, [measured()])]
        assert one_model.complaints(cells) == [
            "forest on berth with 8 clients, round 2: 100 answers, 2 of them wrong, 0 connections failed. 200 1 instead of 0"
        ]

    @pytest.mark.parametrize("arguments", [["--stacks", "nobody"], ["--clients", "0"], ["--seconds", "x"]])
    def test_bad_options_are_refused(self, arguments, capsys):
        with pytest.raises(SystemExit) as stopped:
            one_model.main(arguments)
        assert stopped.value.code == 2
        assert arguments[0] in capsys.readouterr().err

    def test_wrong_answers_fail_the_run(self, monkeypatch, capsys):
        found = speed(measured(5000, wrong=1), measured(1000))
        monkeypatch.setattr(one_model, "measure", lambda *_: found)
        monkeypatch.setattr(load, "find_wrk", lambda: "wrk")
        assert one_model.main([]) == 1
        assert "1 of them wrong" in capsys.readouterr().err

    def test_a_missing_wrk_ends_the_run(self, monkeypatch, capsys):
        monkeypatch.setenv("PATH", "/nowhere")
        assert one_model.main([]) == 2
        assert "apt-get install wrk" in capsys.readouterr().err
