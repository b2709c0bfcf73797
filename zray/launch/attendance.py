"""``zray wait-for-nodes``: until a cluster has as many nodes as it should."""

from __future__ import annotations

import os
import time

from zray.config import Config
from zray.errors import ClusterUnavailableError
from zray.runtime.joining import living_nodes

POLL_INTERVAL_S = 0.1


def wait_for_nodes(control_store: str, count: int, timeout_s: float) -> list[str]:
    """Wait until at least ``count`` nodes are alive; the names of their hosts.

    With a count of 0 it waits only for the control store.

    Raises:
        ClusterUnavailableError: if that takes longer, with how many there are, or why that is not known.
    """
    deadline = time.monotonic() + timeout_s
    config = Config.from_environment()
    while True:
        left_s = max(deadline - time.monotonic(), POLL_INTERVAL_S)
        patience_ns = min(config.init_timeout_ns, int(left_s * 1e9))
        try:
            hosts = [
                node.host
                for node in living_nodes(control_store, config._replace(init_timeout_ns=patience_ns))
            ]
            reason = f"it has {len(hosts)} ({', '.join(sorted(hosts)) or 'none'})"
            if len(hosts) >= count:
                return hosts
        except ClusterUnavailableError as error:
            reason = error.what
        if time.monotonic() > deadline:
            what = f"the cluster at {control_store} should have {count} nodes: {reason}"
            raise ClusterUnavailableError(what, timeout_s)
        time.sleep(POLL_INTERVAL_S)


def use_key(key_file: str | None) -> None:
    """Have this process use the key in a file, if there is one."""
    if key_file is not None:
        os.environ["ZRAY_KEY_FILE"] = os.path.abspath(key_file)
