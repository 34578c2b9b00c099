import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from poise.studies import spike_no_more as study

SIGMA = math.sqrt(2 / (5 * study.WIDTH))
TINY = study.PLANS["tiny"]


def test_all_arms_have_the_small_standard_deviation_and_only_branch_ends_differ():
    nets = {arm: study.network(arm, 6, seed=0) for arm in study.ARMS}
    for arm, net in nets.items():
        weights = torch.cat([block.qkv.weight.flatten() for block in net.blocks])
        ends = torch.cat([block.down.weight.flatten() for block in net.blocks])
        assert weights.std().item() == pytest.approx(SIGMA, rel=0.03)
        assert ends.std().item() == pytest.approx(SIGMA if arm == study.VANILLA else SIGMA / math.sqrt(12), rel=0.03)
        assert net.tokens.weight.std().item() == pytest.approx(SIGMA, rel=0.05)


def test_only_scaling_and_normalising_make_the_stream_large():
    measured = {arm: study.first_norm(study.network(arm, 2, seed=0)) for arm in study.ARMS}
    small = SIGMA * math.sqrt(2)  # tokens and positions
    for arm in (study.VANILLA, study.DEPTH, study.DETACHED):
        assert measured[arm].std == pytest.approx(small, rel=0.15)
    assert measured[study.SCALED].std == pytest.approx(1, rel=0.15)
    assert measured[study.NORMED].std == pytest.approx(1, rel=1e-3)
    assert measured[study.NORMED].amplification == pytest.approx(1, rel=1e-3)


def test_detaching_changes_no_output_and_shrinks_the_embeddings_gradient_to_a_tenth():
    plain, detached = study.network(study.DEPTH, 2, 0), study.network(study.DETACHED, 2, 0)
    ids = study.corpus().windows[:2, :-1]
    grads = []
    for net in (plain, detached):
        net(ids).square().mean().backward()
        grads.append(net.tokens.weight.grad)
    torch.testing.assert_close(plain(ids), detached(ids))
    torch.testing.assert_close(grads[1], 0.1 * grads[0])


def test_the_first_step_is_that_of_the_equations():
    run = study.train(study.DEPTH, 1e-2, seed=3, plan=TINY)
    net, text = study.network(study.DEPTH, TINY.blocks, 3), study.corpus()
    generator = torch.Generator().manual_seed(1003)
    starts = torch.randint(len(text.train) - study.CONTEXT, (TINY.steps, study.BATCH, 1), generator=generator)
    ids = text.train[starts[0] + torch.arange(study.CONTEXT + 1)]
    loss = F.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in torch.autograd.grad(loss, list(net.parameters()))))
    assert run.losses[0] == pytest.approx(loss.item(), rel=1e-5)
    assert run.grad_norms[0] == pytest.approx(norm, rel=1e-4)


def test_same_seed_same_run_and_global_random_numbers_untouched():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (study.train(study.SCALED, 4e-2, seed, TINY) for seed in (0, 0, 1))
    assert np.array_equal(first.losses, again.losses)
    assert not np.array_equal(first.losses, other.losses)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_spike_is_a_rise_over_the_ten_steps_before_and_the_warm_up_does_not_count():
    def run(losses):
        return study.Run(np.arange(1.0, len(losses) + 1), np.array(losses), 1.0, 1.0, 1.0)

    calm = [2.0] * 30
    assert run(calm).spikes == 0
    assert run([*calm[:20], 2.6, *calm[:9]]).spikes == 1
    assert run([*calm[:20], 2.4, *calm[:9]]).spikes == 0
    assert run([2.0, 9.0, *calm]).spikes == 0
    assert run(calm).largest == 30
