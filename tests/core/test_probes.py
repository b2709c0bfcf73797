"""What a node tries to connect to for others: bounded, tcp only, answered once."""

from __future__ import annotations

import pytest

from tests.core.conftest import Outbox
from zray.core.machine import RUNTIME
from zray.core.probes import PROBES_MAX, Probes
from zray.protocol.cluster import Knock, Knocked, Probe, Probed

HERE = ("tcp://10.0.0.1:7000", "tcp://10.0.0.1:7001")


@pytest.fixture
def probes(out: Outbox) -> Probes:
    return Probes(out)


def test_a_probe_is_answered_once(out: Outbox, probes: Probes) -> None:
    for _ in range(2):
        probes.on_probe(b"doctor", Probe(7, HERE))
    knocked = Knocked(b"doctor", 7, ("", "refused"))
    probes.on_knocked(b"a stranger", knocked)
    for _ in range(2):
        probes.on_knocked(RUNTIME, knocked)
    assert list(out) == [(RUNTIME, Knock(b"doctor", 7, HERE)), (b"doctor", Probed(7, ("", "refused")))]
    out.clear()


@pytest.mark.parametrize("endpoints", [HERE * 3, ("ipc:///etc/passwd",), ("tcp://" + "x" * 1000,)])
def test_nonsense_is_answered_and_not_tried(out: Outbox, probes: Probes, endpoints: tuple[str, ...]) -> None:
    probes.on_probe(b"doctor", Probe(7, endpoints))
    ((to, answer),) = out
    assert to == b"doctor"
    assert all(answer.problems)
    out.clear()


def test_probes_at_once_are_bounded(out: Outbox, probes: Probes) -> None:
    for token in range(PROBES_MAX + 1):
        probes.on_probe(b"doctor", Probe(token, HERE))
    assert [type(message) for _, message in out] == [Knock] * PROBES_MAX + [Probed]
    out.clear()
