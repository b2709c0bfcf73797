"""What a node tries to connect to because ``zray doctor`` asks it. Bounded (I15): each try costs a thread."""

from __future__ import annotations

from zray.core.machine import RUNTIME, Address, Effect
from zray.protocol.cluster import Knock, Knocked, Probe, Probed

PROBES_MAX = 8
ENDPOINTS_MAX = 4
ENDPOINT_CHARACTERS_MAX = 300


class Probes:
    """Open probes of a node. Pure; shares its outbox."""

    def __init__(self, out: list[Effect]) -> None:
        self.out = out
        self.open: dict[tuple[Address, int], None] = {}

    def on_probe(self, source: Address, message: Probe) -> None:
        """Somebody asks; a repeated question is answered once."""
        endpoints = message.endpoints
        problem = ""
        if len(endpoints) > ENDPOINTS_MAX or any(len(each) > ENDPOINT_CHARACTERS_MAX for each in endpoints):
            problem = f"a node probes {ENDPOINTS_MAX} endpoints at a time"
        elif not all(each.startswith("tcp://") for each in endpoints):
            problem = "a node probes tcp endpoints only"
        elif len(self.open) >= PROBES_MAX:
            problem = f"the node is busy with {PROBES_MAX} other probes; ask again in a moment"
        if problem:
            self.out.append((source, Probed(message.token, (problem,) * min(len(endpoints), ENDPOINTS_MAX))))
        elif (source, message.token) not in self.open:
            self.open[source, message.token] = None
            self.out.append((RUNTIME, Knock(source, message.token, endpoints)))

    def on_knocked(self, source: Address, message: Knocked) -> None:
        """The process of this node has tried."""
        if source == RUNTIME and self.open.pop((message.asker, message.token), self) is None:
            self.out.append((message.asker, Probed(message.token, message.problems)))
