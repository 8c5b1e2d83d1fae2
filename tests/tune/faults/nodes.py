"""A Ray cluster of processes on loopback, until its input is closed: `python nodes.py 2` has a head without CPUs and 2
nodes of one CPU each. Prints a line of JSON: its address, and the process of each node's raylet. For each line that it
is given it adds a node, and prints the process of its raylet.
"""

import json
import os
import sys

os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_initial_delay_ms": "1000",
}

from ray.cluster_utils import Cluster


def retry(start, tries: int = 3):
    """What `start` returns: Ray gives its processes 30 s to come up, which a busy machine may need."""
    for _ in range(tries - 1):
        try:
            return start()
        except Exception:
            continue
    return start()


def head() -> Cluster:
    return Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})


def add(cluster: Cluster) -> int:
    node = retry(lambda: cluster.add_node(num_cpus=1, include_dashboard=False))
    return node.all_processes["raylet"][0].process.pid


if __name__ == "__main__":
    cluster = retry(head)
    raylets = [add(cluster) for _ in range(int(sys.argv[1]))]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    for _ in sys.stdin:
        print(add(cluster), flush=True)
    cluster.shutdown()
