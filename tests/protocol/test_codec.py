"""The wire: golden bytes, permanent tags, and round trips of every message.

``pytest tests/protocol --rewrite-golden`` writes ``golden.json`` anew; review it as a diff. It refuses to
reuse a tag or a name for something else, and to break a frame that an older zray could have sent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol import shapes
from zray.errors import RemoteProtocolError
from zray.protocol import base, codec, local_messages, messages

GOLDEN = Path(__file__).with_name("golden.json")
STRUCTS = shapes.structs()
BY_NAME = {struct.__name__: struct for struct in STRUCTS}


def current(retired: dict[str, str]) -> dict[str, Any]:
    """What ``golden.json`` would say of the messages as they are now.

    ``retired`` maps the tags of messages that are gone, in decimal, to their names.
    """
    return {
        "constants": shapes.constants(),
        "retired": retired,
        "messages": {
            struct.__name__: {
                "tag": shapes.tag_of(struct),
                "fields": list(struct.__struct_fields__),
                "hex": codec.encode_batch([shapes.example(struct)]).hex(),
            }
            for struct in STRUCTS
        },
    }


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def tags(book: dict[str, Any]) -> dict[str, str]:
    """Tag, in decimal, -> name of the message; retired ones too."""
    now = {str(entry["tag"]): name for name, entry in book["messages"].items() if entry["tag"] is not None}
    return now | book["retired"]


def retired_tags(old: dict[str, Any]) -> dict[str, str]:
    """The tags of ``old`` whose messages do not exist any more."""
    return {tag: name for tag, name in tags(old).items() if name not in BY_NAME}


def broken_promises(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What ``new`` takes back of what ``old`` promised.

    Additions are no breach. Nor is a message that is gone, as long as nothing else takes its tag.
    """
    found = [
        f"{name} was {value} and is {new['constants'][name]}"
        for name, value in old["constants"].items()
        if name != "PROTOCOL_VERSION" and new["constants"].get(name, value) != value
    ]
    new_tags = tags(new)
    found += [
        f"tag {tag} was {name} and is {new_tags[tag]}"
        for tag, name in tags(old).items()
        if new_tags.get(tag, name) != name
    ]
    for name, entry in old["messages"].items():
        now = new["messages"].get(name, entry)
        if now["tag"] != entry["tag"]:
            found.append(f"{name} had tag {entry['tag']} and has {now['tag']}")
        if now["fields"][: len(entry["fields"])] != entry["fields"]:
            found.append(f"{name} had fields {entry['fields']} and has {now['fields']}")
    return found


def rewrite_golden() -> None:
    """Write ``golden.json`` anew, unless that breaks a promise within one protocol version."""
    old = golden() if GOLDEN.exists() else {"constants": {}, "retired": {}, "messages": {}}
    new = current(retired_tags(old))
    if old["constants"].get("PROTOCOL_VERSION") == messages.PROTOCOL_VERSION:
        breaches = broken_promises(old, new)
        assert not breaches, "raise PROTOCOL_VERSION first: " + "; ".join(breaches)
    GOLDEN.write_text(json.dumps(new, indent=1) + "\n")


def test_golden_bytes(request: pytest.FixtureRequest) -> None:
    """Every message encodes to the bytes it always did."""
    if request.config.getoption("--rewrite-golden"):
        rewrite_golden()
    frozen = golden()
    assert current(frozen["retired"]) == frozen


def test_no_tag_is_used_again() -> None:
    alive = [str(shapes.tag_of(struct)) for struct in STRUCTS]
    assert [tag for tag in golden()["retired"] if tag in alive] == []


@pytest.mark.parametrize("name", list(golden()["messages"]) if GOLDEN.exists() else [])
def test_golden_bytes_still_decode(name: str) -> None:
    """A frame that was once valid is valid now: fields are appended, with defaults."""
    struct = BY_NAME[name]
    frame = bytes.fromhex(golden()["messages"][name]["hex"])
    (message,) = msgspec.msgpack.decode(frame, type=list[struct])
    assert message == shapes.example(struct)


def test_names_and_tags_are_unique() -> None:
    assert len(BY_NAME) == len(STRUCTS)
    used = [shapes.tag_of(struct) for struct in STRUCTS if shapes.tag_of(struct) is not None]
    assert len(used) == len(set(used))


def test_every_message_travels_on_some_link_and_only_messages_do() -> None:
    on_links = [member for members in shapes.unions().values() for member in members]
    assert [member.__name__ for member in on_links if shapes.tag_of(member) is None] == []
    assert [s.__name__ for s in STRUCTS if shapes.tag_of(s) is not None and s not in on_links] == []


def test_structs_without_a_tag_travel_inside_messages() -> None:
    names = {struct.__name__ for struct in shapes.untagged()}
    assert names == {
        "Value", "InGroup", "TaskRecord", "Logged", "Command", "ChainMember", "ShareUpdate", "Input",
        "NodeRow", "Strategy", "LabelRule", "ActorRow", "GroupSpec", "GroupRow", "Bundle",
    }  # fmt: skip


def test_a_broken_promise_is_seen() -> None:
    def book(tag: int, *fields: str, name: str = "A", constant: int = 1) -> dict[str, Any]:
        messages_book = {name: {"tag": tag, "fields": list(fields)}}
        return {"constants": {"C": constant}, "retired": {}, "messages": messages_book}

    old = book(1, "a", "b")
    assert broken_promises(old, book(1, "a", "b", "c")) == []
    assert broken_promises(old, {"constants": {}, "retired": {"1": "A"}, "messages": {}}) == []
    assert broken_promises(old, book(2, "a", "b")) != []
    assert broken_promises(old, book(1, "b", "a")) != []
    assert broken_promises(old, book(1, "a")) != []
    assert broken_promises(old, book(1, "a", "b", name="Other")) != []
    assert broken_promises(old, book(1, "a", "b", constant=2)) != []


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_an_example_sets_every_field(struct: type[base.Message]) -> None:
    """Otherwise the golden bytes would not notice a field whose encoding changed."""
    example = shapes.example(struct)
    defaults = {field.name: field.default for field in msgspec.structs.fields(struct)}
    assert [name for name, default in defaults.items() if getattr(example, name) == default] == []


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_a_struct_survives_the_round_trip(struct: type[base.Message], data: st.DataObject) -> None:
    message = data.draw(shapes.instances(struct))
    frame = codec.encode_batch([message])
    assert msgspec.msgpack.decode(frame, type=list[struct]) == [message]


@pytest.mark.parametrize("link", shapes.LINKS)
@given(data=st.data())
def test_a_batch_survives_the_round_trip(link: str, data: st.DataObject) -> None:
    batch = data.draw(shapes.batches(link))
    decode, _ = shapes.LINKS[link]
    decoded = decode(codec.encode_batch(batch))
    assert decoded == batch
    assert [type(message) for message in decoded] == [type(message) for message in batch]


@pytest.mark.parametrize(
    ("link", "stranger"),
    [
        ("node", messages.Run),
        ("node", local_messages.StartWorker),
        ("gcs", messages.Submit),
        ("process", messages.TaskDone),
    ],
)
def test_a_message_of_another_link_is_refused(link: str, stranger: type[base.Message]) -> None:
    decode, _ = shapes.LINKS[link]
    with pytest.raises(RemoteProtocolError):
        decode(codec.encode_batch([shapes.example(stranger)]))


def test_a_field_from_the_future_is_ignored() -> None:
    """A newer peer may have appended a field."""
    tag = shapes.tag_of(messages.Credit)
    assert codec.decode_for_process(msgspec.msgpack.encode([[tag, 7, "new"]])) == [messages.Credit(7)]


def test_an_empty_batch_is_a_batch() -> None:
    assert codec.decode_for_node(codec.encode_batch([])) == []
