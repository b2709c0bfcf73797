"""Several returns, nested refs, nested tasks, and what is refused."""

from collections import Counter

import zray as ray


@ray.remote
def map_document(doc, num_reducers):
    parts = [Counter() for _ in range(num_reducers)]
    for word in doc.lower().split():
        parts[ord(word[0]) % num_reducers][word] += 1
    return parts


@ray.remote
def apply_reduce(*results):
    c = Counter()
    for r in results:
        c.update(r)
    return c


docs = ["the quick brown fox", "jumps over the lazy dog", "the end"]
R = 3
maps = [map_document.options(num_returns=R).remote(d, R) for d in docs]  # auto init
outs = [apply_reduce.remote(*[m[i] for m in maps]) for i in range(R)]
total = sum((Counter(x) for x in ray.get(outs)), Counter())
assert total["the"] == 3, total


# nested refs
@ray.remote
def identity(x):
    return x


@ray.remote
def nested(refs):
    assert all(isinstance(r, ray.ObjectRef) for r in refs)
    return sum(ray.get(refs))


assert ray.get(nested.remote([identity.remote(i) for i in range(4)])) == 6


@ray.remote(num_returns=2)
def two():
    return 1, 2


a, b = two.remote()
assert ray.get([a, b]) == [1, 2]


@ray.remote(num_returns=0)
def none():
    pass


assert none.remote() is None


@ray.remote
def fib(n):
    if n < 2:
        return n
    return sum(ray.get([fib.remote(n - 1), fib.remote(n - 2)]))


assert ray.get(fib.remote(7)) == 13
try:
    identity(1)
except TypeError as e:
    print(e)
else:
    raise AssertionError
d = ray.put({"a": 1})
assert ray.get([d, d]) == [{"a": 1}] * 2
print(ray.cluster_resources()["CPU"], ray.available_resources())
