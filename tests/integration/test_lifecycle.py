"""Drivers and clusters as real processes: how they begin, end, and what is left of them (I14)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from tests.clusters import Place, finish, line_of, place, tell
from tests.integration.test_commands import task_table
from tests.support import eventually
from zray.runtime import session_dir

pytestmark = pytest.mark.slow

BUSY = """
import os, signal, sys, time
import zray
zray.init(num_cpus=2)

@zray.remote
def sleep():
    time.sleep(1000)

@zray.remote
class Actor:
    def answer(self):
        return 42

actor = Actor.remote()
assert zray.get(actor.answer.remote()) == 42
big = zray.put(b"x" * 5_000_000)
refs = [sleep.remote() for _ in range(10)]
print("ready")
"""
PIDS = """
from zray.runtime import session_dir
pids = [process.pid for process in session_dir.latest().info.processes]
node, shard, zygote = pids[0], pids[1], pids[-1]
"""


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


# --- ends of a driver ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("pass", 0),
        ("zray.shutdown()", 0),
        ("raise ValueError('mine')", 1),
        ("sys.exit(3)", 3),
        ("os._exit(4)", 4),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        (
            # Whoever started the tests may ignore it, as nohup does.
            "signal.signal(signal.SIGHUP, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGHUP)",
            -signal.SIGHUP,
        ),
    ],
)
def test_nothing_is_left_however_the_driver_ends(here: Place, ending: str, code: int) -> None:
    done = here.run(BUSY + ending)
    assert (done.returncode, done.stdout) == (code, "ready\n")
    assert ("mine" in done.stderr) == ("mine" in ending)
    here.assert_empty()


def test_init_and_shutdown_twenty_times_leak_nothing(here: Place) -> None:
    done = here.run("""
        import os, threading, zray

        @zray.remote
        def double(x):
            return 2 * x

        def count():
            return len(os.listdir("/proc/self/fd")), threading.active_count()

        for turn in range(21):
            zray.init(num_cpus=1)
            assert zray.get(double.remote(21)) == 42
            assert len(zray.get(zray.put(b"x" * 1_000_000))) == 1_000_000
            zray.shutdown()
            if turn == 0:
                before = count()
        print(before == count(), before, count())
    """)
    assert done.stdout.startswith("True"), (done.stdout, done.stderr)


def test_shutdown_twice_and_without_init(here: Place) -> None:
    done = here.run("""
        import zray
        zray.shutdown()
        zray.init(num_cpus=1)
        zray.shutdown()
        zray.shutdown()
        assert not zray.is_initialized()
        try:
            with zray.init(num_cpus=1):
                zray.init(num_cpus=1)
        except RuntimeError as error:
            print(error)
        print(zray.is_initialized())
    """)
    assert done.stdout == "zray.init() was called twice; call zray.shutdown() first\nFalse\n", done.stderr


def test_interrupt_of_the_terminal_reaches_only_the_driver(here: Place) -> None:
    """Ctrl-C goes to the whole process group: the driver decides, its cluster goes on."""
    driver = here.start(
        """
        import os, time, zray
        zray.init(num_cpus=1)

        @zray.remote
        def pid():
            return os.getpid()

        @zray.remote
        def nap():
            while not os.path.exists("woken"):
                time.sleep(0.01)
            return "slept"

        before = zray.get(pid.remote())
        ref = nap.remote()
        try:
            print("ready")
            zray.get(ref)
        except KeyboardInterrupt:
            print("interrupted")
        open("woken", "w").close()
        print(zray.get(ref), zray.get(pid.remote()) == before)
        """,
        start_new_session=True,
    )
    assert line_of(driver) == "ready"
    os.killpg(driver.pid, signal.SIGINT)
    done = finish(driver)
    assert (done.stdout, done.returncode) == ("interrupted\nslept True\n", 0), done.stderr


# --- output ------------------------------------------------------------------------------------------


PRINTING = """
import sys, zray
zray.init(num_cpus=2)

@zray.remote
def say(i):
    print("worker says", i)
    print("worker warns", i, file=sys.stderr)

print("driver says first")
zray.get([say.remote(i) for i in range(3)])
print("driver says last")
"""


def test_prints_of_workers_are_on_the_output_of_the_driver(here: Place) -> None:
    done = here.run(PRINTING)
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("driver says first", "driver says last")
    assert sorted(line.partition(") ")[2] for line in lines[1:-1]) == [f"worker says {i}" for i in range(3)]
    warnings = [line.partition(") ")[2] for line in done.stderr.splitlines()]
    assert sorted(warnings) == [f"worker warns {i}" for i in range(3)]
    assert all(line.startswith("(say pid=") for line in lines[1:-1])


def test_prints_of_workers_and_driver_share_one_file(here: Place) -> None:
    path = here.folder / "output"
    with path.open("w") as output:
        finish(here.start(PRINTING, stdout=output))
    assert len(path.read_text().splitlines()) == 5, path.read_text()


def test_output_of_a_driver_may_be_a_socket_or_closed(here: Place) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        driver = here.start(PRINTING, stdout=theirs)
        theirs.close()
        assert finish(driver).returncode == 0
        assert len(ours.recv(10_000).splitlines()) == 5
    closed = here.command("sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", PRINTING)
    assert closed.returncode == 0, closed.stderr


def test_infeasible_request_warns_a_driver_without_logging_setup_once(here: Place) -> None:
    done = here.run(
        """
        import time, zray
        zray.init(num_cpus=1, resources={"disk": 1})

        @zray.remote
        def one():
            return 1

        @zray.remote(num_gpus=1)
        def on_gpu():
            return 2

        @zray.remote(resources={"disk": 2, "tape": 1})
        def on_tape():
            return 3

        refs = [on_gpu.remote() for _ in range(5)] + [on_tape.remote()]
        started = time.monotonic()
        try:
            zray.get(refs[0], timeout=1.5)
        except zray.exceptions.GetTimeoutError:
            print("timed out", round(time.monotonic() - started, 1))
        print(zray.get([one.remote() for _ in range(10)]) == [1] * 10)
        print(zray.wait(refs, num_returns=1, timeout=0.5)[0])
        """,
        environment={"ZRAY_INFEASIBLE_GRACE_NS": "200000000"},
    )
    assert done.stdout == "timed out 1.5\nTrue\n[]\n", done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3, done.stderr
    assert lines.pop().startswith("zray: 6 tasks were abandoned")
    gpu, tape = sorted(lines)
    assert "on_gpu() asks for 1 CPU, 1 GPU, which no node can provide" in gpu
    assert "has 0 of 1 GPU" in gpu
    assert "has 1 of 2 disk, 0 of 1 tape" in tape


# --- several drivers, several clusters ---------------------------------------------------------------


def test_two_clusters_of_one_user_at_once(here: Place) -> None:
    program = BUSY + "input(); print(zray.get(actor.answer.remote()))"
    first, second = here.start(program), here.start(program)
    assert [line_of(first), line_of(second)] == ["ready", "ready"]
    assert len(here.sessions()) == 2
    assert finish(second, "\n").stdout == "42\n"
    eventually(lambda: len(here.sessions()) == 1)
    assert finish(first, "\n").stdout == "42\n"


def test_second_driver_joins_and_leaves_alone(here: Place) -> None:
    """Its tasks and actors end with it, however it ends; what the first one has stays."""
    first = here.start("""
        import time, zray
        context = zray.init(num_cpus=2)
        print(context.address)

        @zray.remote
        class Counter:
            count = 0
            def add(self):
                self.count += 1
                return self.count

        counter = Counter.remote()
        assert zray.get(counter.add.remote()) == 1
        input()
        from zray.api.cluster import report
        deadline = time.monotonic() + 5
        def alive():
            return [row for row in report("actors") if row["state"] != "dead"]
        while report("tasks") or len(report("objects")) > 1 or len(report("workers")) > 3 or len(alive()) > 1:
            assert time.monotonic() < deadline, [report("tasks"), report("objects"), alive()]
            time.sleep(0.01)
        print(zray.get(counter.add.remote()), zray.available_resources()["CPU"])
        print(sorted(row["name"] + " " + row["state"] for row in report("actors")))
    """)
    address = line_of(first)
    joining = BUSY.replace("num_cpus=2", f"address={address!r}")
    joined = here.run(joining)
    assert joined.stdout == "ready\n", joined.stderr
    by_auto = here.run("""
        import zray
        print(zray.init(address="auto").address)
        try:
            zray.shutdown()
            zray.init(address="auto", num_cpus=3)
        except ValueError as error:
            print(error)
    """)
    assert by_auto.stdout.splitlines() == [
        address, "num_cpus belongs to the node that is joined; leave it out with address=",
    ], by_auto.stderr  # fmt: skip
    killed = here.start(joining + "input()")
    assert line_of(killed) == "ready"
    killed.kill()
    finish(killed)
    tell(first)
    done = finish(first)
    assert done.stdout.splitlines() == ["2 2", "['Actor dead', 'Actor dead', 'Counter alive']"], done


def test_joining_again_and_again_leaks_nothing_in_the_node(here: Place) -> None:
    done = here.run("""
        import os, zray
        context = zray.init(num_cpus=1)
        node = context.pid

        import subprocess, sys
        program = f'''
        import zray
        @zray.remote
        def f(): return 1
        for _ in range(10):
            zray.init(address={context.address!r})
            assert zray.get(f.remote()) == 1
            zray.shutdown()
        '''
        import textwrap
        def join():
            subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
            return len(os.listdir(f"/proc/{node}/fd"))
        print(join(), join())
    """)
    before, after = map(int, done.stdout.split())
    assert after <= before + 2, (done.stdout, done.stderr)


@pytest.mark.parametrize("address", ["ipc:///tmp/no/such/socket", "127.0.0.1:1", "tcp://localhost:1"])
def test_dead_address_is_named_at_once(here: Place, address: str) -> None:
    done = here.run(f"""
        import time, zray
        started = time.monotonic()
        try:
            zray.init(address={address!r})
        except zray.exceptions.ClusterUnavailableError as error:
            print(error, time.monotonic() - started < 1)
    """)
    assert "nothing listens at" in done.stdout, done.stderr
    assert address in done.stdout
    assert done.stdout.endswith("True\n")


def test_nonsense_address_is_a_value_error(here: Place) -> None:
    done = here.run("""
        import zray
        for address in ("nonsense", "http://x:1", "host:port", "host:70000"):
            try:
                zray.init(address=address)
            except ValueError as error:
                print(error)
    """)
    assert done.stdout.count("is neither HOST:PORT nor tcp://HOST:PORT nor ipc://PATH") == 4, done.stderr


@pytest.mark.parametrize("family", ["tcp", "ipc"])
def test_listener_that_is_not_zray_fails_within_the_timeout(here: Place, family: str) -> None:
    path = here.folder / "s"
    with socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX) as listener:
        listener.bind(("127.0.0.1", 0) if family == "tcp" else str(path))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}" if family == "tcp" else f"ipc://{path}"
        done = here.run(
            f"""
            import zray
            try:
                zray.init(address={address!r})
            except zray.exceptions.ClusterUnavailableError as error:
                print(error)
            """,
            environment={"ZRAY_INIT_TIMEOUT_NS": "500000000"},
        )
    path.unlink(missing_ok=True)
    assert f"something listens at {'tcp://' if family == 'tcp' else ''}{address}" in done.stdout, done.stderr
    assert "does not answer like zray (waited 0.5 s)" in done.stdout


# --- forks of a driver -------------------------------------------------------------------------------


SLOW_FAREWELL = """
    import time, zray
    zray.init(num_cpus=1)

    @zray.remote(num_cpus=1)
    class Slow:
        def call(self):
            pass

        def __ray_shutdown__(self):
            time.sleep(1000)

    slow = Slow.remote()
    zray.get(slow.call.remote())
    del slow
    print(zray.get(zray.remote(lambda: "the CPU is free").remote()))
"""


def test_an_actor_that_does_not_end_is_cut_off(here: Place) -> None:
    done = here.run(SLOW_FAREWELL, environment={"ZRAY_FAREWELL_TIMEOUT_NS": "100000000"})
    assert done.stdout.splitlines() == ["the CPU is free"], done.stderr


LATE = """
    import atexit, threading

    def late(name):
        try:
            print(name, zray.get(zray.put(1)))
        except Exception as error:
            print(name, type(error).__name__)

    def end():
        thread = threading.Thread(target=late, args=("thread",))
        thread.start()
        thread.join()
        late("handler")

    atexit.register(end)  # before zray's own handler is, and so it runs after it
    import zray

    zray.init(num_cpus=1)
"""


def test_no_cluster_starts_for_a_thread_that_outlives_the_program(here: Place) -> None:
    """A daemon thread in a loop would have one just before the interpreter stops it; a handler may."""
    done = here.run(LATE)
    assert done.stdout.splitlines() == ["thread NotInitializedError", "handler 1"], done.stderr


def test_forked_child_is_told_and_its_end_disturbs_nobody(here: Place) -> None:
    done = here.run("""
        import multiprocessing, os, sys, zray
        context = zray.init(num_cpus=2)

        @zray.remote
        def double(x):
            return 2 * x

        ref = double.remote(4)
        assert zray.get(ref) == 8

        def try_in_child(what):
            child = os.fork()
            if child == 0:
                try:
                    what()
                except zray.exceptions.ZrayError as error:
                    print(type(error).__name__, error, flush=True)
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert zray.get(double.remote(1)) == 2

        try_in_child(lambda: None)
        try_in_child(lambda: zray.get(ref))
        try_in_child(lambda: double.remote(1))
        try_in_child(lambda: zray.put(1))
        try_in_child(zray.shutdown)

        def join():
            zray.init(address=context.address)
            print("child", zray.get(double.remote(10)), flush=True)
        try_in_child(join)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(abs, [-1, -2]), flush=True)
        print("parent", zray.get(ref))
    """)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    forked = "NotInitializedError this process was forked from one that uses zray; call zray.init("
    assert [line.startswith(forked) for line in lines] == [True] * 3 + [False] * 3, (lines, done.stderr)
    assert lines[3:] == ["child 20", "[1, 2]", "parent 8"]
    assert done.stderr == ""


# --- ends of a cluster -------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["node", "zygote"])
def test_death_of_the_node_is_an_error_at_once_and_a_new_one_can_be_made(here: Place, victim: str) -> None:
    done = here.run(
        BUSY
        + PIDS
        + textwrap.dedent(f"""
        import threading
        def kill():
            global killed
            time.sleep(0.3)  # in the midst of the first get; at any other moment the answers are the same
            killed = time.monotonic()
            os.kill({victim}, signal.SIGKILL)
        threading.Thread(target=kill).start()
        for what in (lambda: zray.get(refs), lambda: zray.wait(refs), lambda: sleep.remote(),
                     lambda: zray.get(actor.answer.remote()), lambda: zray.put(b"x" * 5_000_000)):
            try:
                what()
            except zray.exceptions.ClusterUnavailableError as error:
                print(time.monotonic() - killed < 1, error)
        zray.shutdown()
        zray.init(num_cpus=1)
        print(zray.get(Actor.remote().answer.remote()))
        """)
    )
    lines = done.stdout.splitlines()
    assert lines[1:6] == ["True the node of this process is gone (waited 0.0 s)"] * 5, (lines, done.stderr)
    assert lines[6] == "42"


def test_death_of_a_shard_is_mended_and_no_record_is_lost(here: Place) -> None:
    driver = here.start("""
        import zray
        zray.init(num_cpus=2)
        kept = []

        @zray.remote
        def double(x):
            return 2 * x

        for turn in range(3):
            refs = [double.remote(i) for i in range(200)]
            kept += refs
            assert zray.get(refs) == [2 * i for i in range(200)]
            print("ran")
            input()
    """)
    killed: list[int] = []
    for turn in range(3):
        assert line_of(driver) == "ran"
        [session] = here.sessions()
        endpoint = f"ipc://{session}/gcs0"
        eventually(lambda: len(task_table(endpoint, 0)) == 200 * (turn + 1))  # noqa: B023  called here
        if turn < 2:
            pids = [process.pid for process in session_dir.load(str(session)).info.processes]
            killed.append(pids[-1] if killed else pids[1])  # the zygote is the last one at first
            os.kill(killed[-1], signal.SIGKILL)
        tell(driver)
    assert finish(driver).stderr.count("was killed by signal 9; it starts again from its log") == 2
    assert len(set(killed)) == 2


def test_shard_that_cannot_live_is_given_up_and_tasks_run_on(here: Place) -> None:
    driver = here.start("""
        import os, shutil, signal, time, zray
        from zray.runtime import session_dir
        zray.init(num_cpus=1)

        @zray.remote
        def double(x):
            return 2 * x

        session = session_dir.latest()
        while not os.path.exists(session.path + "/gcs0"):
            time.sleep(0.01)
        shutil.rmtree(session.path + "/gcs0.log")
        open(session.path + "/gcs0.log", "w").close()
        os.kill(session.info.processes[1].pid, signal.SIGKILL)
        assert zray.get([double.remote(i) for i in range(1000)]) == [2 * i for i in range(1000)]
        input()
        assert zray.get([double.remote(i) for i in range(1000)]) == [2 * i for i in range(1000)]
        print("ok")
    """)
    assert driver.stderr is not None
    given_up = "exited with code 1 again and is given up; tasks run on, without lineage"
    assert any(given_up in line for line in driver.stderr)
    assert finish(driver, "\n").stdout == "ok\n"


def test_workers_that_cannot_start_are_tried_again_and_not_for_ever(here: Place) -> None:
    begin = """
        import resource, time, zray
        from zray.runtime import session_dir
        zray.init(num_cpus=1)

        @zray.remote(num_cpus=0)
        def nap(seconds):
            time.sleep(seconds)
            return 1

        assert zray.get(nap.remote(0)) == 1
        zygote = session_dir.latest().info.processes[-1].pid
        limits = resource.prlimit(zygote, resource.RLIMIT_NOFILE)
        resource.prlimit(zygote, resource.RLIMIT_NOFILE, (4, limits[1]))
    """
    mended = here.run(begin + """
        refs = [nap.remote(0.3) for _ in range(4)]  # for more workers than there are
        time.sleep(0.2)  # while they cannot start
        resource.prlimit(zygote, resource.RLIMIT_NOFILE, limits)
        print(zray.get(refs))
    """)  # fmt: skip
    assert mended.stdout == "[1, 1, 1, 1]\n", mended.stderr
    hopeless = here.run(begin + """
        try:
            print(zray.get([nap.remote(1000) for _ in range(4)]))
        except zray.exceptions.ClusterUnavailableError as error:
            print(error)
    """)  # fmt: skip
    assert hopeless.stdout == "the node of this process is gone (waited 0.0 s)\n", hopeless.stderr
    assert "workers end before they can work (exit code 1); the node ends" in hopeless.stderr
    assert hopeless.stderr.count("Too many open files") <= 40


def test_everything_killed_in_one_go_is_swept_by_the_next_init(here: Place) -> None:
    driver = here.start(BUSY + "input()")
    assert line_of(driver) == "ready"
    processes = here.processes()
    assert len(processes) >= 6
    for process in processes:  # nobody has time to clean up after another
        process.send_signal(signal.SIGSTOP)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    finish(driver)
    eventually(lambda: not here.processes())
    [old] = here.sessions()
    assert here.run("import zray; zray.init(num_cpus=1); print('ok')").stdout == "ok\n"
    assert not old.exists()


def test_interrupt_and_end_while_init_waits(here: Place) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        driver = here.start("import zray; print('go'); zray.init(num_cpus=1); print('done'); input()")
        assert line_of(driver) == "go"
        time.sleep(0.05)  # somewhere in the middle of the start
        driver.send_signal(number)
        finish(driver, "")
        here.assert_empty()


def test_node_that_cannot_start_says_why(here: Place) -> None:
    (here.folder / f"zray-{os.getuid()}").touch()
    done = here.run("""
        import zray
        try:
            zray.init(num_cpus=1)
        except zray.exceptions.ClusterUnavailableError as error:
            print(error)
        import threading
        print(threading.active_count(), zray.is_initialized())
    """)
    assert "is not safe to use: it is not a directory" in done.stdout, done.stderr
    assert done.stdout.endswith("1 False\n")
    (here.folder / f"zray-{os.getuid()}").unlink()


def test_driver_in_a_directory_that_is_gone_and_a_sys_path_of_path_objects(here: Place) -> None:
    done = here.run("""
        import os, pathlib, sys, tempfile
        folder = tempfile.mkdtemp()
        import zray
        os.chdir(folder)
        os.rmdir(folder)
        sys.path.append(pathlib.Path("/somewhere"))
        zray.init(num_cpus=1)

        @zray.remote
        def one():
            return 1
        print(zray.get(one.remote()))
    """)
    assert done.stdout == "1\n", done.stderr


def test_many_cpus_on_a_small_machine(here: Place) -> None:
    done = here.run("""
        import zray
        zray.init(num_cpus=2000)
        print(zray.cluster_resources()["CPU"], len(zray.nodes()))
    """)
    assert done.stdout.split()[1] == "1", done.stderr
    assert subprocess.run(["true"], check=True).returncode == 0
