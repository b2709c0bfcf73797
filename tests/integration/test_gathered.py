"""What gathers for a batch while another thread sleeps at the socket leaves without waiting for idle duty."""

from __future__ import annotations

import pytest

from tests.clusters import place

pytestmark = pytest.mark.slow

NO_IDLE_DUTY = {"ZRAY_IDLE_DUTY_LINGER_NS": str(3_600_000_000_000)}

PROGRAM = """
import zray

@zray.remote
class Tally:
    def __init__(self):
        self.total = 0

    async def increment(self):
        self.total += 1
        return self.total

zray.init(num_cpus=1)
tally = Tally.remote()
for round in range(5):
    refs = [tally.increment.remote() for _ in range(200)]
    assert zray.get(refs, timeout=20) == [*range(200 * round + 1, 200 * round + 201)]
print("all of them")
"""


def test_the_last_replies_of_coroutines_wake_who_sleeps_at_the_socket() -> None:
    with place() as here:
        done = here.run(PROGRAM, environment=NO_IDLE_DUTY)
    assert done.stdout.split("\n")[0] == "all of them", done.stderr
