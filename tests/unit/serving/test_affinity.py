from types import SimpleNamespace

import pytest
from kafka.partitioner.default import DefaultPartitioner

from serving.affinity import partition_of


@pytest.mark.parametrize("partitions", [1, 4, 8, 100])
def test_a_user_belongs_to_the_partition_that_the_producer_writes_to(partitions):
    """No broker: what the producer's partitioner asks of the cluster is which partitions there are."""
    numbers = list(range(partitions))
    cluster = SimpleNamespace(
        topics=lambda: {"t"},
        partitions_for_topic=lambda _: numbers,
        available_partitions_for_topic=lambda _: numbers,
    )
    for user in [f"user-{i}" for i in range(50)] + ["ü", "a/b c", "x" * 500]:
        key = user.encode()
        assert partition_of(user, partitions) == DefaultPartitioner().partition("t", key, key, None, None, cluster)
