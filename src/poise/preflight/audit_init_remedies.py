"""What cures the findings of an audit at initialisation, as code."""

from __future__ import annotations

from collections.abc import Sequence

from poise.preflight.audit_init_facts import InitFacts
from poise.report import Code, Finding

_CODE = {
    "stabilize_residuals": (
        "Multiply the branches by factors whose squares have a bounded sum",
        "from poise.nn import stabilize_residuals\n\n"
        'print(stabilize_residuals(model, kind="uniform").report())  # each branch times 1 / sqrt(number of branches)\n'
        "# branches that it does not find: poise.nn.ScaledResidual(branch, scale=number_of_branches**-0.5)\n",
    ),
    "add_layer_norm": (
        "Normalise what each block is given",
        "class Block(nn.Module):\n"
        "    def forward(self, x):\n"
        "-       return x + self.branch(x)\n"
        "+       return x + self.branch(self.norm(x))  # self.norm = nn.LayerNorm(width)\n",
    ),
    "he_init": (
        "Draw weights that keep the signal's size",
        "for layer in model.modules():\n"
        "    if isinstance(layer, nn.Linear | nn.Conv2d):\n"
        '        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # xavier_normal_ with tanh\n'
        "        if layer.bias is not None:\n"
        "            nn.init.zeros_(layer.bias)\n",
    ),
    "scale_embedding": (
        "Begin the residual stream at standard deviation 1",
        "from poise.nn import scale_embedding\n\n"
        'print(scale_embedding(model, "unit").report())  # a tied head goes on using the unscaled weights\n',
    ),
    "spike_free_init": (
        "Draw a Transformer's weights small where branches end",
        "from poise.nn import scale_embedding, spike_free_\n\n"
        'spike_free_(model, embedding="unit")\n'
        'scale_embedding(model, "unit")\n',
    ),
    "add_qk_norm": (
        "Normalise queries and keys",
        "from poise.nn import add_qk_norm\n\n"
        "print(add_qk_norm(model, example_input).report())  # logits are then at most gain**2 * sqrt(head size)\n",
    ),
    "zero_bias": (
        "Let biases begin at zero",
        "for layer in model.modules():\n"
        '    if getattr(layer, "bias", None) is not None:\n'
        "        nn.init.zeros_(layer.bias)\n"
        "# and give inputs with mean 0 and standard deviation 1, or nn.GELU() in the place of nn.ReLU()\n",
    ),
    "swap_recurrent": (
        "Normalise recurrent layers",
        "from poise.nn import swap_recurrent\n\n"
        "print(swap_recurrent(model).report())  # LSTM, GRU and RNN become their layer-normalised counterparts\n",
    ),
    "loss_scaling": (
        "Scale the loss",
        "scaler = torch.amp.GradScaler(device)  # or train in bfloat16, whose range is that of float32\n"
        "scaler.scale(loss).backward()\n"
        "scaler.step(optimizer)\n"
        "scaler.update()\n",
    ),
    "warmup": (
        "Warm the learning rate up",
        "from poise.optim import WarmupCosineLR\n\n"
        "scheduler = WarmupCosineLR(optimizer, warmup=total_steps // 20, total_steps=total_steps)\n",
    ),
    "eps": (
        "Lower the optimizer's epsilon",
        "optimizer = torch.optim.AdamW(model.parameters(), lr=lr, eps=1e-12)\n",
    ),
}


def remedy_blocks(facts: InitFacts, findings: Sequence[Finding]) -> list[Code]:
    """Return the code of every remedy that a finding names, each once.

    Args:
        facts: what was measured.
        findings: in order of importance.
    """
    names = dict.fromkeys(name for finding in findings for name in finding.remedies)
    blocks = []
    for name in names:
        if name not in _CODE:
            continue
        title, code = _CODE[name]
        if name == "scale_embedding" and not facts.tied:
            code = code.replace("  # a tied head goes on using the unscaled weights", "")
        blocks.append(Code(title, code, "diff" if name == "add_layer_norm" else "python"))
    return blocks
