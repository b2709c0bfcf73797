"""Actors that can be saved: killed between calls, in calls, before and after a checkpoint."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zray
from tests import conformance
from tests.support import eventually
from zray.actor import save_checkpoint
from zray.exceptions import ActorDiedError, ActorUnavailableError

PATIENCE_S = 30


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with conformance.cluster(num_cpus=2):
        yield


class Ledger:
    """Remembers everything that it was told, in order."""

    def __init__(self, log: str = "") -> None:
        self.entries: list[Any] = []
        self.log = log
        self.note("made")

    def note(self, text: str) -> None:
        if self.log:
            with open(self.log, "a") as file:
                file.write(text + "\n")

    def __zray_save__(self) -> list[Any]:
        self.note(f"saved {len(self.entries)}")
        return self.entries

    def __zray_load__(self, state: list[Any]) -> None:
        self.note(f"loaded {len(state)}")
        self.entries = list(state)

    def add(self, entry: Any) -> int:
        self.note(f"add {entry if isinstance(entry, int) else type(entry).__name__}")
        self.entries.append(entry)
        return len(self.entries)

    def add_nested(self, refs: list[Any]) -> int:
        return self.add(int(zray.get(refs[0])[0]))

    def add_and_save(self, entry: Any) -> int:
        save_checkpoint()
        return self.add(entry)

    def add_and_fail(self, entry: Any) -> None:
        self.add(entry)
        raise KeyError(entry)

    def add_many(self, count: int) -> Iterator[int]:
        for number in range(count):
            self.entries.append(number)
            yield number

    def die_once(self, path: str) -> int:
        if not Path(path).exists():
            Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.add("survived")

    def all(self) -> list[Any]:
        return self.entries

    def pid(self) -> int:
        return os.getpid()


SavedLedger = zray.remote(Ledger).options(max_restarts=-1, max_task_retries=-1)


def kill(ledger: Any) -> None:
    os.kill(zray.get(ledger.pid.remote(), timeout=PATIENCE_S), signal.SIGKILL)


def contents(ledger: Any) -> list[Any]:
    return zray.get(ledger.all.remote(), timeout=PATIENCE_S)


class TestRecovery:
    @pytest.mark.parametrize("interval", [0, 1, 3, 100])
    def test_what_was_answered_is_there_exactly_once_and_in_order(self, interval: int) -> None:
        ledger = SavedLedger.options(checkpoint_interval=interval).remote()
        for start in range(0, 30, 10):
            counts = zray.get([ledger.add.remote(start + number) for number in range(10)], timeout=PATIENCE_S)
            assert counts == list(range(start + 1, start + 11))
            kill(ledger)
        assert contents(ledger) == list(range(30))

    def test_calls_before_the_checkpoint_are_not_repeated(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        ledger = SavedLedger.options(checkpoint_interval=4).remote(str(log))
        zray.get([ledger.add.remote(number) for number in range(6)])
        kill(ledger)
        assert contents(ledger) == list(range(6))
        lines = log.read_text().splitlines()
        assert lines[:6] == ["made", "add 0", "add 1", "add 2", "add 3", "saved 4"]
        assert lines[6:11] == ["add 4", "add 5", "made", "loaded 4", "add 4"]
        assert lines[11] == "add 5"

    def test_a_call_that_kills_its_actor_is_repeated_after_those_before_it(self, tmp_path: Path) -> None:
        ledger = SavedLedger.options(checkpoint_interval=2).remote()
        refs = [ledger.add.remote(number) for number in range(5)]
        died = ledger.die_once.remote(str(tmp_path / "died"))
        refs += [ledger.add.remote(number) for number in range(5, 8)]
        assert zray.get(died, timeout=PATIENCE_S) == 6
        assert zray.get(refs, timeout=PATIENCE_S) == [1, 2, 3, 4, 5, 7, 8, 9]
        assert contents(ledger) == [0, 1, 2, 3, 4, "survived", 5, 6, 7]

    def test_on_demand(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        ledger = SavedLedger.options(checkpoint_interval=0).remote(str(log))
        zray.get([ledger.add.remote(1), ledger.add_and_save.remote(2), ledger.add.remote(3)])
        kill(ledger)
        assert contents(ledger) == [1, 2, 3]
        assert log.read_text().splitlines()[-2:] == ["loaded 2", "add 3"]

    def test_inputs_live_as_long_as_their_call_may_be_repeated(self) -> None:
        ledger = SavedLedger.options(checkpoint_interval=0).remote()
        zray.get(ledger.add_nested.remote([zray.put(np.full(100_000, 7))]))
        zray.get(ledger.add.remote(zray.put(b"x" * 500_000)))
        kill(ledger)
        assert contents(ledger) == [7, b"x" * 500_000]

    def test_large_states_and_errors_of_calls(self) -> None:
        ledger = SavedLedger.options(checkpoint_interval=1).remote()
        zray.get([ledger.add.remote(np.full(200_000, number)) for number in range(4)])
        with pytest.raises(KeyError):
            zray.get(ledger.add_and_fail.remote("bad"))
        kill(ledger)
        found = contents(ledger)
        assert [int(entry[0]) for entry in found[:4]] == [0, 1, 2, 3]
        assert found[4] == "bad"

    def test_generators_are_repeated_for_their_effect(self) -> None:
        ledger = SavedLedger.options(checkpoint_interval=0).remote()
        assert [zray.get(ref) for ref in ledger.add_many.remote(3)] == [0, 1, 2]
        kill(ledger)
        assert contents(ledger) == [0, 1, 2]

    def test_without_task_retries_the_last_checkpoint_counts(self) -> None:
        ledger = zray.remote(Ledger).options(max_restarts=1, checkpoint_interval=2).remote()
        zray.get([ledger.add.remote(number) for number in range(3)])
        pid = zray.get(ledger.pid.remote())  # the fourth call: saved with three
        assert zray.get(ledger.add.remote(3)) == 4
        os.kill(pid, signal.SIGKILL)

        def entries() -> list[Any] | None:
            try:
                return contents(ledger)
            except ActorUnavailableError:
                return None

        while (found := entries()) is None:
            pass
        assert found == [0, 1, 2]

    def test_two_callers(self) -> None:
        @zray.remote
        def add_ten(ledger: Any, start: int) -> list[int]:
            return [zray.get(ledger.add.remote(start + number)) for number in range(10)]

        ledger = SavedLedger.options(checkpoint_interval=5).remote()
        refs = [add_ten.options(num_cpus=0.1).remote(ledger, start) for start in (0, 100)]
        kill(ledger)
        counts = [count for part in zray.get(refs, timeout=PATIENCE_S) for count in part]
        assert sorted(counts) == list(range(1, 21))
        found = contents(ledger)
        assert [entry for entry in found if entry < 100] == list(range(10))
        assert [entry for entry in found if entry >= 100] == list(range(100, 110))

    @pytest.mark.slow
    def test_killed_again_and_again(self) -> None:
        ledger = SavedLedger.options(checkpoint_interval=7).remote()
        refs = []
        for number in range(100):
            refs.append(ledger.add.remote(number))
            if number % 20 == 10:
                kill(ledger)
        assert zray.get(refs, timeout=PATIENCE_S) == list(range(1, 101))
        kill(ledger)
        assert contents(ledger) == list(range(100))


class Noted(Ledger):
    """Writes down that it ends."""

    def __ray_shutdown__(self) -> None:
        self.note("told")

    def __del__(self) -> None:
        self.note("deleted")


class Leaving(Noted):
    def __zray_save__(self) -> Any:
        sys.exit()


class TestEnds:
    def test_in_peace_it_is_told_and_deleted(self, tmp_path: Path) -> None:
        notes = tmp_path / "notes"
        ledger = zray.remote(Noted).options(max_restarts=1, max_task_retries=1, checkpoint_interval=1)
        ledger = ledger.remote(str(notes))
        zray.get(ledger.add.remote(1), timeout=PATIENCE_S)
        kill(ledger)
        assert contents(ledger) == [1]
        del ledger
        eventually(lambda: notes.read_text().endswith("deleted\n"), PATIENCE_S)
        assert notes.read_text().count("deleted") == 1
        assert notes.read_text().split("\n")[-3:-1] == ["told", "deleted"]

    def test_by_itself_while_it_is_saved(self, tmp_path: Path) -> None:
        notes = tmp_path / "notes"
        ledger = zray.remote(Leaving).options(max_restarts=1, checkpoint_interval=1).remote(str(notes))
        with pytest.raises(ActorDiedError, match=r"sys\.exit"):
            zray.get(ledger.add.remote(1), timeout=PATIENCE_S)
        eventually(lambda: notes.read_text().endswith("deleted\n"), PATIENCE_S)
        assert notes.read_text().split("\n") == ["made", "add 1", "told", "deleted", ""]


class TestMistakes:
    def test_both_methods_or_none(self) -> None:
        @zray.remote
        class Half:
            def __zray_save__(self) -> None: ...

        with pytest.raises(TypeError, match="needs both"):
            Half.remote()

    def test_concurrent_actors_have_no_state_between_calls(self) -> None:
        with pytest.raises(ValueError, match="several calls at once"):
            SavedLedger.options(max_concurrency=2).remote()

    def test_save_outside(self) -> None:
        with pytest.raises(TypeError, match="save_checkpoint"):
            save_checkpoint()
        mortal = zray.remote(Ledger).remote()
        with pytest.raises(TypeError, match="save_checkpoint"):
            zray.get(mortal.add_and_save.remote(1))

    def test_a_save_that_fails_is_the_error_of_its_call(self) -> None:
        @zray.remote(max_restarts=1, max_task_retries=1, checkpoint_interval=2)
        class Closed:
            def __zray_save__(self) -> Any:
                raise OSError("no room")

            def __zray_load__(self, state: Any) -> None: ...

            def call(self) -> int:
                return 1

        actor = Closed.remote()
        assert zray.get(actor.call.remote()) == 1
        with pytest.raises(OSError, match="no room"):
            zray.get(actor.call.remote())

    def test_a_load_that_fails_is_the_cause_of_death(self) -> None:
        @zray.remote(max_restarts=1, max_task_retries=1, checkpoint_interval=1)
        class Forgetful:
            def __zray_save__(self) -> int:
                return 1

            def __zray_load__(self, state: int) -> None:
                raise RuntimeError("who am I?")

            def pid(self) -> int:
                return os.getpid()

        actor = Forgetful.remote()
        os.kill(zray.get(actor.pid.remote()), signal.SIGKILL)
        with pytest.raises(ActorDiedError, match="who am I"):
            zray.get(actor.pid.remote(), timeout=PATIENCE_S)
