import pytest
import torch

from poise.data import load_digits
from poise.studies.kit.digits import digits, digits_by_seed
from poise.studies.kit.one_thread import one_thread


def test_training_digits_are_standardised_and_the_others_are_kept_for_the_test():
    x, y, x_test, y_test = digits(1)
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
    assert not torch.equal(y, digits(2).y)


def test_other_scales_and_the_order_of_the_data_set():
    raw = load_digits()
    unit, centred = digits(train=1000, scale="unit"), digits(train=300, scale="centred")
    assert torch.equal(unit.x, raw.inputs[:1000] / 16)
    assert torch.equal(unit.y_test, raw.targets[1000:])
    torch.testing.assert_close(centred.x.mean(0), torch.zeros(64), atol=1e-6, rtol=0)
    torch.testing.assert_close(centred.x_test, raw.inputs[300:] / 16 - raw.inputs[:300].mean(0) / 16)


def test_label_noise_changes_training_labels_alone():
    noisy, clean = digits(3, 1000, "unit", 0.2), digits(3, 1000, "unit")
    assert torch.equal(noisy.x, clean.x)
    assert torch.equal(noisy.y_test, clean.y_test)
    changed = (noisy.y != clean.y).sum().item()
    assert 150 < changed <= 200  # 200 are drawn anew, of which a tenth keep their label


def test_digits_of_several_seeds_are_stacked():
    both = digits_by_seed((1, 2), 500)
    assert torch.equal(both.x[1], digits(2, 500).x)
    assert both.x_test.shape == (2, 1297, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 1}, r"train must lie in \[2, 1797\], got 1"),
        ({"label_noise": 0.2}, "above 0 it needs a seed"),
        ({"seed": 0, "label_noise": 1.2}, r"label_noise must lie in \[0, 1\]"),
        ({"scale": "raw"}, "scale must be"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        digits(**options)


def test_one_thread_inside_and_as_many_as_before_outside():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
