"""A client of a replicated shard that writes all the time; its arguments: key file, endpoints.

Every line of its input is a question about what it wrote so far, answered by a line of JSON: ``members``,
the chain as the newest epoch that it heard of has it; ``judge``, how many writes were acknowledged and which
of them a reader does not find.
"""

from __future__ import annotations

import json
import select
import sys

from benchmarks.bench_failover import Client
from zray.config import Config


def main() -> None:
    """Write until the input ends."""
    key_file, *endpoints = sys.argv[1:]
    client = Client(endpoints, Config(key_file=key_file))
    client.ask_around()
    while True:
        client.put()
        if client.tokens % 200 == 0:
            client.ask_around()
        if not select.select([sys.stdin], [], [], 0)[0]:
            continue
        question = sys.stdin.readline().strip()
        if not question:
            break
        answer: object = client.members
        if question == "judge":
            found = client.read_back()
            lost = [key.decode() for key, value in client.written.items() if found.get(key) != value]
            answer = [len(client.written), lost]
        print(json.dumps(answer), flush=True)
    client.close()


if __name__ == "__main__":
    main()
