"""Streams, static and dynamic generators, in tasks and actors."""

import asyncio

import numpy as np

import zray as ray
from zray import ObjectRefGenerator

ray.init(num_cpus=4)


@ray.remote
def task():
    for i in range(5):
        yield np.full(1000, i)


gen = task.remote()
assert isinstance(gen, ObjectRefGenerator)
ref = next(gen)
assert ray.get(ref)[0] == 0
for ref in gen:
    print(ray.get(ref)[0], end=" ")


@ray.remote
def err():
    for i in range(5):
        yield i
        if i == 1:
            raise ValueError("boom")


g = err.remote()
ray.get(next(g))
ray.get(next(g))
try:
    ray.get(next(g))
except ValueError as e:
    print("got", type(e))
try:
    next(g)
except StopIteration:
    print("stop")


@ray.remote
class Actor:
    def f(self):
        for i in range(3):
            yield i

    async def af(self):
        for i in range(3):
            await asyncio.sleep(0.01)
            yield i


a = Actor.remote()
assert [ray.get(r) for r in a.f.remote()] == [0, 1, 2]
assert [ray.get(r) for r in a.af.remote()] == [0, 1, 2]


@ray.remote(num_returns=3)
def static():
    for i in range(3):
        yield i


assert ray.get(list(static.remote())) == [0, 1, 2]


@ray.remote(num_returns="dynamic")
def split(array, chunk):
    while len(array) > 0:
        yield array[:chunk]
        array = array[chunk:]


dyn = split.remote(np.ones(1000), 300)
rg = ray.get(dyn)
assert len(list(rg)) == 4


@ray.remote
def get_size(ref_generator):
    return sum(len(ray.get(r)) for r in ref_generator)


assert ray.get(get_size.remote(rg)) == 1000
assert ray.get(get_size.remote(dyn)) == 1000


async def main():
    async for ref in task.remote():
        assert (await ref).shape == (1000,)


asyncio.run(main())
g1, g2 = task.remote(), task.remote()
ready, unready = ray.wait([g1, g2], num_returns=1, timeout=5)
assert ready and isinstance(ready[0], ObjectRefGenerator), ready
ready, unready = ray.wait([g1, ray.put(1)], num_returns=2, timeout=5, fetch_local=False)
print(len(ready), len(unready))
print(ray.get(g1.completed()))
g3 = task.options(_generator_backpressure_num_objects=2).remote()
ray.cancel(g3)
try:
    for r in g3:
        ray.get(r)
except ray.exceptions.TaskCancelledError:
    print("cancelled")
while not g1.is_finished():
    next(g1)
