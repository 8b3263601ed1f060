"""What tests of several packages share: a Ray cluster on the loopback, started once for all that need it."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.tree import IMPORTABLE
from tests.unit.engine.ray_nodes import LOCAL, Nodes


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback stays loopback
        patch.setenv("PYTHONPATH", IMPORTABLE)
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_timeout_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "10")
        from ray.cluster_utils import Cluster

        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "node_ip_address": LOCAL, "include_dashboard": False},
        )
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def nodes(ray_head: Any) -> Iterator[Nodes]:
    found = Nodes(ray_head)
    try:
        yield found
    finally:
        found.clear()
