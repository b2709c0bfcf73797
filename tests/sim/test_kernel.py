"""Virtual time: order, streams and the network's promise per link."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sim.histogram import DurationHistogram
from sim.kernel import Kernel, stream
from sim.network import LinkQuality, Network
from zray.protocol.messages import Credit


@given(st.lists(st.integers(0, 50), max_size=60))
def test_events_happen_in_time_order_and_equal_times_in_the_order_of_planning(times: list[int]) -> None:
    kernel = Kernel(0)
    seen: list[tuple[int, int]] = []
    for number, time_ns in enumerate(times):
        kernel.at(time_ns, lambda number: seen.append((kernel.now_ns, number)), number)
    kernel.run_until(100)
    assert seen == sorted((time_ns, number) for number, time_ns in enumerate(times))
    assert kernel.now_ns == 100


def test_the_past_happens_now() -> None:
    kernel = Kernel(0)
    seen: list[int] = []
    kernel.at(10, lambda _: kernel.at(5, lambda _: seen.append(kernel.now_ns)))
    assert kernel.step()
    assert kernel.step()
    assert not kernel.step()
    assert seen == [10]


def test_streams_differ_by_name_and_by_seed_and_are_stable() -> None:
    assert stream(1, "network").random() == stream(1, "network").random()
    draws = [stream(seed, name).getrandbits(64) for seed in (1, 2) for name in ("network", "workload")]
    assert len(dict.fromkeys(draws)) == 4
    assert stream(7, "network").getrandbits(32) == 2457579295


@settings(max_examples=40)
@given(st.data())
def test_a_link_keeps_order_through_clogs_partitions_and_reconnections(data: st.DataObject) -> None:
    kernel = Kernel(data.draw(st.integers(0, 1000)))
    network = Network(kernel, LinkQuality(1000, 5000, 1_000_000), strict=False)
    arrived: list[int] = []
    network.attach(b"to", lambda source, messages: arrived.extend(m.tasks for m in messages))
    link = network.link(b"from", b"to")
    lossless = True
    for number in range(30):
        network.send(b"from", b"to", [Credit(number)], kernel.now_ns)
        match data.draw(st.integers(0, 6)):
            case 0:
                network.clog(link, kernel.now_ns + 20_000)
            case 1:
                network.partition(link)
            case 2:
                network.heal(link)
            case 3:
                network.disconnect(link, waits=True)
                lossless = False
            case 4:
                network.connect(link)
        kernel.run_until(kernel.now_ns + data.draw(st.integers(0, 10_000)))
    network.heal(link)
    network.connect(link)
    kernel.run_until(kernel.now_ns + 1_000_000_000)
    assert arrived == sorted(arrived)
    assert len(arrived) + network.lost_frames == 30
    assert not lossless or arrived == list(range(30))


def test_a_link_without_a_route_drops_and_one_that_connects_waits() -> None:
    for waits, expected in ((True, [1]), (False, [])):
        kernel = Kernel(1)
        network = Network(kernel, LinkQuality(), strict=True)
        arrived: list[int] = []
        network.attach(b"to", lambda source, messages, seen=arrived: seen.extend(m.tasks for m in messages))
        link = network.link(b"from", b"to")
        network.disconnect(link, waits=waits)
        network.send(b"from", b"to", [Credit(1)], 0)
        kernel.run_until(1_000_000_000)
        assert not arrived
        network.connect(link)
        kernel.run_until(2_000_000_000)
        assert arrived == expected


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200), st.floats(0.0, 0.999))
def test_a_histogram_knows_quantiles_to_a_few_percent(values: list[int], share: float) -> None:
    histogram = DurationHistogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[int(len(values) * share)]
    assert exact * 0.93 <= histogram.quantile(share) <= exact
