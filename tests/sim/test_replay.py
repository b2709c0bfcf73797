"""A trace pumped again: equal effects, and everything that can be wrong with one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sim.command import main
from sim.replay import TraceVersionError, replay
from tests.traces import lone_node, pumps_of, record_scenario, records_of, rewrite
from zray.config import Config
from zray.core.machine import RUNTIME, pump
from zray.protocol.messages import DRIVER, PROTOCOL_VERSION, Hello
from zray.protocol.trace import (
    MAGIC,
    Pumped,
    TraceDamagedError,
    TraceEnd,
    TraceError,
    TraceReader,
    TraceStart,
    digest_of,
    encode,
)
from zray.runtime import trace as recording
from zray.runtime.trace import Recorder

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "node.trace"
    with Patch.context() as patch:
        record_scenario(path, "references", patch)
    return path


@pytest.fixture
def own(trace: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    path = tmp_path / "own.trace"
    path.write_bytes(trace.read_bytes())
    return path


def test_the_same_machines_give_the_same_effects(trace: Path) -> None:
    found = replay(trace)
    assert found.difference is None
    assert found.torn_bytes == 0
    assert found.ended == "the process ended"
    assert found.pumps == len(pumps_of(trace)) > 100


@pytest.mark.parametrize("scenario", ["crashes", "memory", "outages"])
@pytest.mark.slow
def test_runs_with_faults_replay_too(scenario: str, tmp_path: Path, monkeypatch: Patch) -> None:
    path = tmp_path / "node.trace"
    record_scenario(path, scenario, monkeypatch)
    assert replay(path).difference is None


def test_a_message_that_was_changed_is_caught_with_its_story(own: Path) -> None:
    records = records_of(own)
    number, doctored = next(
        (number, record)
        for number, record in enumerate(records)
        if isinstance(record, Pumped) and b"\x02" in bytes(record.batch) and record.effects > 1
    )
    batch = msgspec.msgpack.decode(doctored.batch)
    records[number] = replace(doctored, batch=msgspec.Raw(encode(batch[:-1])))
    rewrite(own, records)
    difference = replay(own).difference
    assert difference is not None
    assert difference.machine == "Node"
    assert difference.story
    assert difference.pump >= sum(isinstance(record, Pumped) for record in records[: number + 1])


def test_a_digest_that_was_changed_is_caught(own: Path) -> None:
    records = records_of(own)
    number = len(records) - 2
    changed = records[number]
    assert isinstance(changed, Pumped)
    records[number] = replace(changed, digest=bytes(16))
    rewrite(own, records)
    difference = replay(own).difference
    assert difference is not None
    assert "another digest" in difference.detail
    assert main(["replay", str(own)]) == 1


def test_a_machine_that_raises_is_a_difference(own: Path, monkeypatch: Patch) -> None:
    from zray.core.node import Node

    def fail(self: Node, now_ns: int) -> None:
        raise KeyError("a canary")

    monkeypatch.setattr(Node, "flush", fail)
    difference = replay(own).difference
    assert difference is not None
    assert difference.pump == 1
    assert "KeyError" in difference.detail


def test_a_change_of_the_machines_is_seen(own: Path, monkeypatch: Patch) -> None:
    from zray.core.local_scheduler import LocalScheduler

    monkeypatch.setattr(LocalScheduler, "_run_ahead", lambda self, now_ns, task_class: None)
    monkeypatch.setattr(LocalScheduler, "_dispatch", lambda self, now_ns: None)
    assert replay(own).difference is not None


# --- versions --------------------------------------------------------------------------------------


def test_a_trace_of_other_code_is_refused_unless_asked_for(own: Path) -> None:
    records = records_of(own)
    start = records[0]
    assert isinstance(start, TraceStart)
    rewrite(own, [replace(start, code="0" * 16, commit="f" * 40), *records[1:]])
    with pytest.raises(TraceVersionError, match=r"recorded by code 0{16} .*commit f{12}.*--other-code"):
        replay(own)
    assert replay(own, other_code=True).difference is None


def test_a_trace_of_another_protocol_is_refused_in_any_case(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = records_of(own)
    start = records[0]
    assert isinstance(start, TraceStart)
    rewrite(own, [replace(start, protocol=PROTOCOL_VERSION + 1), *records[1:]])
    with pytest.raises(TraceVersionError, match=f"protocol version {PROTOCOL_VERSION + 1}"):
        replay(own, other_code=True)
    assert main(["replay", str(own)]) == 2
    assert "use that zray" in capsys.readouterr().err


# --- files of no use -------------------------------------------------------------------------------


def test_every_torn_tail_is_recognised(own: Path) -> None:
    content = own.read_bytes()
    whole = len(pumps_of(own))
    for cut in (1, 2, 11, 40, 333):
        own.write_bytes(content[:-cut])
        found = replay(own)
        assert found.difference is None
        assert found.torn_bytes > 0
        assert found.ended == ""
        assert found.pumps <= whole


def test_zeros_at_the_end_are_a_torn_tail(own: Path) -> None:
    own.write_bytes(own.read_bytes() + bytes(100))
    assert replay(own).torn_bytes == 100


def test_damage_in_the_middle_is_an_error(own: Path) -> None:
    content = bytearray(own.read_bytes())
    content[len(content) // 2] ^= 0xFF
    own.write_bytes(content)
    with pytest.raises(TraceError, match="damaged at byte"):
        replay(own)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a trace of zray"),
        (b"#!/bin/sh\n", "not a trace of zray"),
        (MAGIC, "does not say what was recorded"),
        (MAGIC + b"\x01\x02", "does not say what was recorded"),
        (MAGIC + b"x" * 50, "damaged at byte 8"),
    ],
)
def test_other_files_are_refused(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=complaint):
        replay(path)
    assert main(["replay", str(path)]) == 2


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        replay(tmp_path / "nothing")


def test_a_pump_of_a_machine_that_does_not_exist_is_refused(own: Path) -> None:
    records = records_of(own)
    last = records[-2]
    assert isinstance(last, Pumped)
    rewrite(own, [*records[:-2], replace(last, machine=7), TraceEnd("x")])
    with pytest.raises(TraceError, match=r"machine 7|cannot be read"):
        replay(own)


def test_a_message_that_no_machine_takes_is_refused(own: Path) -> None:
    records = records_of(own)
    last = records[-2]
    assert isinstance(last, Pumped)
    rewrite(own, [*records[:-2], replace(last, batch=msgspec.Raw(encode([(b"x", [9999])])))])
    with pytest.raises(TraceError, match="a pump cannot be read"):
        replay(own)


@settings(max_examples=60)
@given(st.binary(max_size=300))
def test_garbage_never_raises_anything_else(garbage: bytes) -> None:
    try:
        reader = TraceReader(MAGIC + garbage)
        assert list(reader) == []
        assert reader.torn_bytes == len(garbage)
    except TraceDamagedError:
        pass


# --- the recorder ----------------------------------------------------------------------------------


def hello(number: int) -> Hello:
    return Hello(PROTOCOL_VERSION, DRIVER, number, number.to_bytes(16, "big"))


def test_what_gathers_is_written_when_the_loop_is_idle(tmp_path: Path) -> None:
    node, start = lone_node()
    path = tmp_path / "t"
    recorder = Recorder(str(path), [start], Config())
    batch = [(b"d" * 16, hello(1))]
    pump(node, batch, 5)
    recorder.note_pump(0, 5, batch, node.out)
    digest = digest_of(node.out)
    node.out.clear()  # what was noted is not touched by that
    recorder._written_ns = 5  # a moment ago
    recorder.end_turn()
    assert pumps_of(path) == []
    recorder.flush()
    (found,) = pumps_of(path)
    assert found.digest == digest
    recorder.close()
    recorder.close()
    assert isinstance(records_of(path)[-1], TraceEnd)


def test_a_full_buffer_is_written_at_once(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(recording, "BUFFER_BYTES_MAX", 100)
    _, start = lone_node()
    path = tmp_path / "t"
    recorder = Recorder(str(path), [start], Config())
    recorder._written_ns = 5
    recorder.note_pump(0, 5, [(RUNTIME, hello(1))], [])
    recorder.note_pump(0, 5, [(RUNTIME, hello(2))], [])
    recorder.end_turn()
    assert len(pumps_of(path)) == 2


def test_a_trace_is_bounded_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, start = lone_node()
    path = tmp_path / "t"
    recorder = Recorder(str(path), [start], Config(trace_bytes_max=10_000))
    for number in range(1000):
        recorder.note_pump(0, number, [(RUNTIME, hello(number))], [])
        recorder.end_turn()
        recorder.flush()
    assert not recorder.is_on
    assert path.stat().st_size < 10_500
    end = records_of(path)[-1]
    assert isinstance(end, TraceEnd)
    assert "ZRAY_TRACE_BYTES_MAX" in end.reason
    assert "nothing is recorded from now on" in caplog.text


def test_a_full_disk_ends_the_recording_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    _, start = lone_node()
    with pytest.raises(OSError, match="No space left"):
        Recorder("/dev/full", [start], Config())


def test_a_disk_that_fills_ends_the_recording(
    tmp_path: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    _, start = lone_node()
    recorder = Recorder(str(tmp_path / "t"), [start], Config())
    with open("/dev/full", "wb") as full:
        import os

        os.dup2(full.fileno(), recorder._fd)
    recorder.note_pump(0, 5, [(RUNTIME, hello(1))], [])
    recorder.end_turn()
    recorder.flush()
    assert not recorder.is_on
    assert "No space left" in caplog.text
    recorder.note_pump(0, 6, [(RUNTIME, hello(1))], [])
    recorder.end_turn()
    recorder.close()
