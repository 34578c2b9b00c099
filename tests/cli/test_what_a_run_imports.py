"""`poise run` loads nothing heavy that the script does not load itself."""

import os
import subprocess
import sys

import pytest

# What a run needs only where its script, or a finding, asks for it.
HEAVY = (
    "IPython", "joblib", "matplotlib", "narwhals", "pandas", "plotly.graph_objects", "plotly.graph_objs", "pydantic",
    "ray", "scipy", "sklearn", "sympy", "torch._dynamo", "torch._inductor", "torch.fx.experimental",
)  # fmt: skip
SCRIPT = """
import atexit, pathlib, sys
atexit.register(lambda: pathlib.Path("modules.txt").write_text("\\n".join(sys.modules)))
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x, y = torch.randn(64, 4), torch.randint(2, (64,))
for step in range(30):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.slow
def test_a_run_imports_nothing_heavy_from_its_start_to_its_report(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    def modules(*command):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *map(str, command)], cwd=tmp_path, env=environment, check=True)
        return set((tmp_path / "modules.txt").read_text().split())

    plain = modules(script)
    watched = modules("-m", "poise", "run", "--out", "run", script)
    assert (tmp_path / "run" / "report.html").exists()
    assert "poise.doctor.session" in watched
    assert [name for name in sorted(watched - plain) if name.startswith(HEAVY)] == []
