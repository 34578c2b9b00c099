import torch

from poise.data import load_digits
from poise.studies.standard_digits import standard_digits
from poise.studies.threads import one_thread


def test_training_digits_are_standardised_and_the_others_are_kept_for_the_test():
    x, y, x_test, y_test = standard_digits(1)
    assert (len(x), len(y), len(x_test), len(y_test)) == (1300, 1300, 497, 497)
    data = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.cat([y, y_test]), data.targets[order])
    raw = data.inputs[order].double()
    mean, spread = raw[:1300].mean(0), raw[:1300].std(0, correction=0)
    lively = spread > 0
    torch.testing.assert_close(
        x_test.double()[:, lively], ((raw[1300:] - mean) / spread)[:, lively], atol=1e-5, rtol=1e-5
    )
    assert not torch.equal(y, standard_digits(2)[1])


def test_one_thread_inside_and_as_many_as_before_outside():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
