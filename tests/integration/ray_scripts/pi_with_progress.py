"""Tasks that report to an actor while they run."""

import math
import random
import time

import zray as ray

ray.init()


@ray.remote
class ProgressActor:
    def __init__(self, total_num_samples: int):
        self.total_num_samples = total_num_samples
        self.num_samples_completed_per_task = {}

    def report_progress(self, task_id: int, num_samples_completed: int) -> None:
        self.num_samples_completed_per_task[task_id] = num_samples_completed

    def get_progress(self) -> float:
        return sum(self.num_samples_completed_per_task.values()) / self.total_num_samples


@ray.remote
def sampling_task(num_samples: int, task_id: int, progress_actor: "ray.actor.ActorHandle") -> int:
    num_inside = 0
    for i in range(num_samples):
        x, y = random.uniform(-1, 1), random.uniform(-1, 1)
        if math.hypot(x, y) <= 1:
            num_inside += 1
        if (i + 1) % 10_000 == 0:
            progress_actor.report_progress.remote(task_id, i + 1)
    progress_actor.report_progress.remote(task_id, num_samples)
    return num_inside


N, S = 4, 50_000
pa = ProgressActor.remote(N * S)
results = [sampling_task.remote(S, i, pa) for i in range(N)]
while True:
    progress = ray.get(pa.get_progress.remote())
    if progress == 1:
        break
    time.sleep(0.05)
pi = sum(ray.get(results)) * 4 / (N * S)
print("pi", pi)
assert 3 < pi < 3.3
