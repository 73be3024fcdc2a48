"""A cluster of two nodes of one core each."""

import os
from pathlib import Path

import pytest

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}
# Workers find this file by it, and busy machines answer late.
SURROUNDINGS = {
    "PYTHONPATH": str(Path(__file__).parent),
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pytest.importorskip("ray", reason="a cluster needs Ray: pip install 'karat[ray]'")
    os.environ.update(SURROUNDINGS, MARKS=str(tmp_path_factory.mktemp("marks")))
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    yield cluster.address
    cluster.shutdown()
    for name in (*SURROUNDINGS, "MARKS"):
        del os.environ[name]
