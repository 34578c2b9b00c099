"""z_loss: the gradient is that of the loss with the term in it, the value is not."""

import pytest
import torch
import torch.nn.functional as F

from poise.doctor.remedies import parse_remedy

from .helpers import permanent

C = 0.01


def logits(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()


def through(input, target, **kwargs):
    return parse_remedy(f"z_loss={C}").cross_entropy(F.cross_entropy, input, target, **kwargs)


def gradient(loss, input):
    return torch.autograd.grad(loss.sum(), input)[0]


TARGETS = {
    "indices": (logits(6, 5), torch.tensor([0, 4, -100, 2, 2, 1]), {}),
    "another ignored index": (logits(6, 5), torch.tensor([0, 4, 3, 2, 2, 1]), {"ignore_index": 2}),
    "class dimension is 1": (logits(2, 5, 3), torch.tensor([[0, 4, -100], [1, 2, 3]]), {}),
    "no batch": (logits(5), torch.tensor(3), {}),
    "probabilities": (logits(4, 5), torch.softmax(logits(4, 5, seed=1).detach(), 1), {}),
    "weights and smoothing": (
        logits(6, 5),
        torch.tensor([0, 4, -100, 2, 2, 1]),
        {"weight": torch.arange(1, 6).double(), "label_smoothing": 0.1},
    ),
}


def term_by_hand(input, target, reduction, ignore_index=-100, **_):
    columns = input.unsqueeze(0) if input.dim() == 1 else input
    rows = columns.movedim(1, -1).reshape(-1, columns.shape[1])
    kept = torch.ones(len(rows), dtype=torch.bool)
    if not target.is_floating_point():
        kept = target.reshape(-1) != ignore_index
    squares = [torch.log(torch.exp(row).sum()) ** 2 for row, keep in zip(rows, kept, strict=True) if keep]
    total = torch.stack(squares).sum()
    return C * (total / len(squares) if reduction == "mean" else total)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", TARGETS)
def test_gradient_is_that_of_the_loss_with_the_term(case, reduction):
    input, target, kwargs = TARGETS[case]
    ours = through(input, target, reduction=reduction, **kwargs)
    plain = F.cross_entropy(input, target, reduction=reduction, **kwargs)
    with_term = plain.sum() + term_by_hand(input, target, reduction, **kwargs)
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)  # what the script prints
    torch.testing.assert_close(gradient(ours, input), gradient(with_term, input), rtol=1e-12, atol=1e-14)


def test_gradient_in_closed_form():
    # d/dy of c log^2 Z is 2 c log Z softmax(y); the target is ignored, so nothing else is left.
    input = logits(1, 7)
    loss = through(input, torch.tensor([-100]), reduction="sum")
    assert torch.count_nonzero(gradient(loss, input)) == 0
    target = torch.tensor([3])
    extra = gradient(through(input, target), input) - gradient(F.cross_entropy(input, target), input)
    log_z = torch.logsumexp(input, 1, keepdim=True)
    torch.testing.assert_close(extra, 2 * C * log_z * torch.softmax(input, 1), rtol=1e-12, atol=1e-14)


def test_legacy_reduction_arguments():
    input, target, _ = TARGETS["indices"]
    with pytest.warns(UserWarning, match="deprecated"):
        ours = through(input, target, size_average=False)
    torch.testing.assert_close(gradient(ours, input), gradient(through(input, target, reduction="sum"), input))


def test_losses_that_need_no_gradient_are_left_alone():
    input, target, _ = TARGETS["indices"]
    with torch.no_grad():
        assert torch.equal(through(input, target), F.cross_entropy(input, target))
    assert not through(input.detach(), target).requires_grad


def test_low_precision_logits_get_a_loss_of_their_dtype():
    input = logits(6, 5).detach().bfloat16().requires_grad_()
    target = torch.tensor([0, 4, 3, 2, 2, 1])
    assert through(input, target).dtype == F.cross_entropy(input, target).dtype
    wide = input.detach().float().requires_grad_()
    torch.testing.assert_close(
        gradient(through(input, target), input).float(), gradient(through(wide, target), wide), rtol=2e-2, atol=2e-2
    )


def test_traces_without_a_graph_break_and_agrees():
    input, target, _ = TARGETS["indices"]
    compiled = torch.compile(through, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        gradient(compiled(input, target), input), gradient(through(input, target), input), rtol=1e-12, atol=1e-14
    )


def test_its_code_has_the_same_gradient():
    input, target, _ = TARGETS["indices"]
    _, loop = permanent(parse_remedy(f"z_loss={C}").code())
    loss = loop(None, F=F, logits=input, targets=target)["loss"]
    torch.testing.assert_close(gradient(loss, input), gradient(through(input, target), input), rtol=1e-12, atol=1e-14)
