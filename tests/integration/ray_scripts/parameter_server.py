"""A parameter server, synchronous and asynchronous."""

import numpy as np

import zray as ray

ray.init(num_cpus=4, ignore_reinit_error=True)


@ray.remote
class ParameterServer:
    def __init__(self, lr):
        self.w = np.zeros(10)
        self.lr = lr

    def apply_gradients(self, *gradients):
        self.w -= self.lr * np.stack(gradients).sum(axis=0)
        return self.w

    def get_weights(self):
        return self.w


@ray.remote
class DataWorker:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def compute_gradients(self, weights):
        assert not weights.flags.writeable
        return weights - np.arange(10) + self.rng.normal(size=10) * 0.01


ps = ParameterServer.remote(0.1)
workers = [DataWorker.remote(i) for i in range(2)]
w = ps.get_weights.remote()
for i in range(50):
    grads = [worker.compute_gradients.remote(w) for worker in workers]
    w = ps.apply_gradients.remote(*grads)
assert np.allclose(ray.get(w), np.arange(10), atol=0.1)
# async
w = ps.get_weights.remote()
gradients = {worker.compute_gradients.remote(w): worker for worker in workers}
for i in range(20):
    ready, _ = ray.wait(list(gradients))
    worker = gradients.pop(ready[0])
    w = ps.apply_gradients.remote(*[ready[0]])
    gradients[worker.compute_gradients.remote(w)] = worker
print(ray.get(w).round(2))
ray.shutdown()
assert not ray.is_initialized()
