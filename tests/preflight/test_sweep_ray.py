"""A sweep over a real Ray cluster of two nodes on this machine, one of whose workers is killed in the middle."""

import os
import signal

import joblib
import pytest

from poise.preflight import sweep

pytestmark = pytest.mark.slow
LRS = [0.01, 0.1, 1.0]


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster
    from ray.util.joblib import register_ray

    nodes = Cluster()
    for _ in range(2):
        nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
    ray.init(address=nodes.address, log_to_driver=False)
    register_ray()
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def made_train(marker=None):
    """A function that goes to the workers by value; with a marker, its worker is killed once in the middle."""

    def train(lr, seed):
        if marker is not None and lr == 0.1 and seed == 0 and not os.path.exists(marker):
            with open(marker, "w") as file:
                file.write(str(os.getpid()))
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        return {"loss": lr + seed if lr < 1 else float("nan"), "init_loss": 5.0}

    return train


def test_a_killed_worker_costs_nothing_but_time(cluster, tmp_path):
    import ray

    marker, folder = tmp_path / "killed", tmp_path / "sweep"
    # One CPU for each worker, so that each node gets one.
    with joblib.parallel_config("ray", n_jobs=2, ray_remote_args={"num_cpus": 1}):
        spread = sweep(made_train(str(marker)), LRS, seeds=2, folder=folder)
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    assert int(marker.read_text()) != os.getpid()
    assert repr(spread) == repr(sweep(made_train(), LRS, seeds=2, n_jobs=1))
    assert len((folder / "points.jsonl").read_text().splitlines()) == 6
