"""DistributedDataParallel over two gloo processes under torchrun."""

import os
import subprocess
import sys

import pytest
import torch

from poise.store import read_run

SCRIPT = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.manual_seed(rank)
for step in range(20):
    x = torch.randn(8, 4)
    loss = model(x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()]))
    optimizer.step()
    if rank == 0:
        print(f"{norm.item():.9g}")
torch.save(model.state_dict(), f"{sys.argv[1]}-{rank}.pt")
dist.destroy_process_group()
"""


def torchrun(*arguments, cwd):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command[4:5] = ["--standalone"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_two_processes_train_as_before_and_rank_0_records_global_norms(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    plain = torchrun("train.py", "plain", cwd=tmp_path)
    watched = torchrun("-m", "poise", "run", "--out", "run", "--json", "train.py", "watched", cwd=tmp_path)
    assert plain.returncode == watched.returncode == 0, watched.stderr
    assert watched.stdout == plain.stdout
    for rank in (0, 1):
        a, b = torch.load(tmp_path / f"plain-{rank}.pt"), torch.load(tmp_path / f"watched-{rank}.pt")
        assert all(torch.equal(a[name], b[name]) for name in a)
    record = read_run(tmp_path / "run" / "run.db")
    assert len(record["loss"]) == 20
    printed = [float(line) for line in plain.stdout.split()]
    norms = record["grad_norm"]
    assert norms.values.tolist() == pytest.approx([printed[s] for s in norms.steps], rel=1e-5)
    assert set(record.by_layer("param_norm")) >= {"0.weight", "3.bias"}
