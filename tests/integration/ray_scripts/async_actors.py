"""Coroutine methods, concurrency groups, threads, queues, signals, asyncio in the driver."""

import asyncio
import time

import zray as ray
from zray.util.queue import Empty, Queue

ray.init()


@ray.remote
class AsyncActor:
    def __init__(self):
        self.n = 0
        self.peak = 0

    async def run_task(self):
        self.n += 1
        self.peak = max(self.peak, self.n)
        await asyncio.sleep(0.05)
        self.n -= 1
        return self.peak


actor = AsyncActor.remote()
peaks = ray.get([actor.run_task.remote() for _ in range(50)])
assert max(peaks) == 50, max(peaks)
a2 = AsyncActor.options(max_concurrency=5).remote()
assert max(ray.get([a2.run_task.remote() for _ in range(20)])) == 5


@ray.remote
def some_task():
    return 1


async def main():
    assert await some_task.remote() == 1
    assert await asyncio.gather(*[some_task.remote() for _ in range(5)]) == [1] * 5
    assert await asyncio.wrap_future(some_task.remote().future()) == 1
    done, pend = await asyncio.wait([asyncio.ensure_future(asyncio.wrap_future(some_task.remote().future()))])
    assert len(done) == 1
    refs = [actor.run_task.remote()]
    r = await asyncio.wait_for(refs[0], timeout=5)


asyncio.run(main())


@ray.remote
class AsyncioActor:
    @ray.method(concurrency_group="io")
    async def f1(self):
        await asyncio.sleep(0)
        return "io"

    async def f2(self):
        return "default"

    @ray.method(concurrency_group="compute", num_returns=2)
    async def f3(self):
        return 1, 2


g = AsyncioActor.options(concurrency_groups={"io": 2, "compute": 4}).remote()
assert ray.get(g.f1.remote()) == "io"
assert ray.get(g.f3.remote()) == [1, 2]
assert ray.get(g.f2.options(concurrency_group="compute").remote()) == "default"


@ray.remote(concurrency_groups={"io": 2, "compute": 4})
class Deco:
    @ray.method(concurrency_group="io")
    def x(self):
        return 1


assert ray.get(Deco.remote().x.remote()) == 1


@ray.remote(max_concurrency=2)
class Threaded:
    def task(self, i):
        time.sleep(0.1)
        return i


t = Threaded.remote()
s = time.time()
ray.get([t.task.remote(i) for i in range(2)])
q = Queue(maxsize=10)


@ray.remote
def consumer(id, q):
    got = []
    try:
        while True:
            got.append(q.get(block=True, timeout=0.5))
    except Empty:
        pass
    return got


[q.put(i) for i in range(8)]
cs = [consumer.remote(i, q) for i in range(2)]
assert sorted(sum(ray.get(cs), [])) == list(range(8))
ref = actor.run_task.remote()


@ray.remote
class SignalActor:
    def __init__(self):
        self.ready_event = asyncio.Event()

    def send(self, clear=False):
        self.ready_event.set()
        if clear:
            self.ready_event.clear()

    async def wait(self, should_wait=True):
        if should_wait:
            await self.ready_event.wait()


@ray.remote
def wait_and_go(signal):
    ray.get(signal.wait.remote())
    return "go!"


signal = SignalActor.remote()
tasks = [wait_and_go.remote(signal) for _ in range(3)]
print(ray.wait(tasks, timeout=0.2)[0])
ray.get(signal.send.remote())
print(ray.get(tasks))
