"""Pass the seed to everything that draws.

## What it does
Every generator that the training uses gets its seed, and the number of threads is fixed.

## When it helps
Against trainings with the same seed that differ (`nondeterministic_training`).

## What it costs
With one thread, or with deterministic algorithms, training is slower.

## Making it permanent
Set it in the training function, not in the environment of one machine.

## References
- Oh et al., *Rank list sensitivity of recommender systems to interaction perturbations*, CIKM 2022, arXiv:2201.12686
"""

from __future__ import annotations

from poise.rules.documented_remedy import DocumentedRemedy

REMEDY = DocumentedRemedy(
    name="fixed_seeds",
    title="Pass the seed to everything that draws",
    doc=__doc__,
    kind="code",
    code=(
        "import random\n"
        "\n"
        "import numpy as np\n"
        "import torch\n"
        "\n"
        "random.seed(seed)\n"
        "np.random.seed(seed)\n"
        "torch.manual_seed(seed)\n"
        "torch.use_deterministic_algorithms(True)\n"
        "torch.set_num_threads(1)\n"
    ),
)
