"""``zray doctor``: can this machine be part of a cluster? Every link is tried in both directions.

Outwards: the control store, and the control and bulk port of every living node. Inwards: every node that
answers is asked to connect to the two ports at which a node of this machine would listen.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

from zray.config import Config
from zray.errors import ClusterUnavailableError
from zray.ids import random_id, short
from zray.protocol.cluster import Probe, Probed, ToDoctor
from zray.protocol.codec import batch_decoder
from zray.protocol.messages import PROTOCOL_VERSION, NodeHello
from zray.runtime.endpoints import beside, free_ports, is_local, own_host_towards, public_part
from zray.runtime.joining import living_nodes
from zray.runtime.knocking import TIMEOUT_S, problem_with
from zray.runtime.transport import Transport

ANSWER_TIMEOUT_S = 3.0
"""What a node may take to answer, beyond the time in which it tries to connect."""
LINKS = ("control", "bulk")


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    problem: str = ""
    """Empty: all is well."""


def examine(endpoint: str, config: Config, *, host: str | None, port: int | None) -> Iterator[Finding]:
    """What is found, one after the other; it ends early where nothing further can be found.

    Args:
        endpoint: of the control store.
        host, port: where a node of this machine would listen; default: what leads to the control store,
            and any free port.
    """
    config = config._replace(init_timeout_ns=int(ANSWER_TIMEOUT_S * 1e9))
    what = f"this machine -> control store, {endpoint}"
    problem = problem_with(endpoint)
    yield Finding(what, problem)
    if problem:
        return
    try:
        nodes = living_nodes(endpoint, config)
    except (ClusterUnavailableError, OSError, ValueError) as error:
        yield Finding("what the control store answers", _about_key(error, endpoint, config))
        return
    yield Finding(f"the control store answers: {len(nodes)} living nodes")
    with contextlib.ExitStack() as stack:
        own = host or own_host_towards(endpoint)
        first = port or free_ports(own.strip("[]"))
        inward = [f"tcp://{own}:{first}", f"tcp://{own}:{first + 1}"]
        for each in inward:
            yield from _listen(each, stack)
        if not nodes:
            yield Finding("no node lives that could try to reach this machine; ask again when one does")
        for node in nodes:
            yield from _examine_node(node, inward, config)


def _about_key(error: Exception, endpoint: str, config: Config) -> str:
    if not config.key_file and not is_local(endpoint):
        return "it does not answer without the key of the cluster: give --key-file, or ZRAY_KEY_FILE"
    return str(error)


def _listen(endpoint: str, stack: contextlib.ExitStack) -> Iterator[Finding]:
    """Take connections, so that what is refused is refused by a firewall; unless a node does already."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    listener = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
        listener.listen()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            yield Finding(f"listening at {endpoint}", f"{error.strerror}: choose another --node-ip-address")


def _examine_node(node: NodeHello, inward: list[str], config: Config) -> Iterator[Finding]:
    name, control = f"node {short(node.node_id)} on {node.host}", public_part(node.endpoint)
    if node.version != PROTOCOL_VERSION:
        problem = f"it speaks version {node.version} of the protocol, this zray {PROTOCOL_VERSION}"
        yield Finding(name, f"{problem}; install the same zray on both")
    if not control.startswith("tcp://"):
        yield Finding(f"{name} listens on its own machine only")
        return
    outward = dict(zip(LINKS, (control, beside(control)), strict=True))
    problems = {link: problem_with(endpoint) for link, endpoint in outward.items()}
    for link, endpoint in outward.items():
        yield Finding(f"this machine -> {name}, {link} {endpoint}", problems[link])
    if problems["control"]:
        yield Finding(f"{name} -> this machine", "not tried: it could not be asked")
        return
    answer = _ask(control, inward, config)
    if answer is None:
        doubt = "it takes the connection and does not answer: another key, or it is stopped"
        yield Finding(f"{name} -> this machine", doubt)
        return
    for link, endpoint, problem in zip(LINKS, inward, answer.problems, strict=False):
        yield Finding(f"{name} -> this machine, {link} {endpoint}", problem)


def _ask(control: str, endpoints: list[str], config: Config) -> Probed | None:
    """What a node says of the way to these endpoints; ``None`` if it says nothing."""
    deadline = time.monotonic() + len(endpoints) * TIMEOUT_S + ANSWER_TIMEOUT_S
    transport = Transport(random_id(), batch_decoder(ToDoctor), config)
    try:
        transport.connect(b"node", control)
        transport.send(b"node", [Probe(1, tuple(endpoints))])
        while (left_s := deadline - time.monotonic()) > 0:
            for _, message in transport.receive(1):
                if isinstance(message, Probed):
                    return message
            if not transport.readable():
                transport.wait(max(1, int(left_s * 1000)))
    finally:
        transport.close(linger_ms=0)
    return None
