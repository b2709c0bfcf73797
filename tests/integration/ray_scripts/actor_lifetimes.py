"""Names, namespaces, detached actors, handles passed around, supervisors, methods of every actor."""

import zray as ray

ray.init(namespace="colors")


@ray.remote
class Counter:
    def __init__(self, start=0):
        self.value = start

    def increment(self, by=1):
        self.value += by
        return self.value

    def get(self):
        return self.value

    @property
    def prop(self):
        return 5

    @staticmethod
    def st():
        return "static"

    @classmethod
    def cl(cls):
        return cls.__name__

    def __ray_terminate_hook(self):
        pass


Counter.options(name="orange", lifetime="detached").remote()
h = ray.get_actor("orange")
assert ray.get(h.increment.remote(by=2)) == 2
same = Counter.options(name="orange", get_if_exists=True).remote(10)
assert ray.get(same.get.remote()) == 2
try:
    Counter.options(name="orange").remote()
except ValueError as e:
    print(type(e).__name__, e)
try:
    ray.get_actor("nope")
except ValueError as e:
    print(e)
Counter.options(name="g", namespace="other").remote()
k = Counter.options(name="g", namespace="other", get_if_exists=True).remote()
print(ray.util.list_named_actors(), ray.util.list_named_actors(all_namespaces=True))
assert ray.get([h.st.remote(), h.cl.remote()]) == ["static", "Counter"]


@ray.remote
class Sub(Counter.__ray_metadata__.modified_class if hasattr(Counter, "__ray_metadata__") else object):
    pass


class Base:
    def hi(self):
        return "hi " + self.name()

    def name(self):
        return "base"


@ray.remote(num_cpus=0.5, max_restarts=1)
class Derived(Base):
    def name(self):
        return "derived"


assert ray.get(Derived.remote().hi.remote()) == "hi derived"


@ray.remote
class Supervisor:
    def __init__(self):
        self.workers = [Counter.remote(i) for i in range(3)]

    def work(self):
        return ray.get([w.increment.remote() for w in self.workers])

    def me(self):
        return ray.get_runtime_context().current_actor

    def ids(self):
        c = ray.get_runtime_context()
        return (
            c.get_actor_id(),
            c.get_task_id(),
            c.get_job_id(),
            c.get_node_id(),
            c.get_worker_id(),
            c.get_assigned_resources(),
            c.get_actor_name(),
            c.namespace,
        )


s = Supervisor.remote()
assert ray.get(s.work.remote()) == [1, 2, 3]
assert ray.get(ray.get(s.me.remote()).work.remote()) == [2, 3, 4]
print(ray.get(s.ids.remote()))


@ray.remote
def use(c):
    return ray.get(c.increment.remote())


assert ray.get(use.remote(h)) == 3
assert ray.get(use.remote(ray.get_actor("orange", namespace="colors"))) == 4
ray.kill(h)
Foo = ray.remote(Counter.__class__) if False else ray.remote(num_cpus=0)(Base)
assert ray.get(Foo.remote().hi.remote()) == "hi base"
try:
    Counter()
except TypeError as e:
    print(e)
try:
    s.nothing
except AttributeError as e:
    print(e)
try:
    s.work()
except TypeError as e:
    print(e)
print(s, Counter, s.work)
assert ray.get(s.__ray_ready__.remote()) in (None, True)
ray.get(s.__ray_call__.remote(lambda self: len(self.workers)))
s.__ray_terminate__.remote()
