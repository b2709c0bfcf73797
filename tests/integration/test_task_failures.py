"""Tasks that fail, crash, are interrupted, or are used from many threads."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zray
from tests import conformance
from tests.integration.programs import run_script
from tests.integration.remotes import PATIENCE_S, add, echo, wait_for_file
from tests.support import eventually
from zray.exceptions import RayTaskError, SerializationError, TaskError, WorkerCrashedError
from zray.serialize.functions import export


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2, num_gpus=1, resources={"disk": 2, "memory_bank": 0.5}):
        yield


# --- errors -------------------------------------------------------------------------------------


class OddError(Exception):
    """Its constructor does not take its ``args``."""

    def __init__(self, code: int, *, where: str) -> None:
        super().__init__(f"{code} at {where}")
        self.code, self.where = code, where


class CodeError(Exception):
    """Its ``args`` fit its constructor, and mean something else to it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class PathError(OSError):
    """Has fields in C, and a constructor of its own."""

    def __init__(self, path: str) -> None:
        super().__init__(5, "broken", path)


class WithLockError(Exception):
    """Cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class FailsToUnpickle:
    """Loads in the process that made it only."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return load_only_in, (os.getpid(),)


def load_only_in(pid: int) -> str:
    if os.getpid() != pid:
        raise LookupError("this cannot be unpickled here")
    return "loaded"


@zray.remote
def raise_it(error: BaseException) -> None:
    raise error


class TestErrors:
    def test_is_a_task_error_and_the_users_class(self) -> None:
        @zray.remote
        def failing_by_name() -> None:
            raise OddError(7, where="home")

        with pytest.raises(OddError) as caught:
            zray.get(failing_by_name.remote())
        error = caught.value
        assert isinstance(error, TaskError)
        assert RayTaskError is TaskError
        assert (error.code, error.where) == (7, "home")
        assert isinstance(error.cause, OddError)
        assert "failing_by_name" in str(error)
        assert "test_task_failures.py" in error.traceback_text
        assert 'raise OddError(7, where="home")' in str(error)
        assert "zray/runtime" not in error.traceback_text

    @pytest.mark.parametrize(
        ("make", "field", "value"),
        [
            (lambda: FileNotFoundError(2, "no such thing", "/a/path"), "filename", "/a/path"),
            (lambda: OSError(28, "full"), "errno", 28),
            (lambda: CodeError(7), "code", 7),
            (lambda: CodeError(7), "args", ("code 7",)),
            (lambda: PathError("/p"), "errno", 5),
            (lambda: PathError("/p"), "filename", "/p"),
            (lambda: UnicodeDecodeError("ascii", b"\xff", 0, 1, "no"), "start", 0),
            (lambda: ImportError("no", name="it"), "name", "it"),
            (lambda: StopIteration(3), "value", 3),
        ],
    )
    def test_keeps_its_fields(self, make: Callable[[], Exception], field: str, value: Any) -> None:
        @zray.remote
        def failing() -> None:
            raise make()

        @zray.remote
        def nested() -> None:
            zray.get(failing.remote())

        for ref in failing.remote(), echo.remote(failing.remote()), nested.remote():
            with pytest.raises(type(make())) as caught:
                zray.get(ref)
            assert getattr(caught.value, field) == value

    def test_reaches_depth_three(self) -> None:
        @zray.remote
        def level(depth: int) -> int:
            if depth == 0:
                raise ValueError("at the bottom")
            return zray.get(level.remote(depth - 1))

        with pytest.raises(ValueError, match="at the bottom") as caught:
            zray.get(level.remote(3), timeout=PATIENCE_S)
        assert caught.value.args == ("at the bottom",)

    def test_can_be_caught_in_a_task(self) -> None:
        @zray.remote
        def catching() -> str:
            try:
                zray.get(raise_it.remote(KeyError("k")))
            except KeyError as error:
                return f"caught {error.args}"
            return "nothing"

        assert zray.get(catching.remote()) == "caught ('k',)"

    def test_stops_dependent_tasks(self, tmp_path: Path) -> None:
        @zray.remote
        def touch(_input: Any) -> None:
            (tmp_path / "ran").touch()

        with pytest.raises(ZeroDivisionError):
            zray.get(touch.remote(raise_it.remote(ZeroDivisionError())))
        assert not (tmp_path / "ran").exists()

    def test_error_among_keyword_arguments(self) -> None:
        with pytest.raises(IndexError):
            zray.get(echo.remote(value=raise_it.remote(IndexError("i"))))

    def test_that_cannot_be_pickled(self) -> None:
        @zray.remote
        def failing() -> None:
            raise WithLockError("locked up")

        with pytest.raises(TaskError, match="locked up") as caught:
            zray.get(failing.remote())
        assert "WithLockError" in str(caught.value)

    @pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_that_would_end_a_process(self, kind: type[BaseException]) -> None:
        """Neither the worker ends, nor, if nobody catches it, the driver without a word."""
        with pytest.raises(TaskError, match=kind.__name__) as caught:
            zray.get(raise_it.remote(kind(3)))
        assert isinstance(caught.value, Exception)
        assert not isinstance(caught.value, kind)
        assert isinstance(caught.value.cause, kind)
        assert zray.get(echo.remote("still there")) == "still there"

    def test_chained_causes_are_in_the_text(self) -> None:
        @zray.remote
        def failing() -> None:
            try:
                {}["missing"]
            except KeyError as error:
                raise RuntimeError("outer") from error

        with pytest.raises(RuntimeError, match="missing"):
            zray.get(failing.remote())

    def test_exception_group(self) -> None:
        with pytest.raises(ExceptionGroup) as caught:
            zray.get(raise_it.remote(ExceptionGroup("both", [ValueError("a"), KeyError("b")])))
        assert isinstance(caught.value, TaskError)

    def test_whose_text_cannot_be_made(self) -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no text")

        @zray.remote
        def failing() -> None:
            raise Mute

        with pytest.raises(TaskError):
            zray.get(failing.remote())

    def test_arguments_that_do_not_unpickle(self) -> None:
        with pytest.raises(TaskError, match="cannot be unpickled here"):
            zray.get(echo.remote(FailsToUnpickle()))
        with pytest.raises(TaskError, match="cannot be unpickled here"):
            zray.get(echo.remote(zray.put(FailsToUnpickle())))

    def test_results_that_do_not_unpickle(self) -> None:
        @zray.remote
        def make() -> FailsToUnpickle:
            return FailsToUnpickle()

        with pytest.raises(Exception, match="cannot be unpickled here"):
            zray.get(make.remote())

    def test_results_that_do_not_pickle(self) -> None:
        @zray.remote
        def make() -> Any:
            return {"inner": [threading.Lock()]}

        with pytest.raises(SerializationError, match=r"value\['inner'\]\[0\]") as caught:
            zray.get(make.remote())
        assert isinstance(caught.value, TaskError)

    def test_functions_that_do_not_unpickle(self) -> None:
        poison = FailsToUnpickle()

        @zray.remote
        def holding() -> Any:
            return poison

        with pytest.raises(TaskError, match="cannot be unpickled here"):
            zray.get(holding.remote())

    def test_retry_exceptions(self, tmp_path: Path) -> None:
        @zray.remote(max_retries=4, retry_exceptions=True)
        def third_time_lucky() -> int:
            attempts = len(list(tmp_path.iterdir()))
            (tmp_path / str(attempts)).touch()
            if attempts < 2:
                raise OSError("not yet")
            return attempts + 1

        assert zray.get(third_time_lucky.remote()) == 3

    def test_retries_run_out(self, tmp_path: Path) -> None:
        @zray.remote(max_retries=2, retry_exceptions=True)
        def never() -> None:
            (tmp_path / str(len(list(tmp_path.iterdir())))).touch()
            raise OSError("never")

        with pytest.raises(OSError, match="never"):
            zray.get(never.remote())
        assert len(list(tmp_path.iterdir())) == 3

    def test_no_retry_without_being_asked(self, tmp_path: Path) -> None:
        @zray.remote
        def failing() -> None:
            (tmp_path / str(len(list(tmp_path.iterdir())))).touch()
            raise OSError

        with pytest.raises(OSError):  # noqa: PT011 - that it is one is all there is to say
            zray.get(failing.remote())
        assert len(list(tmp_path.iterdir())) == 1

    def test_refs_are_let_go_after_an_error(self) -> None:
        """An error that was caught and forgotten keeps no value alive."""
        before = zray.nodes()[0]["store"]["used_bytes"]
        good, bad = zray.put(np.ones(100_000)), raise_it.remote(ValueError())
        with pytest.raises(ValueError):  # noqa: PT011
            zray.get([good, bad])
        with pytest.raises(WorkerCrashedError):
            zray.get([good, crash.options(max_retries=0).remote(signal.SIGKILL)])
        del good, bad
        eventually(lambda: zray.nodes()[0]["store"]["used_bytes"] <= before)


@zray.remote
def crash(how: int) -> None:
    if how >= 0:
        os.kill(os.getpid(), how)
    os._exit(-how)


class CarriesRefs(Exception):
    """Refers to objects, one of them in its cause."""

    def __init__(self, *refs: Any) -> None:
        super().__init__(*refs)


def raise_refs(size: int) -> None:
    """With the refs of a value that only this process has, or of one in the store."""
    try:
        raise CarriesRefs(zray.put([bytes(size)]))
    except CarriesRefs as error:
        raise CarriesRefs(*error.args, zray.put("another")) from error


@zray.remote
class Raiser:
    def plain(self, size: int) -> None:
        raise_refs(size)


@zray.remote
class AsyncRaiser:
    async def plain(self, size: int) -> None:
        raise_refs(size)


@zray.remote
def raises_in(ref_box: list[Any]) -> Any:
    return zray.get(ref_box[0])


@pytest.mark.not_simulated("the refs in an exception of simulated code are not counted")
class TestRefsInErrors:
    @pytest.mark.parametrize("size", [10, 200_000], ids=["small", "large"])
    @pytest.mark.parametrize("how", ["task", "actor", "async actor", "task of two values", "passed on"])
    def test_live_as_long_as_the_error(self, how: str, size: int) -> None:
        if how == "actor":
            failed = Raiser.remote().plain.remote(size)
        elif how == "async actor":
            failed = AsyncRaiser.remote().plain.remote(size)
        elif how == "task of two values":
            failed = zray.remote(raise_refs).options(num_returns=2).remote(size)[0]
        else:
            failed = zray.remote(raise_refs).remote(size)
            if how == "passed on":
                failed = raises_in.remote([echo.remote(failed)])
        refs = []
        for _ in range(2):
            with pytest.raises(CarriesRefs) as caught:
                zray.get(failed, timeout=PATIENCE_S)
            refs = list(caught.value.args)
            del caught
        del failed
        zray.get(add.remote(1, 2))  # what was let go of has been heard of
        assert zray.get(refs, timeout=PATIENCE_S) == [[bytes(size)], "another"]

    def test_go_with_it(self) -> None:
        for kind in (zray.remote(raise_refs), Raiser.remote().plain):
            before = zray.nodes()[0]["store"]["used_bytes"]
            failed = kind.remote(200_000)
            with pytest.raises(CarriesRefs):
                zray.get(failed, timeout=PATIENCE_S)
            assert zray.nodes()[0]["store"]["used_bytes"] > before
            del failed
            eventually(lambda before=before: zray.nodes()[0]["store"]["used_bytes"] <= before)


class TestCrashes:
    def test_exit(self) -> None:
        with pytest.raises(WorkerCrashedError, match="exited with code 7") as caught:
            zray.get(crash.options(max_retries=0).remote(-7), timeout=PATIENCE_S)
        assert caught.value.exit_code == 7

    def test_signal(self) -> None:
        with pytest.raises(WorkerCrashedError, match="signal 9"):
            zray.get(crash.options(max_retries=0).remote(signal.SIGKILL), timeout=PATIENCE_S)

    def test_attempts_are_counted(self, tmp_path: Path) -> None:
        @zray.remote(max_retries=2)
        def die() -> None:
            (tmp_path / str(len(list(tmp_path.iterdir())))).touch()
            os._exit(1)

        with pytest.raises(WorkerCrashedError, match="3 attempts"):
            zray.get(die.remote(), timeout=PATIENCE_S)
        assert len(list(tmp_path.iterdir())) == 3

    def test_many_results_come_from_the_attempt_that_ends(self, tmp_path: Path) -> None:
        @zray.remote(num_returns=1_000)
        def numbers() -> Any:
            try:
                (tmp_path / "tried").touch(exist_ok=False)
            except FileExistsError:
                return range(1_000)
            os._exit(1)

        refs = numbers.remote()
        total = add.remote(refs[0], refs[998])
        del refs[1:900]
        assert zray.get(refs, timeout=PATIENCE_S) == [0, *range(900, 1_000)]
        assert zray.get(total, timeout=PATIENCE_S) == 998

    def test_neighbours_are_not_harmed(self) -> None:
        refs = [echo.remote(i) for i in range(500)]
        bad = crash.options(max_retries=0).remote(-1)
        refs += [echo.remote(i) for i in range(500, 1_000)]
        with pytest.raises(WorkerCrashedError):
            zray.get(bad, timeout=PATIENCE_S)
        assert zray.get(refs, timeout=PATIENCE_S) == list(range(1_000))


# --- threads and signals ------------------------------------------------------------------------


@zray.remote
class Adder:
    def __init__(self) -> None:
        self.total = 0

    def add(self, amount: int) -> int:
        self.total += amount
        return self.total


@pytest.mark.not_simulated("threads that a task or driver starts cannot call zray")
class TestThreads:
    def in_threads(self, work: Callable[[int], Any], count: int = 8) -> list[Any]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(work, range(count)))

    def test_everything_from_eight(self) -> None:
        adder = Adder.remote()

        def work(number: int) -> int:
            base = number * 1_000
            for i in range(base, base + 40):
                assert zray.get(echo.remote(i), timeout=PATIENCE_S) == i
                refs = [add.remote(i, zray.put(j)) for j in range(5)]
                ready, rest = zray.wait(refs, num_returns=3, timeout=PATIENCE_S)
                assert (len(ready), len(rest)) == (3, 2)
                assert zray.get(refs, timeout=PATIENCE_S) == [i + j for j in range(5)]
                assert zray.get(adder.add.remote(1), timeout=PATIENCE_S) > 0
                if i % 8 == 0:
                    array = np.full(10_000, i)
                    assert zray.get(echo.remote(zray.put(array)), timeout=PATIENCE_S)[9_999] == i
            return number

        assert self.in_threads(work) == list(range(8))
        assert zray.get(adder.add.remote(0)) == 320

    def test_large_puts_from_eight(self) -> None:
        def work(number: int) -> bool:
            refs = [zray.put(np.full(20_000, number * 100 + i)) for i in range(30)]
            arrays = zray.get(refs, timeout=PATIENCE_S)
            return all((array == number * 100 + i).all() for i, array in enumerate(arrays))

        assert all(self.in_threads(work))

    def test_one_ref_for_all(self) -> None:
        large, small = zray.put(np.arange(50_000)), echo.remote(5)

        def work(_number: int) -> int:
            return sum(int(zray.get(large, timeout=PATIENCE_S)[7]) + zray.get(small) for _ in range(100))

        assert self.in_threads(work) == [1_200] * 8

    def test_threads_of_a_task(self) -> None:
        @zray.remote
        def many() -> int:
            with ThreadPoolExecutor(4) as pool:
                return sum(pool.map(lambda i: zray.get(echo.options(num_cpus=0).remote(i)), range(20)))

        assert zray.get(many.remote(), timeout=PATIENCE_S) == sum(range(20))

    def test_a_thread_that_waits_does_not_delay_others(self, tmp_path: Path) -> None:
        late = wait_for_file.remote(str(tmp_path / "go"))
        waiter = threading.Thread(target=zray.get, args=(late,))
        waiter.start()
        assert [zray.get(echo.remote(i), timeout=PATIENCE_S) for i in range(300)] == list(range(300))
        (tmp_path / "go").touch()
        waiter.join(PATIENCE_S)
        assert not waiter.is_alive()


PESTERED = """
    import faulthandler, os, random, signal, threading, time
    import zray

    faulthandler.dump_traceback_later(40, exit=True)
    zray.init(num_cpus=2)

    @zray.remote
    def echo(x):
        return x

    @zray.remote
    class Counter:
        def __init__(self):
            self.n = 0
        def next(self):
            self.n += 1
            return self.n

    zray.get(echo.remote(0))
    counter = Counter.remote()
    last = 0

    def work():
        global last
        while tormentor.is_alive():
            refs = [echo.remote(i) for i in range(20)]
            assert zray.get(refs) == list(range(20))
            value = zray.get(counter.next.remote())
            assert value > last
            last = value
            zray.put(bytes(100_000))

    interrupt = signal.getsignal(signal.SIGINT)

    def interrupt_work(number, frame):
        at = frame
        while at is not None and at.f_code is not work.__code__:
            at = at.f_back
        if at is not None:  # else this program itself would have to expect it everywhere
            interrupt(number, frame)

    signal.signal(signal.SIGINT, interrupt_work)

    def pester():
        chance = random.Random(5)
        for _ in range(1_000):
            time.sleep(chance.random() * 0.004)
            os.kill(os.getpid(), signal.SIGINT)

    interrupts = 0
    tormentor = threading.Thread(target=pester)
    tormentor.start()
    while tormentor.is_alive():
        try:
            work()
        except KeyboardInterrupt:
            interrupts += 1
    # The last one may still be put off, and its repetition went to the handler above: here is another one.
    signal.signal(signal.SIGINT, interrupt)
    try:
        while True:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    except KeyboardInterrupt:
        interrupts += 1
    assert zray.get([echo.remote(i) for i in range(500)], timeout=10) == list(range(500))
    assert zray.get(counter.next.remote(), timeout=10) > last
    assert interrupts > 100, interrupts
    print("usable")
"""


@pytest.mark.not_simulated("each starts a driver of its own")
class TestInterrupts:
    @pytest.mark.slow
    def test_ctrl_c_inside_get(self) -> None:
        """It ends the wait at once, and nothing else."""
        done = run_script(
            """
            import os, signal, threading, time
            import zray
            from zray.api import session

            zray.init(num_cpus=2)

            @zray.remote
            def block():
                import threading
                threading.Event().wait(1_000)

            @zray.remote
            def echo(x):
                return x

            late = block.remote()
            link, interrupts = session.current(), []

            def until(condition):
                deadline = time.monotonic() + 20
                while not condition():
                    assert time.monotonic() < deadline
                    time.sleep(0.001)

            def leads():
                return link._leader_sleeps and not link.duty.leads

            def in_line_behind_another_thread():
                threading.Thread(target=lambda: zray.get(late), daemon=True).start()
                until(leads)
                zray.get(late)

            def interrupt(wait):
                follows = wait is in_line_behind_another_thread
                until(lambda: link._followers_waiting if follows else leads())
                interrupts.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)

            waits = (
                lambda: zray.get(late),
                lambda: zray.wait([late]),
                lambda: zray.get([late], timeout=60),
                in_line_behind_another_thread,
            )
            for wait in waits:
                zray.get(echo.remote(0))
                try:
                    threading.Thread(target=interrupt, args=(wait,), daemon=True).start()
                    wait()
                except KeyboardInterrupt:
                    assert time.monotonic() - interrupts.pop() < 1.0
                else:
                    raise AssertionError("no KeyboardInterrupt")
                assert zray.get([echo.remote(i) for i in range(100)]) == list(range(100))
            print("usable")
            """
        )
        assert done.stdout == "usable\n", done.stderr

    @pytest.mark.slow
    def test_ctrl_c_at_any_moment(self) -> None:
        """Interrupts that hit the runtime in the middle of its work lose nothing."""
        done = run_script(PESTERED)
        assert done.stdout == "usable\n", done.stderr

    @pytest.mark.slow
    def test_sys_exit_of_a_task_is_seen_by_a_driver_that_does_not_catch_it(self) -> None:
        done = run_script(
            """
            import sys
            import zray

            zray.init(num_cpus=1)
            zray.get(zray.remote(lambda: sys.exit(0)).remote())
            """
        )
        assert done.returncode == 1
        assert "TaskError" in done.stderr


@zray.remote
def annotated(number: int, *others: Any) -> Any:
    """Texts that are one object here and two there: 'number', 'int', 'Any'."""
    return ["number", "int", "Any", number, others]


@zray.remote(num_cpus=0, max_calls=1)
def submitter() -> tuple[int, bytes]:
    zray.get(annotated.options(num_cpus=0).remote(1))
    return os.getpid(), export(annotated._function)[0]


def test_a_function_is_the_same_whoever_submits_it() -> None:
    """Otherwise a parent that runs again in another worker has other children than before."""
    told = [zray.get(submitter.remote()) for _ in range(4)]
    assert len(dict(told)) == 4
    assert {function_id for _, function_id in told} == {export(annotated._function)[0]}
