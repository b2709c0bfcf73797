"""Workers and actors that die, retries, timeouts, cancellation, errors and their causes."""

import os
import random
import time

import zray as ray
from zray.exceptions import *

ray.init()


@ray.remote(max_retries=1)
def potentially_fail(p):
    if random.random() < p:
        os._exit(0)
    return 0


try:
    ray.get(potentially_fail.remote(1.1))
except ray.exceptions.WorkerCrashedError:
    print("FAILURE")


class MyErr(Exception):
    pass


@ray.remote(max_retries=3, retry_exceptions=[MyErr])
def flaky(path):
    n = len(open(path).read()) if os.path.exists(path) else 0
    open(path, "a").write("x")
    if n < 2:
        raise MyErr("again")
    return n


import tempfile

assert ray.get(flaky.remote(tempfile.mktemp())) == 2


@ray.remote
def f():
    raise MyErr("user")


try:
    ray.get(f.remote())
except RayTaskError as e:
    assert isinstance(e, MyErr) and isinstance(e.cause, MyErr)
    assert isinstance(e.as_instanceof_cause(), MyErr) and "MyErr" in e.traceback_str
    print(str(e).splitlines()[-1])


@ray.remote(max_restarts=4, max_task_retries=-1)
class Actor:
    def __init__(self):
        self.counter = 0

    def increment_and_possibly_fail(self):
        if self.counter == 3:
            os._exit(0)
        self.counter += 1
        return self.counter

    def reconstructed(self):
        return ray.get_runtime_context().was_current_actor_reconstructed


a = Actor.remote()
out = [ray.get(a.increment_and_possibly_fail.remote()) for _ in range(10)]
print(out)
assert ray.get(a.reconstructed.remote())


@ray.remote
class Fragile:
    def boom(self):
        os._exit(1)

    def leave(self):
        ray.actor.exit_actor()

    def ping(self):
        return "pong"


x = Fragile.remote()
x.boom.remote()
try:
    ray.get(x.ping.remote())
except ray.exceptions.RayActorError as e:
    assert isinstance(e, ActorDiedError)
    print(type(e).__name__)
y = Fragile.remote()
ray.kill(y)
try:
    ray.get(y.ping.remote())
except RayActorError:
    print("killed")
z = Fragile.remote()
z.leave.remote()
try:
    ray.get(z.ping.remote())
except RayActorError:
    print("left")


@ray.remote
class BadInit:
    def __init__(self):
        raise RuntimeError("no")

    def m(self):
        return 1


try:
    ray.get(BadInit.remote().m.remote())
except RayActorError as e:
    print(str(e).splitlines()[0])


@ray.remote
def slow():
    time.sleep(20)


r = slow.remote()
try:
    ray.get(r, timeout=0.1)
except GetTimeoutError as e:
    assert isinstance(e, TimeoutError)
    print("timeout")
ray.cancel(r)
try:
    ray.get(r)
except TaskCancelledError:
    print("cancelled")
r = slow.remote()
time.sleep(0.3)
ray.cancel(r, force=True)
try:
    ray.get(r)
except (TaskCancelledError, WorkerCrashedError):
    print("forced")


@ray.remote
def chained():
    ray.get(f.remote())


try:
    ray.get(chained.remote())
except MyErr as e:
    print("chained", str(e).count("MyErr"))
