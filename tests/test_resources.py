"""CPUs and memory out of made-up cgroup trees, and the plan that follows from them."""

import mmap
import os
import subprocess
import sys

import pytest

from container import resources
from container.resources import Plan, Resources, granted, oom_kills, plan
from container.settings import THREAD_VARIABLES, Settings

MEGABYTE, GIGABYTE = 1 << 20, 1 << 30
HOST_CPUS, HOST_MEMORY = 8.0, 16 * GIGABYTE
V1 = {"proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"}
V2 = {"proc/self/cgroup": "0::/\n"}
NESTED = {"proc/self/cgroup": "0::/kubepods/pod7\n"}
NO_LIMIT_V1 = {
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
}


def v1(quota, limit, where=""):
    return {
        f"sys/fs/cgroup/cpu{where}/cpu.cfs_quota_us": f"{quota}\n",
        f"sys/fs/cgroup/cpu{where}/cpu.cfs_period_us": "100000\n",
        f"sys/fs/cgroup/memory{where}/memory.limit_in_bytes": f"{limit}\n",
    }


def v2(cpu, limit, where=""):
    return {f"sys/fs/cgroup{where}/cpu.max": f"{cpu}\n", f"sys/fs/cgroup{where}/memory.max": f"{limit}\n"}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 8 CPUs and 16 GB, by the files that say so and others."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(int(HOST_CPUS))))

    def build(files):
        for path, text in {"proc/meminfo": f"MemFree: 1 kB\nMemTotal: {HOST_MEMORY // 1024} kB\n", **files}.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return tmp_path

    return build


@pytest.mark.parametrize(
    ("files", "cpus", "memory"),
    [
        pytest.param({}, HOST_CPUS, HOST_MEMORY, id="no cgroup"),
        pytest.param(V1 | v1(200000, GIGABYTE), 2.0, GIGABYTE, id="v1, own namespace"),
        pytest.param(V1 | v1(200000, GIGABYTE, "/docker/abc") | NO_LIMIT_V1, 2.0, GIGABYTE, id="v1, as the host sees it"),
        pytest.param(
            V1 | v1(400000, 4 * GIGABYTE, "/docker/abc") | v1(50000, GIGABYTE, "/docker"), 0.5, GIGABYTE, id="v1, parent is tighter"
        ),
        pytest.param(V1 | NO_LIMIT_V1, HOST_CPUS, HOST_MEMORY, id="v1, no limit"),
        pytest.param(V1, HOST_CPUS, HOST_MEMORY, id="v1, no files"),
        pytest.param(V2 | v2("150000 100000", 512 * MEGABYTE), 1.5, 512 * MEGABYTE, id="v2, a fraction"),
        pytest.param(V2 | v2("25000 100000", 512 * MEGABYTE), 0.25, 512 * MEGABYTE, id="v2, a quarter"),
        pytest.param(V2 | v2("max 100000", "max"), HOST_CPUS, HOST_MEMORY, id="v2, no limit"),
        pytest.param(V2 | v2("max", ""), HOST_CPUS, HOST_MEMORY, id="v2, empty files"),
        pytest.param(V2 | v2("6400000 100000", 64 * GIGABYTE), HOST_CPUS, HOST_MEMORY, id="v2, more than there is"),
        pytest.param(
            NESTED | v2("max 100000", 2 * GIGABYTE, "/kubepods/pod7") | v2("300000 100000", "max", "/kubepods"),
            3.0,
            2 * GIGABYTE,
            id="v2, each level limits something",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/../other\n"} | v2("100000 100000", GIGABYTE), 1.0, GIGABYTE, id="v2, outside of its namespace"
        ),
        pytest.param(V2 | v2("100000 100000", GIGABYTE, "/elsewhere"), HOST_CPUS, HOST_MEMORY, id="somebody else's limit"),
        pytest.param(
            {"proc/self/cgroup": V1["proc/self/cgroup"] + "0::/docker/abc\n"} | v1(200000, GIGABYTE), 2.0, GIGABYTE, id="v1 beside v2"
        ),
    ],
)
def test_granted(machine, files, cpus, memory):
    found = granted(machine(files))
    assert (found.cpus, found.memory) == (cpus, memory)
    assert found.cpus_from == ("CPU affinity" if cpus == HOST_CPUS else "cgroup CPU quota")
    assert found.memory_from == ("host" if memory == HOST_MEMORY else "cgroup memory limit")


def test_this_machine_grants_something():
    found = granted()
    assert 0 < found.cpus <= (os.cpu_count() or 1)
    assert MEGABYTE < found.memory < resources.UNLIMITED


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({}, 0),
        (V1 | {"sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"}, 3),
        (V2 | {"sys/fs/cgroup/memory.events": "low 0\nhigh 9\nmax 4\noom 2\noom_kill 2\noom_group_kill 0\n"}, 2),
        (NESTED | {"sys/fs/cgroup/kubepods/pod7/memory.events": "oom_kill 1\n", "sys/fs/cgroup/memory.events": "oom_kill 8\n"}, 1),
        (V2 | {"sys/fs/cgroup/memory.events": "oom_kill\n"}, 0),
    ],
)
def test_oom_kills(machine, files, kills):
    assert oom_kills(machine(files)) == kills


@pytest.mark.parametrize(
    ("cpus", "given", "workers", "threads"),
    [
        (8.0, {}, 8, 1),
        (8.0, {"workers": 2}, 2, 4),
        (8.0, {"workers": 3}, 3, 2),
        (8.0, {"workers": 16}, 16, 1),
        (0.25, {}, 1, 1),
        (1.0, {}, 1, 1),
        (1.5, {}, 2, 1),
        (2.5, {"workers": 1}, 1, 2),
        (8.0, {"profile": "serverless"}, 1, 8),
        (8.0, {"profile": "serverless", "workers": 4}, 1, 8),
        (8.0, {"profile": "realtime", "serverless_signs": ("LAMBDA_TASK_ROOT",)}, 8, 1),
    ],
)
def test_workers_and_threads(tmp_path, cpus, given, workers, threads):
    planned = plan(Settings(**given), Resources(cpus, "cgroup CPU quota", GIGABYTE, "host"), tmp_path, tmp_path)
    assert (planned.workers, planned.threads, planned.serverless) == (workers, threads, given.get("profile") == "serverless")


@pytest.mark.parametrize(
    ("given", "shm", "writable", "serverless", "reason"),
    [
        ({}, True, True, False, "no sign of serverless"),
        ({}, False, True, False, "no sign of serverless"),
        ({}, True, False, False, "no sign of serverless"),
        ({}, False, False, True, "no {shm}, and {program} is not writable"),
        ({"serverless_signs": ("AWS_LAMBDA_FUNCTION_NAME",)}, True, True, True, "AWS_LAMBDA_FUNCTION_NAME is set"),
        ({"profile": "realtime"}, False, False, False, "default"),
        ({"profile": "serverless", "given": {"profile": "MODEL_SERVER_PROFILE"}}, True, True, True, "MODEL_SERVER_PROFILE"),
    ],
)
def test_signs_of_serverless(tmp_path, monkeypatch, given, shm, writable, serverless, reason):
    monkeypatch.setattr(os, "access", lambda path, mode: writable)  # root may write anywhere
    shared = tmp_path / ("." if shm else "absent")
    planned = plan(Settings(**given), Resources(4.0, "", GIGABYTE, ""), tmp_path, shared)
    assert planned.serverless == serverless
    assert f"({reason.format(shm=shared, program=tmp_path)})" in planned.reasons[2]


def test_each_decision_has_its_line(tmp_path):
    settings = Settings(workers=1, given={"workers": "MODEL_SERVER_WORKERS"}, threads_by_user={"OMP_NUM_THREADS": "7"})
    planned = plan(settings, Resources(2.5, "cgroup CPU quota", 3 * GIGABYTE // 2, "cgroup memory limit"), tmp_path, tmp_path)
    assert planned.reasons == (
        "resources  2.5 CPUs (cgroup CPU quota), 1.5 GiB (cgroup memory limit)",
        "workers    1 (MODEL_SERVER_WORKERS), 2 BLAS threads each, but OMP_NUM_THREADS=7 was given",
        "profile    realtime (no sign of serverless)",
    )


def test_threads_are_set_but_for_those_that_the_user_set():
    environ = Plan(2, 3, False, ()).thread_environment(Settings(threads_by_user={"OMP_NUM_THREADS": "1"}))
    assert environ == {name: "3" for name in THREAD_VARIABLES if name != "OMP_NUM_THREADS"}


def test_memory_of_a_process_that_is_and_of_one_that_was():
    assert resources.rss() == pytest.approx(resources.rss(os.getpid()), rel=0.2)
    assert resources.rss() > 10 * MEGABYTE
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert resources.rss(ended.pid) == resources.written(ended.pid) == 0


def test_what_was_written_is_told_from_what_is_a_files(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * (20 * MEGABYTE))
    before = resources.written()
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped.find(b"y") == -1, "all of it is read"
        assert abs(resources.written() - before) < 5 * MEGABYTE
    with mmap.mmap(-1, 20 * MEGABYTE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as written:  # fresh pages, whatever was freed before
        for page in range(0, 20 * MEGABYTE, mmap.PAGESIZE):
            written[page] = 1
        assert 15 * MEGABYTE < resources.written() - before < 30 * MEGABYTE
