"""What the pods of ``zray kubernetes`` would run, run here: each at a loopback address of its own.

There is no kubelet, so this test does what one does with a container: it fills in the variables, puts the
volumes where they are mounted, resolves the names of the services, and asks the probes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.clusters import PATIENCE_S, Place, finish, place
from tests.support import eventually
from zray.launch.kubernetes import GCS_PORT, KEY_DIR, SECRET_DIR, STATE_DIR

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PROGRAM = """
import os, time, zray
zray.init()
@zray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where(number):
    time.sleep(0.05)
    return os.environ["POD_NAME"]
print(*sorted(set(zray.get([where.remote(number) for number in range(20)]))))
"""


class Pod:
    """One pod: its container, as processes of this machine."""

    def __init__(self, here: Place, name: str, address: str, template: dict[str, Any], key: bytes) -> None:
        self.here = here
        self.name = name
        self.root = here.folder / name
        (self.container,) = template["spec"]["containers"]
        for directory in (SECRET_DIR, KEY_DIR, STATE_DIR):
            (self.root / directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
        (self.root / SECRET_DIR.lstrip("/") / "cluster.key").write_bytes(key)
        fields = {"status.podIP": address, "metadata.name": name}
        self.environment = {
            each["name"]: self._inside(each["value"])
            if "value" in each
            else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
            for each in self.container["env"]
        }
        self.environment |= {
            "PATH": f"{here.folder}/bin:{os.environ['PATH']}",
            "ZRAY_BACKLOG_PER_SLOT_MAX": "0",
        }
        self.process: subprocess.Popen[str] | None = None

    def _inside(self, text: str) -> str:
        """A path of the container, or an address of the cluster, as it is here."""
        for directory in (SECRET_DIR, KEY_DIR, STATE_DIR):
            text = text.replace(directory, f"{self.root}{directory}")
        return re.sub(r"lab-gcs-(\d+)\.lab-gcs", lambda found: gcs_address(int(found[1])), text)

    def start(self) -> None:
        """Run the container."""
        words = [*self.container["command"], *self.container["args"]]
        words = [
            re.sub(r"\$\((\w+)\)", lambda found: self.environment[found[1]], self._inside(word))
            for word in words
        ]
        log = (self.root / "log").open("ab")
        with log:
            self.process = self.here.start_command(
                words, environment=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def probe(self, name: str) -> bool:
        """Whether a probe is content."""
        words = self.container[name]["exec"]["command"]
        return self.run(*map(self._inside, words)).returncode == 0

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """``kubectl exec``."""
        return finish(self.here.start_command(list(command), environment=self.environment))

    def end(self) -> int:
        """SIGTERM, as a kubelet does it; the exit code, 0 if nothing runs."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.terminate()
        return process.wait(PATIENCE_S)

    def log(self) -> str:
        return (self.root / "log").read_text()


def gcs_address(number: int) -> str:
    return f"127.0.1.{1 + number}"


class Pods(NamedTuple):
    """Those of one cluster."""

    here: Place
    stores: list[Pod]
    nodes: list[Pod]
    """The head first."""

    def everything(self) -> list[Pod]:
        return [*self.nodes, *self.stores]


@pytest.fixture
def pods() -> Iterator[Pods]:
    with place() as here:
        folder = here.folder / "bin"
        folder.mkdir()
        for name, module in (("zray", "zray.cli"), ("zray-gcs", "zray.services.gcs")):
            (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            (folder / name).chmod(0o700)
        found = make_pods(here)
        try:
            yield found
        finally:
            for pod in found.everything():
                pod.end()


def make_pods(here: Place) -> Pods:
    """The pods of a cluster of two shards and two nodes, not started."""
    made = here.zray(
        "kubernetes", "--name", "lab", "--image", "app", "--shards", "2", "--nodes", "2", "--memory", "256M",
        "--head-memory", "256M",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    key = Path(here.folder / "lab.key").read_bytes()
    found = {
        item["metadata"]["name"]: item["spec"]["template"]
        for item in json.loads(made.stdout)["items"]
        if "template" in item.get("spec", {})
    }
    stores = [Pod(here, f"lab-gcs-{n}", gcs_address(n), found["lab-gcs"], key) for n in range(2)]
    nodes = [Pod(here, "lab-head-x", "127.0.2.1", found["lab-head"], key)]
    nodes += [Pod(here, f"lab-nodes-{n}", f"127.0.3.{1 + n}", found["lab-nodes"], key) for n in range(2)]
    return Pods(here, stores, nodes)


def test_the_pods_form_a_cluster_that_survives_its_parts(pods: Pods) -> None:
    here, stores, nodes = pods
    for pod in pods.everything():  # in the order that is worst
        pod.start()
    for pod in (*stores, *nodes):
        eventually(lambda pod=pod: pod.probe("startupProbe"), PATIENCE_S, f"{pod.name}: {pod.log()}")
    head = nodes[0]
    script = here.folder / "script.py"
    script.write_text(PROGRAM)
    control_store = f"tcp://{gcs_address(0)}:{GCS_PORT}"
    waited = head.run("zray", "wait-for-nodes", "3", "--address", control_store)
    assert waited.returncode == 0, waited.stderr
    assert head.run("zray", "run", str(script)).stdout == "lab-nodes-0 lab-nodes-1\n"

    for store in stores:  # a pod that is moved: the volume stays
        assert store.end() == 0
        assert not store.probe("livenessProbe")
        store.start()
        eventually(lambda store=store: store.probe("readinessProbe"), PATIENCE_S, store.name)
    assert head.run("zray", "run", str(script)).stdout == "lab-nodes-0 lab-nodes-1\n"

    assert nodes[2].end() == 0
    assert not nodes[2].probe("livenessProbe")
    assert head.run("zray", "run", str(script)).stdout == "lab-nodes-0\n"
    for pod in (*nodes[:2], *stores):
        assert pod.end() == 0, pod.log()


def test_a_pod_with_another_key_never_becomes_ready(pods: Pods) -> None:
    here, stores, nodes = pods
    for store in stores:
        store.start()
    for store in stores:
        eventually(lambda store=store: store.probe("readinessProbe"), PATIENCE_S, store.name)
    stranger = nodes[1]
    other = here.folder / "other.key"
    here.zray("kubernetes", "--image", "app", "--key-file", str(other))
    (stranger.root / SECRET_DIR.lstrip("/") / "cluster.key").write_bytes(other.read_bytes())
    stranger.environment["ZRAY_INIT_TIMEOUT_NS"] = "1000000000"
    stranger.start()
    assert stranger.process is not None
    assert stranger.process.wait(PATIENCE_S) == 1
    assert "the key of that cluster" in stranger.log()
