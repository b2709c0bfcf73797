"""runtime_env of a job, a task and an actor; contexts; graphs; mistakes."""

import os
import pathlib
import tempfile

import zray as ray
from zray.runtime_env import RuntimeEnv

d = pathlib.Path(tempfile.mkdtemp())
(d / "helper_mod.py").write_text("VALUE = 42\n")
(d / "data.txt").write_text("hello")
ctx = ray.init(
    runtime_env={"working_dir": str(d), "env_vars": {"OUTER": "1"}},
    log_to_driver=True,
    include_dashboard=False,
    logging_level="ERROR",
    num_cpus=2,
)
print(ctx.address_info, ctx.dashboard_url)


@ray.remote
def f():
    import helper_mod

    return open("data.txt").read(), helper_mod.VALUE, os.environ["OUTER"]


assert ray.get(f.remote()) == ("hello", 42, "1")


@ray.remote
def g():
    return os.environ.get("INNER"), os.environ.get("OUTER")


assert ray.get(g.options(runtime_env=RuntimeEnv(env_vars={"INNER": "2"})).remote()) == ("2", "1")


@ray.remote(runtime_env={"env_vars": {"INNER": "3"}})
class A:
    def get(self):
        return os.environ["INNER"]

    def env(self):
        return ray.get_runtime_context().runtime_env


a = A.remote()
assert ray.get(a.get.remote()) == "3"
print(ray.get(a.env.remote()))
try:
    ray.init()
except RuntimeError as e:
    print(e)
ray.init(ignore_reinit_error=True)
print(
    ray.get_runtime_context().get_job_id(),
    ray.get_runtime_context().get_task_id(),
    ray.get_runtime_context().gcs_address,
)
print(
    ray.get_runtime_context().get_node_labels()
    if hasattr(ray.get_runtime_context(), "get_node_labels")
    else "no labels"
)


@ray.remote
class Act:
    def __init__(self, v):
        self.v = v

    def add(self, x):
        self.v += x
        return self.v


from zray.dag import InputNode


@ray.remote
def inc(x):
    return x + 1


with InputNode() as inp:
    dag = Act.bind(10).add.bind(inc.bind(inp))
assert ray.get(dag.execute(1)) == 12


@ray.remote
def h(x, *, k=1, **kw):
    return x, k, kw


assert ray.get(h.remote(1, k=ray.put(5), z=3)) == (1, 5, {"z": 3})
print(h, inc._function if hasattr(inc, "_function") else "")
try:
    ray.get([1, 2])
except (TypeError, ValueError) as e:
    print(type(e).__name__, e)
try:
    ray.put(ray.put(1))
except TypeError as e:
    print(e)
try:
    ray.wait([])
except ValueError as e:
    print(e)
r = ray.put(1)
try:
    ray.wait([r, r])
except ValueError as e:
    print(e)
ready, rest = ray.wait([inc.remote(1), inc.remote(2)], num_returns=2, timeout=None)
assert len(ready) == 2
ray.shutdown()
ray.init()
