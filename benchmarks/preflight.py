"""What `poise.preflight` costs: `python benchmarks/preflight.py`. Needs `transformers`."""

from __future__ import annotations

import resource
import time

import torch

from poise.preflight import audit_init

MOST_SECONDS, MOST_GIB = 60.0, 6.0


def benchmark_audit_init() -> None:
    """Print time and peak memory of `audit_init` on GPT-2 small (124 million parameters), 2 x 128 tokens, 2 threads."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    ids = torch.randint(model.config.vocab_size, (2, 128))
    before = _peak()
    start, cpu = time.perf_counter(), time.process_time()
    report = audit_init(model, {"input_ids": ids, "labels": ids}, lambda model, batch: model(**batch).loss)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"audit_init: {report.meta['parameters']:,} parameters, {seconds:.1f} s (CPU {cpu:.1f} s, bar "
        f"{MOST_SECONDS:.0f} s), peak {_peak():.2f} GiB (before {before:.2f} GiB, bar {MOST_GIB:.0f} GiB)"
    )
    print(f"  {report.verdict}: {report.summary}")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Run all sections."""
    benchmark_audit_init()


if __name__ == "__main__":
    main()
