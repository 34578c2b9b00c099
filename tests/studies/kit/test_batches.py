import pytest
import torch

from poise.studies.kit.batches import half_squared_error


def test_half_the_squared_distance_is_summed_over_outputs_and_averaged_over_examples():
    outputs = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    targets = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert half_squared_error(torch.nn.Identity(), (outputs, targets)).item() == pytest.approx(0.5 * (1 + 4) / 2)
