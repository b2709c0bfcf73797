"""The commands ``zray``, ``zray-node`` and ``zray-gcs`` as people use them."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import PATIENCE_S, Place, finish, line_of, place, tell
from tests.support import eventually
from zray import __version__

pytestmark = pytest.mark.slow

NODE = [sys.executable, "-m", "zray.services.node"]
GCS = [sys.executable, "-m", "zray.services.gcs"]
DOUBLE = """
import zray
{init}
@zray.remote
def double(x):
    return 2 * x
print(zray.get([double.remote(i) for i in range(3)]))
"""


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def write(here: Place, text: str, name: str = "script.py") -> str:
    path = here.folder / "scripts" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return str(path)


# --- zray --------------------------------------------------------------------------------------------


def test_help_loads_nothing_that_costs(here: Place) -> None:
    """It has 100 ms: the interpreter takes 10 to 20 of them, argparse 10."""
    program = "import sys; from zray.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    done = here.run(program + "print(sorted(sys.modules))")
    for name in ("zmq", "msgspec", "zray.errors", "typing", "logging", "socket"):
        assert f"'{name}'" not in done.stdout
    for command in ("run", "start", "stop", "status", "version"):
        assert f"\n    {command} " in done.stdout


def test_an_unknown_option_is_answered_with_those_of_its_command(here: Place) -> None:
    done = here.zray("status", "--adress", "x")
    assert done.returncode == 2
    assert "usage: zray status [-h] [--address ADDRESS]" in done.stderr
    assert "unrecognized arguments: --adress x" in done.stderr


def test_a_reader_that_leaves_is_no_traceback(here: Place) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = here.zray("sim", "list", stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_version(here: Place) -> None:
    for arguments in (["version"], ["--version"]):
        assert here.zray(*arguments).stdout == f"zray {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "the following arguments are required: SCRIPT"),
        (["run", "--fast", "x.py"], "unrecognized arguments: --fast"),
        (["start"], "one of the arguments --head --address is required"),
        (["start", "--head", "--address", "h:1"], "not allowed with argument --head"),
        (["start", "--head", "--num-cpus", "many"], "invalid float value: 'many'"),
        (["start", "--head", "--num-cpus", "-1"], "CPU"),
        (["start", "--head", "--gcs-shards", "0"], "'0' is not a whole number of at least 1"),
        (["start", "--head", "--resources", "{'a': 1}"], "not a JSON object of amounts by name"),
        (["start", "--head", "--resources", '{"CPU": 1}'], "give CPU as --num-cpus"),
        (["start", "--address", "nowhere"], "'nowhere' is neither HOST:PORT"),
        (["stop", "now"], "unrecognized arguments: now"),
    ],
)
def test_nonsense_is_refused_with_code_2(here: Place, arguments: list[str], complaint: str) -> None:
    done = here.zray(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--gcs-replicas", "65"), ("--gcs-shards", "10001")])
def test_a_control_store_with_too_many_processes_is_refused_before_there_is_one(
    here: Place, arguments: tuple[str, str]
) -> None:
    for command in ([sys.executable, "-m", "zray.cli", "start", "--head"], NODE):
        done = here.command(*command, "--num-cpus", "1", *arguments)
        assert done.returncode == 1
        assert "a control store has 1 to 10000 shards with 1 to 64 replicas each" in done.stderr
        assert "Traceback" not in done.stderr
    assert not here.remains()


def test_run_is_as_with_python(here: Place) -> None:
    write(here, "value = 17", "neighbour.py")
    script = write(
        here,
        """
        import sys
        import neighbour
        print(__name__, __file__, sys.argv, sys.path[0], neighbour.value)
        sys.exit(5)
        """,
    )
    arguments = ["--address", "-x", "--", "--help", "last"]
    by_zray = here.zray("run", script, *arguments)
    by_python = here.command(sys.executable, script, *arguments)
    assert (by_zray.stdout, by_zray.returncode) == (by_python.stdout, 5)
    assert f"['{script}', '--address', '-x', '--', '--help', 'last']" in by_zray.stdout


def test_run_shows_only_frames_of_the_user(here: Place) -> None:
    script = write(here, "def f():\n    raise ValueError('mine')\nf()\n")
    done = here.zray("run", script)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1].startswith(f'  File "{script}", line 3')
    missing = here.zray("run", script + ".not")
    assert (missing.returncode, "No such file or directory" in missing.stderr) == (2, True)
    killed = here.zray("run", write(here, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"))
    assert killed.returncode == -signal.SIGTERM


def test_run_starts_a_cluster_of_its_own_or_joins_one(here: Place) -> None:
    script = write(here, DOUBLE.format(init="print(zray.init().address)"))
    own = here.zray("run", script)
    assert own.stdout.splitlines()[1] == "[0, 2, 4]", own.stderr
    first = here.start("import zray; print(zray.init(num_cpus=1).address); input()")
    address = line_of(first)
    for arguments, environment in (
        (["--address", address], {}),
        (["--address=auto"], {}),
        ([], {"ZRAY_ADDRESS": address}),
    ):
        done = here.zray("run", *arguments, script, environment=environment)
        assert done.stdout.splitlines() == [address, "[0, 2, 4]"], done.stderr
    tell(first)
    finish(first)
    late = here.zray("run", "--address", address, script)
    assert late.returncode == 1
    assert late.stderr.splitlines()[-1].startswith(
        f"zray.errors.ClusterUnavailableError: nothing listens at {address}: No such file or directory"
    )


def test_start_status_stop(here: Place) -> None:
    assert here.zray("stop").stdout == "no cluster of this user runs on this machine\n"
    none = here.zray("status")
    assert (none.returncode, none.stdout) == (1, "")
    assert none.stderr.startswith("zray: no cluster of this user runs on this machine (address='auto')")

    begun = here.zray("start", "--head", "--num-cpus", "2", "--resources", '{"disk": 3}', "--gcs-shards", "2")
    assert begun.returncode == 0, begun.stderr
    address = begun.stdout.split(" runs at ")[1].split()[0]
    for line in (f"zray.init(address={address!r})", f"zray stop --address {address}", "zray status"):
        assert line in begun.stdout
    script = write(here, DOUBLE.format(init="zray.init(address='auto')"))
    assert here.zray("run", script).stdout == "[0, 2, 4]\n"

    text = here.zray("status").stdout
    assert "2 of 2 CPU" in text
    assert "3 of 3 disk" in text
    assert "3 finished" in text
    found = json.loads(here.zray("status", "--json", "--address", address).stdout)
    assert found["node"]["endpoint"] == address
    assert found["node"]["total"]["disk"] == 3
    pids = [process.pid for process in here.processes()]
    assert len(pids) >= 1 + 2 + 1  # workers end with the job that they worked for

    stranger = here.zray("stop", "--address", "ipc:///nowhere")
    assert (stranger.returncode, stranger.stdout) == (1, "")
    ended = here.zray("stop", "--address", address)
    assert ended.stdout.startswith(f"ended the node at {address} (process ")
    assert not here.remains()


def test_stop_ends_all_and_kills_what_does_not_end(here: Place) -> None:
    assert here.zray("start", "--head", "--num-cpus", "1").returncode == 0
    driver = here.start("import zray; print(zray.init(num_cpus=1).pid); input()")
    os.kill(int(line_of(driver)), signal.SIGSTOP)
    done = here.zray("stop", environment={"ZRAY_SHUTDOWN_TIMEOUT_NS": "500000000"})
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == ["ended", "killed"], done
    finish(driver, "\n")
    here.assert_empty()


def test_output_of_a_detached_cluster_is_in_its_logs(here: Place) -> None:
    begun = here.zray("start", "--head", "--num-cpus", "1")
    logs = Path(begun.stdout.split("read its logs")[1].split()[0])
    script = """
    import zray
    zray.init(address="auto")
    @zray.remote
    def say():
        print("hello from a worker")
    zray.get(say.remote())
    """
    assert here.run(script).stdout.endswith(") hello from a worker\n")
    printed = [path.read_text() for path in logs.glob("worker-*.out")]
    assert "".join(printed) == "hello from a worker\n"
    log = (logs / "node.log").read_text()
    assert "listens on ipc://" in log
    assert "shard 0/1 of cluster" in log
    here.zray("stop")


def test_start_that_fails_says_why(here: Place) -> None:
    quick = {"ZRAY_INIT_TIMEOUT_NS": "300000000"}
    done = here.zray("start", "--address", "127.0.0.1:1", environment=quick)
    assert done.returncode == 1
    reason = "no control store listens at tcp://127.0.0.1:1: Connection refused"
    assert f"zray: the node failed to start: {reason}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    wrong = here.zray("status", environment={"ZRAY_INIT_TIMEOUT_NS": "soon"})
    assert wrong.stderr == "zray: ZRAY_INIT_TIMEOUT_NS='soon' is not a int\n"


# --- zray-node and zray-gcs in the foreground ----------------------------------------------------------


class Foreground:
    """A command whose log goes to a file."""

    def __init__(self, here: Place, command: list[str], name: str, **popen: Any) -> None:
        self.log_file = here.folder / f"{name}.log"
        with self.log_file.open("a") as output:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            self.process = here.start_command(command, **{**pipes, **popen})

    def log(self) -> str:
        return self.log_file.read_text()

    def await_log(self, text: str) -> str:
        """The first line with ``text``."""
        eventually(lambda: text in self.log() or self.process.poll() is not None, PATIENCE_S)
        assert text in self.log(), self.log()
        return next(line for line in self.log().splitlines() if text in line)

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def foreground(here: Place) -> Iterator[Any]:
    """A function that starts a command; those that still run at the end must end cleanly."""
    started: list[Foreground] = []

    def start(command: list[str], name: str = "log", **popen: Any) -> Foreground:
        started.append(Foreground(here, command, name, **popen))
        return started[-1]

    yield start
    for one in reversed(started):
        if one.process.poll() is None:
            assert one.end() == 0, one.log()


def node_address(node: Foreground) -> str:
    return node.await_log("zray.node: node ").split(" listens on ")[1].split()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_node_in_the_foreground_ends_cleanly(here: Place, foreground: Any, number: int) -> None:
    node = foreground([*NODE, "--num-cpus", "1", "--gcs-shards", "2"])
    address = node_address(node)
    assert here.run(DOUBLE.format(init=f"zray.init(address={address!r})")).stdout == "[0, 2, 4]\n"
    assert node.end(number) == 0
    assert "Traceback" not in node.log()
    here.assert_empty()


def test_signal_while_the_node_starts(here: Place, foreground: Any) -> None:
    for delay in (0.03, 0.1, 0.2):
        node = foreground([*NODE, "--num-cpus", "1"], name=f"log{delay}")
        with suppress(subprocess.TimeoutExpired):
            node.process.wait(delay)
        code = node.end(signal.SIGTERM)
        assert code in (0, -signal.SIGTERM), node.log()  # the interpreter itself begins without a handler
        assert "Traceback" not in node.log()
        here.assert_empty()


def test_interrupt_of_the_terminal_ends_node_and_shards_in_order(here: Place) -> None:
    """Ctrl-C: the terminal signals the whole foreground group."""
    controller, terminal = pty.openpty()
    node = here.start_command(
        [*NODE, "--num-cpus", "1", "--gcs-shards", "2"],
        stdin=terminal, stdout=terminal, stderr=terminal,
        preexec_fn=lambda: (os.setsid(), os.close(os.open(os.ttyname(0), os.O_RDWR))),
    )  # fmt: skip
    os.close(terminal)
    said = ""
    while "node" not in said or "listens on ipc" not in said.split("zray.node")[-1]:
        said += os.read(controller, 4096).decode()
    os.write(controller, b"\x03")
    with suppress(OSError):  # EIO: nobody has the terminal any more
        while part := os.read(controller, 4096):
            said += part.decode()
    assert node.wait(PATIENCE_S) == 0, said
    assert "Traceback" not in said
    assert "starts again" not in said
    os.close(controller)
    here.assert_empty()


@pytest.mark.parametrize("family", ["tcp", "ipc"])
def test_node_with_shards_of_its_own_choice(here: Place, foreground: Any, family: str) -> None:
    """Separately started shards; one is killed, the node goes on, and when it is back nothing was lost."""
    listen = [f"tcp://127.0.0.1:{free_port()}" for _ in (0, 1)]
    if family == "ipc":
        listen = [f"ipc://{here.folder}/g{i}" for i in (0, 1)]

    def gcs(i: int) -> Foreground:
        data = ["--data-dir", str(here.folder / f"data{i}")]
        shard = foreground([*GCS, "--listen", listen[i], "--shard", f"{i}/2", *data], name=f"gcs{i}")
        shard.await_log(f"listens on {listen[i]}")
        return shard

    shards = [gcs(0), gcs(1)]
    flags = [flag for endpoint in listen for flag in ("--gcs", endpoint.removeprefix("tcp://"))]
    node = foreground([*NODE, "--num-cpus", "2", *flags], name="node")
    address = node_address(node)
    driver = here.start(f"""
        import time, zray
        from zray.api.cluster import report
        print(zray.init(address={listen[1]!r}).address)

        @zray.remote
        def double(x):
            return 2 * x

        def run(first):
            refs = [double.remote(i) for i in range(first, first + 500)]
            assert zray.get(refs) == [2 * i for i in range(first, first + 500)]
            return refs

        def settle():
            deadline = time.monotonic() + 20
            while report("node")["lineage"]["unacknowledged"]:
                assert time.monotonic() < deadline, report("node")
                time.sleep(0.02)

        kept = run(0)
        settle()
        print("ran")
        input()
        kept += run(500)
        print("ran without")
        input()
        kept += run(1000)
        settle()
        print("settled", report("node")["lineage"])
        input()
    """)
    assert [line_of(driver), line_of(driver)] == [address, "ran"]
    for i in (0, 1):
        shards[i].end(signal.SIGKILL)
    tell(driver)
    assert line_of(driver) == "ran without"
    shards = [gcs(0), gcs(1)]
    tell(driver)
    assert line_of(driver).startswith("settled")
    counts = [records(endpoint, i) for i, endpoint in enumerate(listen)]
    assert sum(counts) == 1500
    assert min(counts) > 500
    assert finish(driver, "\n").returncode == 0
    assert node.end() == 0


def records(endpoint: str, shard: int) -> int:
    """How many unreleased task records a shard has."""
    return sum(not record.released for record in task_table(endpoint, shard))


def task_table(endpoint: str, shard: int) -> list[Any]:
    """The task records of a shard."""
    import msgspec

    from tests.integration.test_gcs import Client, scan
    from zray.protocol.messages import TABLE_TASK, TaskRecord

    client = Client(endpoint, shard=shard, identity=os.urandom(8))
    try:
        decode = msgspec.msgpack.Decoder(TaskRecord).decode
        return [decode(value) for _, value in scan(client, TABLE_TASK)]
    finally:
        client.transport.close(linger_ms=0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_shards_in_the_wrong_order_are_noticed(here: Place, foreground: Any) -> None:
    listen = [f"ipc://{here.folder}/g{i}" for i in (0, 1)]
    for i in (0, 1):
        shard = foreground([*GCS, "--listen", listen[i], "--shard", f"{i}/2"], name=f"gcs{i}")
        shard.await_log("listens on")
    node = foreground([*NODE, "--num-cpus", "1", "--gcs", listen[1], "--gcs", listen[0]], name="node")
    assert node.process.wait(PATIENCE_S) == 1
    assert "shard 0/2 answers where 1/2 should" in node.log() or "shard 1/2 answers where 0/2" in node.log()


def test_control_store_without_a_node_here(here: Place, foreground: Any) -> None:
    shard = foreground([*GCS, "--listen", "127.0.0.1:0"], name="gcs")
    endpoint = shard.await_log("listens on").split("listens on ")[1].split()[0]
    done = here.run(f"""
        import zray
        try:
            zray.init(address={endpoint!r})
        except zray.exceptions.ClusterUnavailableError as error:
            print(error)
    """)
    complaint = f"the control store at {endpoint} answers, but its cluster has no node on this machine"
    assert done.stdout.startswith(complaint), done


@pytest.mark.parametrize("shards", [1, 4])
def test_lineage_of_what_is_held_is_in_the_shards_until_it_is_dropped(here: Place, shards: int) -> None:
    driver = here.start(
        f"""
        import time, zray
        from zray.api.cluster import report
        zray.init(num_cpus=2, gcs_shards={shards})

        @zray.remote
        def double(x):
            return 2 * x

        def settle():
            deadline = time.monotonic() + 20
            while report("node")["lineage"]["unacknowledged"] or report("tasks"):
                assert time.monotonic() < deadline, report("node")
                time.sleep(0.02)

        kept = [double.remote(i) for i in range(200)]
        dropped = [double.remote(i) for i in range(300)]
        chain = double.remote(1)
        for _ in range(9):
            chain = double.remote(chain)
        assert zray.get(chain) == 2 ** 10
        assert zray.get(kept + dropped)[:3] == [0, 2, 4]
        del dropped
        settle()
        print("settled")
        input()
        del kept, chain
        for turn in range(40):
            zray.get([double.remote(i) for i in range(100)])
        settle()
        print("settled")
        input()
        """,
        environment={"ZRAY_RELEASED_RECORDS_MAX": "500", "ZRAY_IDLE_DUTY_INTERVAL_NS": "1000000"},
    )
    assert line_of(driver) == "settled"
    [session] = here.sessions()
    endpoints = [f"ipc://{session}/gcs{i}" for i in range(shards)]

    def held() -> list[int]:
        return [records(endpoint, i) for i, endpoint in enumerate(endpoints)]

    eventually(lambda: sum(held()) == 210, what=f"lineage of 200 kept values and a chain of 10, not {held()}")
    assert min(held()) > 10, "every shard has its part"
    tell(driver)
    assert line_of(driver) == "settled"
    eventually(lambda: sum(held()) == 0, what=f"no lineage once nothing is held, not {held()}")
    tables = [task_table(endpoint, i) for i, endpoint in enumerate(endpoints)]
    assert all(len(table) <= 500 for table in tables), "a bounded number of released records is kept"
    assert finish(driver, "\n").returncode == 0
