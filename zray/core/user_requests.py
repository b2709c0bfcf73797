"""What users ask of a node beyond submitting and getting: cancel, name, stream, print.

Handlers of the composite machine in ``core/node.py``, which each pass a message to the room that decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zray.core import checks, logs, reconstruction, reports
from zray.core.actor_names import ActorNames
from zray.core.everywhere import AT, PREFIX, Answerer, Everywhere
from zray.core.inquiries import TOPICS, Inquiries
from zray.core.logs import Logs
from zray.core.machine import Address, Handler
from zray.core.node_lists import NodeLists
from zray.core.output import OutputRelay
from zray.core.probes import Probes
from zray.core.streams import FIRST_ITEM_INDEX, Streams
from zray.ids import RETURNS_MAX
from zray.protocol.cluster import AskPeer, Knocked, LogRead, NodeList, PeerAnswer, Probe
from zray.protocol.documents import encode_value
from zray.protocol.messages import (
    DRIVER,
    PROTOCOL_VERSION,
    TABLE_JOB,
    Abort,
    Answer,
    Describe,
    Hello,
    JobContext,
    KillActor,
    Query,
    TablePage,
    TableReply,
    Value,
    WatchActor,
)
from zray.protocol.user_messages import (
    Call,
    Cancel,
    CancelCall,
    ClaimName,
    Consumed,
    ConsumedItems,
    FindCheckpoint,
    FindName,
    JobOptions,
    KeepCopies,
    LastWords,
    Leaving,
    ListNames,
    Output,
    RecordCall,
    Reply,
    ReplyItem,
    SaveCheckpoint,
    Told,
    Yielded,
)

if TYPE_CHECKING:
    from zray.core.node import Node

ITEMS_MAX = RETURNS_MAX - FIRST_ITEM_INDEX
"""Of one stream: what the index of an object id can number."""


def on_job_options(node: Node, now_ns: int, source: Address, message: JobOptions) -> None:
    """A driver says what holds for its job."""
    client = node.clients.get(source)
    if client is None or client.role != DRIVER:
        return
    client.wants_output = message.wants_output
    job = node.scheduler.jobs.get(client.job_id)
    if job is not None:
        context = job.context
        job.context = JobContext(
            context.job_id, context.sys_path, context.working_dir, message.namespace, message.environment
        )


def on_cancel(node: Node, now_ns: int, source: Address, message: Cancel) -> None:
    """A process takes a task back, or the origin of a guest does."""
    node.now_ns = node.scheduler.now_ns = now_ns
    if source in node.cluster.peers.alive:
        node.cluster.guests.on_cancel(source, message)
    elif node.known(source) is not None:
        node.scheduler.cancellation.cancel(source, message)


def on_leaving(node: Node, now_ns: int, source: Address, message: Leaving) -> None:
    """An actor ends on purpose."""
    client = node.clients.get(source)
    if client is not None and client.worker is not None:
        node.scheduler.lives.leaving(client.worker)


def on_last_words(node: Node, now_ns: int, source: Address, message: LastWords) -> None:
    """An actor ends once this is answered."""
    if node.worker(source) is not None:
        node.cluster.actors.relay.on_last_words(source)


def on_past(
    node: Node, now_ns: int, source: Address, message: SaveCheckpoint | RecordCall | FindCheckpoint
) -> None:
    """An actor that is made again if it dies says what it became, or asks what it was."""
    client = node.clients.get(source)
    if client is not None and client.worker is not None:
        node.now_ns = node.scheduler.now_ns = now_ns
        if not node.cluster.actors.hosted.tell_past(client.worker, message):
            node.scheduler.lives.checkpoints.hear(client.worker, message)


def on_yielded(node: Node, now_ns: int, source: Address, message: Yielded) -> None:
    """A generator made an item."""
    client = node.clients.get(source)
    if client is not None and client.worker is not None and 0 <= message.index < ITEMS_MAX:
        node.now_ns = node.scheduler.now_ns = now_ns
        node.streams.yielded(client.worker, message)


def on_consumed(node: Node, now_ns: int, source: Address, message: Consumed) -> None:
    """A reader took items of a stream."""
    if node.known(source) is not None:
        node.streams.consumed(message)


def on_claim_name(node: Node, now_ns: int, source: Address, message: ClaimName) -> None:
    """A process wants a name for an actor."""
    if node.known(source) is not None and not node.refused(
        source, checks.problem_of_actor_name(message.namespace, message.name)
    ):
        node.names.claim(source, message)


def on_find_name(node: Node, now_ns: int, source: Address, message: FindName) -> None:
    """A process looks for an actor."""
    if node.known(source) is not None and not node.refused(
        source, checks.problem_of_actor_name(message.namespace, message.name)
    ):
        node.names.find(source, message)


def on_list_names(node: Node, now_ns: int, source: Address, message: ListNames) -> None:
    """A process wants all names."""
    if node.known(source) is not None:
        node.names.list_names(source, message)


def on_output(node: Node, now_ns: int, source: Address, message: Output) -> None:
    """A worker printed."""
    node.output.on_output(source, message)


def on_query(node: Node, now_ns: int, source: Address, message: Query) -> None:
    """A process asks for a report."""
    client = node.known(source)
    if client is None:
        return
    if message.what == "nodes":
        node.node_lists.ask(now_ns, source, message)
        return
    if message.what == "abandoned":
        body = reports.abandoned(node, client.job_id if client.worker is None else client.worker.job_id)
        node.out.append((source, Answer(message.token, body)))
    elif message.what.startswith((PREFIX, AT)):
        node.everywhere.ask(now_ns, source, message.token, message.what)
    else:
        token = message.token
        _say(node, now_ns, message.what, source, lambda body: node.out.append((source, Answer(token, body))))


def _say(node: Node, now_ns: int, what: str, asker: Address, answer: Answerer) -> None:
    """Call ``answer`` with a report of this node, or with what its processes say."""
    node.now_ns = now_ns
    if what in TOPICS:
        node.inquiries.ask(now_ns, asker, what, answer)
    elif what.partition("/")[0] == logs.TOPIC:
        node.logs.ask(what, asker, answer)
    else:
        answer(reports.report(node, what))


def everywhere_of(node: Node) -> Everywhere:
    """The room for questions to all nodes."""
    return Everywhere(
        node.out,
        peers=node.cluster.peers,
        answer_here=lambda now_ns, what, asker, answer: _say(node, now_ns, what, asker, answer),
    )


def questions_of(node: Node) -> tuple[Inquiries, Everywhere, NodeLists, Probes, Logs]:
    """The rooms of a node for what people want to know."""
    inquiries = Inquiries(node.out, node.clients)
    return inquiries, everywhere_of(node), NodeLists(node), Probes(node.out), Logs(node.out)


def on_ask_peer(node: Node, now_ns: int, source: Address, message: AskPeer) -> None:
    """Another node asks for a report."""
    node.everywhere.on_ask_peer(now_ns, source, message)


def on_peer_answer(node: Node, now_ns: int, source: Address, message: PeerAnswer) -> None:
    """Another node answers."""
    node.everywhere.on_peer_answer(source, message)


def on_told(node: Node, now_ns: int, source: Address, message: Told) -> None:
    """A process says something of itself."""
    node.inquiries.told(source, message)


def on_table_reply(node: Node, now_ns: int, source: Address, message: TableReply) -> None:
    """A shard answers a write or a question of ours."""
    if message.token > reconstruction.FIRST_TOKEN:
        if source in node.shards:
            node.now_ns = now_ns
            node.cluster.on_table_reply(now_ns, message)
    elif not node.names.on_reply(source, message):
        node.tables.on_reply(now_ns, source, message)


def on_table_page(node: Node, now_ns: int, source: Address, message: TablePage) -> None:
    """A shard answers a listing."""
    if not (source in node.shards and node.cluster.actors.sweeper.on_page(message)):
        node.names.on_page(source, message)


def on_node_list(node: Node, now_ns: int, source: Address, message: NodeList) -> None:
    """The control store says which nodes there are."""
    node.node_lists.on_list(source, message)


def on_probe(node: Node, now_ns: int, source: Address, message: Probe) -> None:
    """Somebody who has the key wants to know what this node can connect to."""
    node.probes.on_probe(source, message)


def on_knocked(node: Node, now_ns: int, source: Address, message: Knocked) -> None:
    """This process has tried."""
    node.probes.on_knocked(source, message)


def on_log_read(node: Node, now_ns: int, source: Address, message: LogRead) -> None:
    """This process has read a log file."""
    node.logs.on_log_read(source, message)


def on_watch_actor(node: Node, now_ns: int, source: Address, message: WatchActor) -> None:
    """A process wants to call an actor."""
    if node.known(source) is not None:
        views = node.cluster.actors.views
        here = message.actor_id in node.actors.entries or not node.cluster.sharing.active
        views.now_ns = now_ns
        (node.actors if here else views).watch(source, message.actor_id)


def on_kill_actor(node: Node, now_ns: int, source: Address, message: KillActor) -> None:
    """A process ends an actor."""
    if node.known(source) is not None:
        node.now_ns = node.scheduler.now_ns = now_ns
        if message.actor_id in node.actors.entries or not node.cluster.sharing.active:
            node.scheduler.lives.kill(message.actor_id, message.no_restart)
        else:
            node.cluster.actors.views.kill(message)


def on_call(node: Node, now_ns: int, source: Address, message: Call) -> None:
    """A process calls an actor of another node."""
    if node.known(source) is not None:
        node.cluster.actors.relay.on_call(now_ns, source, message)


def on_said_of_call(node: Node, now_ns: int, source: Address, message: CancelCall | ConsumedItems) -> None:
    """A process takes back a call to an actor of another node, or items of its stream."""
    node.cluster.actors.relay.on_said(source, message)


def on_reply(node: Node, now_ns: int, source: Address, message: Reply) -> None:
    """An actor answers a call that came from another node."""
    node.now_ns = now_ns
    node.cluster.actors.relay.on_reply(now_ns, source, message)


def on_reply_item(node: Node, now_ns: int, source: Address, message: ReplyItem) -> None:
    """An actor has made an item for a caller of another node."""
    node.now_ns = now_ns
    node.cluster.actors.relay.on_item(now_ns, source, message)


def output_of(node: Node) -> OutputRelay:
    """The room for what workers print, connected to those who carry it."""
    side = node.cluster.actors
    relay = OutputRelay(
        node.out, ip=node.identity.ip, clients=node.clients, jobs=node.scheduler.jobs, couriers=side.couriers
    )
    side.output = relay
    return relay


def rooms_of(node: Node) -> tuple[ActorNames, Streams]:
    """The machines of a node that decide about names and streams, connected to those they need."""
    names = ActorNames(
        node.out,
        shards=node.shards,
        questions_max=node.config.table_writes_max,
        is_actor=node.actors.entries.__contains__,
    )

    def release_name(actor_id: bytes, descriptor: Describe) -> None:
        namespace, name = descriptor.actor_name
        if name:
            names.gone(namespace, name, actor_id + descriptor.handle)

    def keep_name(actor_id: bytes, descriptor: Describe) -> None:
        namespace, name = descriptor.actor_name
        if name:
            names.keep(namespace, name, actor_id + descriptor.handle)

    def keep_job(job: JobContext) -> None:
        hello = Hello(PROTOCOL_VERSION, DRIVER, 0, job.job_id, "", job.sys_path, job.working_dir)
        node.tables.put(node.now_ns, TABLE_JOB, job.job_id, encode_value(hello))

    def seal(object_id: bytes, value: Value) -> None:
        node.seal_value(node.now_ns, node.store.objects[object_id], value)

    def abandon(object_id: bytes) -> None:
        creator = node.store.objects[object_id].creator
        assert creator is not None
        node.on_abort(node.now_ns, creator, Abort(object_id))

    streams = Streams(node.scheduler, is_alive=node.clients.__contains__, seal=seal, abandon=abandon)
    lives = node.scheduler.lives
    lives.on_gone, lives.on_shown = release_name, keep_name
    lives.on_detached = keep_job  # what it makes may have to be made again elsewhere
    lives.on_disowned = lambda _actor_id, descriptor: names.disown(*descriptor.actor_name)
    node.scheduler.streams = streams
    return names, streams


def on_keep_copies(node: Node, now_ns: int, source: Address, message: KeepCopies) -> None:
    """A process wants copies of what it has put."""
    if node.known(source) is not None and not node.refused(source, checks.problem_of_copies(message)):
        node.now_ns = now_ns
        node.cluster.kept.on_keep_copies(now_ns, source, message)


HANDLERS: dict[type[Any], Handler] = {
    WatchActor: on_watch_actor,
    KillActor: on_kill_actor,
    Call: on_call,
    CancelCall: on_said_of_call,
    ConsumedItems: on_said_of_call,
    Reply: on_reply,
    ReplyItem: on_reply_item,
    JobOptions: on_job_options,
    Cancel: on_cancel,
    Leaving: on_leaving,
    LastWords: on_last_words,
    Yielded: on_yielded,
    SaveCheckpoint: on_past,
    RecordCall: on_past,
    FindCheckpoint: on_past,
    Consumed: on_consumed,
    KeepCopies: on_keep_copies,
    ClaimName: on_claim_name,
    FindName: on_find_name,
    ListNames: on_list_names,
    Output: on_output,
    Query: on_query,
    AskPeer: on_ask_peer,
    PeerAnswer: on_peer_answer,
    Told: on_told,
    TableReply: on_table_reply,
    TablePage: on_table_page,
    NodeList: on_node_list,
    Probe: on_probe,
    Knocked: on_knocked,
    LogRead: on_log_read,
}
