"""ActorPool, multiprocessing, state, metrics, serializers, joblib."""

import tempfile
import time

import zray as ray
from zray.util import ActorPool
from zray.util.multiprocessing import Pool
from zray.util.state import list_actors, list_nodes, list_tasks, summarize_tasks

ray.init()


@ray.remote
class Actor:
    def double(self, n):
        return n * 2


pool = ActorPool([Actor.remote(), Actor.remote()])
assert list(pool.map(lambda a, v: a.double.remote(v), [1, 2, 3, 4])) == [2, 4, 6, 8]
assert sorted(pool.map_unordered(lambda a, v: a.double.remote(v), [1, 2, 3, 4])) == [2, 4, 6, 8]
pool.submit(lambda a, v: a.double.remote(v), 1)
assert pool.has_next()
assert pool.get_next() == 2


def f(x):
    return x * x


with Pool() as p:
    assert p.map(f, range(10)) == [x * x for x in range(10)]
    assert p.apply(f, (3,)) == 9
    assert p.starmap(pow, [(2, 3)]) == [8]
    assert list(p.imap_unordered(f, [1])) == [1]
for actor in list_actors(filters=[("state", "=", "ALIVE")]):
    print(actor["actor_id"], actor.class_name, actor.state, actor.pid)
assert list_actors(filters=[("state", "=", "ALIVE")])
assert list_actors(filters=[("class_name", "=", "Actor")], detail=True, limit=10, timeout=10)
print(list_nodes()[0].state, list_nodes()[0].node_id)


@ray.remote
def sleepy():
    time.sleep(1)


r = sleepy.remote()
time.sleep(0.3)
print(list_tasks(filters=[("name", "=", "sleepy"), ("state", "=", "RUNNING")]))
print(summarize_tasks())
ray.timeline(filename=tempfile.mktemp())
from zray.util.metrics import Counter, Histogram

c = Counter("num_requests", description="d", tag_keys=("actor_name",))
c.set_default_tags({"actor_name": "x"})
c.inc()
c.inc(2, tags={"actor_name": "y"})
h = Histogram("lat", description="x", boundaries=[0.1, 1], tag_keys=("a",))
h.observe(0.2, tags={"a": "1"})
import threading

lock = threading.Lock()


class A:
    def __init__(self, x):
        self.x = x
        self.lock = threading.Lock()


ray.util.register_serializer(A, serializer=lambda a: a.x, deserializer=lambda b: A(b))
assert ray.get(ray.put(A(1))).x == 1
ray.util.deregister_serializer(A)
try:
    ray.get(ray.put(A(1)))
except TypeError as e:
    print("serialize:", str(e).splitlines()[0])
from zray.util import inspect_serializability

print(inspect_serializability(lock, name="test")[0])
print(ray.util.get_node_ip_address())
import joblib

from zray.util.joblib import register_ray

register_ray()
with joblib.parallel_backend("ray"):
    assert joblib.Parallel()(joblib.delayed(f)(i) for i in range(5)) == [0, 1, 4, 9, 16]
