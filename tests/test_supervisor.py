"""Histories of what workers tell, replayed; and real processes: who ends when, by which signal, and with what exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from container import events, supervisor
from container.supervisor import Command, Supervisor
from tests.waiting import until

ROOT = Path(__file__).parent.parent
DEADLINE = 20

# What is told (kind, slot and pid, or the cause) to a supervisor of two workers; whether it is ready after it, and why it ends if it does.
HISTORIES = {
    "nothing": ([], False, None),
    "one of two is ready": (["ready 0 10"], False, None),
    "both are ready": (["ready 0 10", "ready 1 11"], True, None),
    "one slot twice is not two": (["ready 0 10", "ready 0 12"], False, None),
    "one dies before all are ready": (["ready 0 10", "died 0 10", "ready 1 11"], False, None),
    "one of two dies": (["ready 0 10", "ready 1 11", "died 0 10"], True, None),
    "both die": (["ready 0 10", "ready 1 11", "died 0 10", "died 1 11"], False, None),
    "both die and one is back": (["ready 0 10", "ready 1 11", "died 0 10", "died 1 11", "ready 1 12"], True, None),
    "a death is told late": (["ready 0 10", "ready 1 11", "ready 0 12", "died 0 10", "died 1 11"], True, None),
    "two deaths": (["died 0 10", "died 0 11"], False, None),
    "three deaths": (
        ["died 0 10", "died 1 11", "died 0 12"],
        False,
        "STARTUP FAILED: 3 workers in a row died before their first answer; of the last: 12",
    ),
    "deaths go on after the end": (["died 0 10", "died 1 11", "died 0 12", "died 0 13"], False, "STARTUP FAILED: 3 workers in a row "),
    "a warm-up breaks the row": (["died 0 10", "died 0 11", "ready 0 12 warm", "died 1 13", "died 1 14"], False, None),
    "an answer breaks the row": (["died 0 10", "died 0 11", "answered 0 12", "died 1 13", "died 1 14"], False, None),
    "readiness without a warm-up does not": (["died 0 10", "died 0 11", "ready 0 12", "died 0 12"], False, "STARTUP FAILED: 3 workers "),
    "untried workers die after readiness": (
        ["ready 0 10", "ready 1 11", "died 0 10", "died 1 11", "ready 0 12", "died 0 12"],
        False,
        "FAILED: 3 workers in a row died before their first answer; of the last: 12",
    ),
    "those that answered may all die at once": (
        ["answered 0 10", "answered 1 11", "answered 2 12", "died 0 10", "died 1 11", "died 2 12", "died 0 13", "died 1 14"],
        False,
        None,
    ),
    "warm ones too": (["ready 0 10 warm", "ready 1 11 warm", "died 0 10", "died 1 11", "ready 0 12 warm", "died 0 12"], False, None),
    "who leaves has a successor": (["ready 0 10", "ready 1 11", "leaves 0 10", "leaves 1 11", "died 0 10", "died 1 11"], True, None),
    "that may be faster": (["ready 0 10", "ready 1 11", "leaves 0 10", "ready 0 12", "died 1 11", "died 0 10"], True, None),
    "one successor is enough": (["ready 0 10", "ready 1 11", "leaves 1 11", "died 1 11", "died 1 12"], True, None),
    "unless there is none": (["ready 0 10", "ready 1 11", "leaves 0 10", "died 0 10", "died 1 11", "died 0 12"], False, None),
    "to leave often is no crash loop": (["ready 0 10", "ready 1 11", *["leaves 0 10", "died 0 10", "ready 0 10"] * 5], True, None),
    "one cannot start": (["ready 0 10", "failed b"], False, "STARTUP FAILED: b"),
    "the first cause counts": (["failed b", "failed c", "died 0 10"], False, "STARTUP FAILED: b"),
    "one cannot start again": (["ready 0 10", "ready 1 11", "failed b"], True, "FAILED: b"),
}


def tell(run_dir, line):
    kind, *words = line.split()
    if kind == events.FAILED:
        events.tell(run_dir, kind, cause=words[0])
        return
    slot, pid = int(words[0]), int(words[1])
    more = {events.READY: {"warm": "warm" in words}, events.DIED: {"cause": words[1]}, events.ANSWERED: {}, events.LEAVES: {}}[kind]
    events.tell(run_dir, kind, slot=slot, pid=pid, **more)


@pytest.mark.parametrize("history", HISTORIES)
def test_histories(tmp_path, history):
    told, ready, cause = HISTORIES[history]
    announced = []
    runs = Supervisor((), tmp_path, workers=2, on_ready=lambda: announced.append(1))
    with events.listen(tmp_path) as runs._listener:
        for line in told:
            tell(tmp_path, line)
            runs._hear()
    assert runs.ready_file.exists() == ready
    assert (runs._cause or "").startswith(cause or "")
    assert (runs._cause is None) == (cause is None)
    assert runs._code == (0 if cause is None else 1)
    assert len(announced) <= 1


@pytest.fixture
def run(tmp_path):
    """Runs a supervisor here, within a deadline; signals and children are as they were afterwards."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}

    def late(number, frame):
        raise TimeoutError(f"the supervisor still runs after {DEADLINE} s")

    def run(*commands, **changes):
        signal.signal(signal.SIGALRM, late)
        signal.alarm(DEADLINE)
        try:
            return Supervisor(commands, tmp_path, **{"workers": len(commands), **changes}).run()
        finally:
            signal.alarm(0)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)
    assert not (tmp_path / "ready").exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def shell(name, source):
    return Command(name, ("/bin/sh", "-c", source), {"PATH": os.defpath})


@pytest.mark.parametrize(
    ("ends", "code", "how"),
    [
        ("exit 3", 3, "ended with code 3"),
        ("exit 0", 1, "ended with code 0"),
        ("kill -KILL $$", 1, "was killed by SIGKILL"),
        ("kill -SEGV $$", 1, "was killed by SIGSEGV"),
    ],
)
def test_the_first_command_to_end_ends_all(run, capsys, ends, code, how):
    assert run(shell("stays", "exec sleep 1000"), shell("ends", f"ulimit -c 0; {ends}")) == code
    told = capsys.readouterr().err
    assert told.startswith("STARTUP FAILED: ends (pid ")
    assert told.endswith(f") {how}\n")
    assert told.count("\n") == 1


def test_what_a_command_said_before_it_ended_is_the_cause(run, tmp_path, capsys):
    def spawn(argv, **options):
        events.tell(tmp_path, events.FAILED, cause="model_fn raised KeyError")
        return subprocess.Popen(argv, **options)

    assert run(shell("gunicorn", "exit 4"), spawn=spawn) in (1, 4)
    assert capsys.readouterr().err == "STARTUP FAILED: model_fn raised KeyError\n"


# Tells that it is ready; when it is ended, writes who it was, the signal, and whether the server was still said to be ready.
GENTLE = """
import os, signal, sys
from pathlib import Path
from container import events

name, slot, run_dir = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])

def say(who, number):
    with (run_dir / "log").open("a") as log:
        print(who, signal.Signals(number).name, (run_dir / "ready").exists(), file=log)

def end(number, frame):
    say(name, number)
    sys.exit()

signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGQUIT, end)
"""
TELLS = """
events.tell(run_dir, events.READY, slot=slot, pid=os.getpid(), warm=False)
while True:
    signal.pause()
"""
# As nginx: on SIGHUP its worker is told to end, and takes its time.
WITH_A_WORKER = """
reading, writing = os.pipe()
worker = os.fork()
if worker == 0:
    signal.signal(signal.SIGTERM, lambda number, frame: (say(name + "'s worker", number), os._exit(0)))
    os.write(writing, b"!")
    while True:
        signal.pause()
os.read(reading, 1)
signal.signal(signal.SIGHUP, lambda number, frame: (say(name, number), os.kill(worker, signal.SIGTERM)))
"""


def python(name, slot, run_dir, source, *stop):
    argv = (sys.executable, "-c", source, name, str(slot), str(run_dir))
    return Command(name, argv, {"PYTHONPATH": str(ROOT)}, *([stop] if stop else []))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_gently_in_reverse_order(run, tmp_path, number):
    commands = [python(name, slot, tmp_path, GENTLE + TELLS) for slot, name in enumerate(("first", "second", "third"))]
    assert run(*commands, on_ready=lambda: os.kill(os.getpid(), number)) == 0
    assert (tmp_path / "log").read_text().splitlines() == ["third SIGTERM False", "second SIGTERM False", "first SIGTERM False"]


def test_between_two_signals_the_children_that_were_there_end(run, tmp_path):
    command = python("nginx", 0, tmp_path, GENTLE + WITH_A_WORKER + TELLS, signal.SIGHUP, signal.SIGQUIT)
    assert run(command, on_ready=lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == ["nginx SIGHUP False", "nginx's worker SIGTERM False", "nginx SIGQUIT False"]


def test_who_does_not_end_is_killed_after_the_grace(run, tmp_path, caplog):
    deaf = GENTLE + "signal.signal(signal.SIGTERM, signal.SIG_IGN)" + TELLS
    seconds = iter(range(0, 10_000, 5))
    assert run(python("deaf", 0, tmp_path, deaf), on_ready=lambda: os.kill(os.getpid(), signal.SIGTERM), clock=lambda: next(seconds)) == 0
    assert [record.getMessage() for record in caplog.records] == ["not everything ended within 25 s of grace: deaf"]


def test_what_a_command_leaves_behind_ends_with_it(run, tmp_path):
    left = f"sleep 1000 & echo $! > {tmp_path}/pid; exit 5"
    assert run(shell("leaves", left)) == 5
    left_behind = int((tmp_path / "pid").read_text())
    until(lambda: not supervisor.alive(left_behind), DEADLINE, "the end of what was left behind")


def test_a_command_that_cannot_be_started_leaves_none_of_the_others(run):
    with pytest.raises(FileNotFoundError):
        run(shell("stays", "exec sleep 1000"), Command("absent", ("/nowhere/at/all",), {}))


def test_what_comes_through_a_pipe_is_on_stdout_to_the_last_line(run, capfdbinary):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        run(shell("talks", f"echo said > /proc/{os.getpid()}/fd/{writing}; exit 1"), forward=(reading,))
    finally:
        os.close(reading)
        os.close(writing)
    assert capfdbinary.readouterr().out == b"said\n"


def test_commands_get_their_environment_and_nothing_to_read(run, tmp_path):
    source = f"env > {tmp_path}/env; cat > {tmp_path}/input"
    assert run(Command("sees", ("/bin/sh", "-c", source), {"PATH": os.defpath, "ONLY": "this"})) == 1
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {"PATH", "ONLY"}
    assert (tmp_path / "input").read_text() == ""


def test_children_and_whether_they_live():
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        assert supervisor.children(os.getpid()) == [child.pid]
        assert supervisor.children(child.pid) == []
        assert supervisor.alive(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not supervisor.alive(child.pid), "it only waits to be reaped"
    assert not supervisor.alive(child.pid)
