"""Who names the cause: the doctor and its peers on the public clinic, each at its defaults.

trainscope, torchmortem and losslint run in environments of their own, made on first use from
`benchmarks/peers/*/requirements.txt`. None of them names most of these causes; what they say is mapped generously: each
of their alarms counts as an answer with all causes that it may mean, and an alarm of the lowest severity counts as an
answer but not as a false alarm.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from poise.studies.clinic import cases, export
from poise.studies.clinic.runner import serving

HERE = Path(__file__).parent / "peers"
WHO = ("poise", "trainscope", "torchmortem", "losslint")

TOO_LARGE_STEPS = {"lr_too_high", "lr_above_curvature", "warmup_too_short", "schedule_jump", "sum_reduction"}
TOO_LARGE_STEPS |= {"accumulation_not_divided", "missing_zero_grad", "bootstrap_divergence", "attention_logit_growth"}
GROWTH = TOO_LARGE_STEPS | {"exploding_gradients", "residual_explosion", "stale_second_moment", "unscaled_inputs"}
GROWTH |= {"unscaled_targets", "nll_input", "target_out_of_range"}
NOT_FINITE = {"forward_nonfinite", "backward_nonfinite", "fp16_overflow", "eps_underflow", "deviation_of_one_value"}
NOT_FINITE |= {"targets_ignored", "fully_masked_softmax", "bad_batch"}
NO_PROGRESS = {"lr_too_small", "label_problem", "dead_units", "vanishing_gradients", "saturation", "clip_saturated"}
NO_PROGRESS |= {"weight_decay_too_strong", "gradients_lost", "schedule_per_batch", "double_softmax", "sigmoid_twice"}
NO_PROGRESS |= {"loss_broadcast", "eps_dominates", "clip_before_unscale", "batch_as_time", "softmax_over_batch"}
BATCHES = {"bad_batch", "repeated_tokens", "label_problem", "unmixed_batches"}
NO_GRADIENT = {"orphan_parameters", "unregistered_layers", "gradients_lost", "vanishing_gradients", "dead_units"}

# What an alarm, by the beginning of its title, may mean.
MEANINGS: Mapping[str, Mapping[str, set[str]]] = {
    "trainscope": {
        "grad_norm": GROWTH | BATCHES,
        "loss": GROWTH | BATCHES,
        "kurtosis": {"dead_units", "saturation", "attention_logit_growth", "residual_explosion", "unscaled_inputs"},
        "concentration": {"attention_entropy_collapse"},
        "explosion": GROWTH | NOT_FINITE,
    },
    "torchmortem": {
        "Vanishing gradients": {"vanishing_gradients", "saturation", "dead_units", "gradients_lost"},
        "Exploding gradients": GROWTH,
        "Gradient stalling": NO_GRADIENT | {"saturation"},
        "Dead units": {"dead_units"},
        "Activation saturation": {"saturation", "vanishing_gradients", "unscaled_inputs"},
        "Update ratio too low": NO_PROGRESS | NO_GRADIENT | {"bf16_update_lost"},
        "Update ratio too high": TOO_LARGE_STEPS,
        "Weight norm explosion": GROWTH,
        "Stagnant weight norms": NO_GRADIENT | {"lr_too_small", "bf16_update_lost"},
        "Training divergence": GROWTH | NOT_FINITE,
        "Loss plateau": NO_PROGRESS,
        "Catapult phase": {"lr_too_high", "lr_above_curvature"},
        "Edge of stability": {"lr_too_high", "lr_above_curvature"},
        "Rank collapse": {"weight_decay_too_strong", "dead_units"},
        "High gradient noise": {"label_problem", "unmixed_batches"},
    },
    "losslint": {
        "nan_inf": NOT_FINITE | {"lr_too_high", "exploding_gradients"},
        "loss_spike": GROWTH | BATCHES,
        "divergence": GROWTH,
        "stagnation": NO_PROGRESS,
    },
}

Said = Mapping[str, list[tuple[int, set[str]]]]
"""For each script the alarms, the most severe first: severity 0 to 2, and all causes that may be meant."""


def python_of(peer: str, folder: Path) -> Path:
    """Return the Python of a peer's environment, which is made if it is not there."""
    home = folder / peer
    if not (home / "bin" / "python").exists():
        venv.create(home, with_pip=True)
        requirements = HERE / peer / "requirements.txt"
        subprocess.run([home / "bin" / "python", "-m", "pip", "install", "-q", "-r", requirements], check=True)
    return home / "bin" / "python"


def lines_of(python: Path, peer: str, scripts: Path, seed: int, names: Sequence[str]) -> Iterable[dict]:
    """Run scripts with a peer attached."""
    command = [python, HERE / "attach.py", peer, scripts, str(seed), *names]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return map(json.loads, output.splitlines())


def meaning(peer: str, title: str) -> set[str]:
    return next((causes for start, causes in MEANINGS[peer].items() if title.startswith(start)), set())


def by_hooks(peer: str, python: Path, scripts: Path, seed: int, names: Sequence[str]) -> Said:
    """Return what a peer that is called in the training loop says."""
    said = {}
    for line in lines_of(python, peer, scripts, seed, names):
        if line["error"]:
            print(f"{peer}, {line['script']}: {line['error']}", file=sys.stderr)
        said[line["script"]] = [(entry["severity"], meaning(peer, entry["title"])) for entry in line["said"]]
    return said


def by_losslint(python: Path, scripts: Path, seed: int, names: Sequence[str]) -> Said:
    """Return what losslint says of the losses of every step."""
    said: dict[str, list[tuple[int, set[str]]]] = {}
    levels = {"info": 0, "warning": 1, "error": 2}
    with tempfile.TemporaryDirectory() as folder:
        for line in lines_of(Path(sys.executable), "log", scripts, seed, names):
            losses = line["said"][0]["losses"] if line["said"] else []
            log = Path(folder) / f"{line['script']}.csv"
            log.write_text("step,loss\n" + "".join(f"{i},{loss!r}\n" for i, loss in enumerate(losses)))
            command = [python.with_name("losslint"), "check", log, "--format", "json"]
            report = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
            found = [finding for run in report["runs"] for finding in run["findings"]]
            alarms = [(levels[f["severity"]], meaning("losslint", f["check"])) for f in found]
            said[line["script"]] = sorted(alarms, key=lambda alarm: -alarm[0])
    return said


def by_poise(seed: int, names: Sequence[str]) -> Said:
    """Return the doctor's errors and warnings: nothing of it is mapped."""
    with serving() as server:
        runs = {name: server.run(cases()[name], seed) for name in names}
    return {name: [(2, {finding.cause}) for finding in run.alarms] for name, run in runs.items()}


def row(name: str, said: Said) -> str:
    """Return a row of the table: fractions of the faults, and of the healthy scripts that raise an alarm."""
    faults = {n: alarms for n, alarms in said.items() if not cases()[n].is_healthy}
    healthy = {n: alarms for n, alarms in said.items() if cases()[n].is_healthy}

    def right(count: int) -> float:
        among = [set().union(*(causes for _, causes in alarms[:count])) for alarms in faults.values()]
        return sum(bool(a & set(cases()[n].causes)) for n, a in zip(faults, among, strict=True)) / max(len(faults), 1)

    alarmed = sum(any(level > 0 for level, _ in alarms) for alarms in healthy.values()) / max(len(healthy), 1)
    silent = sum(not alarms for alarms in faults.values()) / max(len(faults), 1)
    return f"| {name} | {right(1):.3f} | {right(3):.3f} | {silent:.3f} | {alarmed:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", nargs="*", default=WHO, help=f"some of {', '.join(WHO)}; all by default")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--every", type=int, default=4, help="take every so many-th script of the clinic; 1 takes all")
    parser.add_argument("--envs", type=Path, default=Path(".venv-peers"), help="folder of the peers' environments")
    options = parser.parse_args()
    names = list(cases())[:: options.every]
    count = sum(not cases()[name].is_healthy for name in names)
    print(f"{count} faults and {len(names) - count} healthy scripts, seed {options.seed}\n")
    print("| who | cause named first | among the first three | faults without alarm | healthy scripts alarmed |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder))
        for who in options.who:
            if who == "poise":
                said = by_poise(options.seed, names)
            else:
                python = python_of(who, options.envs.absolute())
                ask = by_losslint if who == "losslint" else functools.partial(by_hooks, who)
                said = ask(python, Path(folder), options.seed, names)
            print(row(who, said), flush=True)


if __name__ == "__main__":
    main()
