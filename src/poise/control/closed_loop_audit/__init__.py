"""The audit of a closed loop: what it attracts, how much change it bears, and where its learned model misleads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.report import Report


def audit_closed_loop(
    plant: Any,
    controller: Any,
    *,
    x0: Any,
    box: tuple[Any, Any],
    dt: float,
    model: Any = None,
    train_states: Any = None,
    angles: Sequence[int] = (),
    input_limits: tuple[Any, Any] | None = None,
    batched: bool = False,
    n_samples: int = 400,
    horizon: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Return where a controller holds a plant at its goal, how much change it bears, and what breaks it.

    The controller is called once per sampling period and its input is held. At the goal: the rate of return (from
    eigenvalues, and from letting a perturbation die out), growth before decay, and gain, phase, delay and
    sampling-period margins for each input. In the box: the fraction of starts that come to the goal, the nearest that
    does not, the largest sampled level set of the cost of the linearised loop (never certified), and how often inputs
    are at their limits. With ``model``: whether its derivatives are right where its predictions are, and whether it
    says stable where the plant is not. With ``train_states``: when runs left their convex hull.

    Ctrl-C ends the sampling; the report then holds what was measured.

    Args:
        plant: ``f(x, u)``, the velocity of a state of shape (n,) under an input of shape (m,), in torch or NumPy; or a
            Gymnasium environment whose ``unwrapped.state`` can be set (the classic-control ones), without its wrappers.
        controller: ``u(x)`` of shape (m,); it gets the state, not an observation.
        x0: the goal, of shape (n,).
        box: (lowest, highest) states, in which starts are drawn.
        dt: sampling period; of an environment, the time of one step.
        model: a learned ``f(x, u)``; for an environment, a learned ``next_state(x, u)``.
        train_states: states that the model or controller was trained on, of shape (samples, n).
        angles: indices of the entries of the state that are angles.
        input_limits: (lowest, highest) inputs, to which inputs are clipped; of an environment, by default those of its
            action space.
        batched: whether plant, controller and model take and return batches, of shape (batch, n) and (batch, m).
        n_samples: starts.
        horizon: how long to follow a start; by default ten time constants of the loop at the goal, between 50 and
            2000 periods.
        seed: of the starts.
        progress: whether to show a progress bar; by default on a terminal.

    Raises:
        ValueError: if the box is empty, the goal lies outside, a shape does not fit, the controller or plant returns
            NaN at the goal, or an argument is out of range.
        TypeError: if ``plant`` is neither a function nor an environment whose state can be set.

    References:
        Åström and Murray (2021). Feedback Systems; Richards et al. (2023), arXiv:2302.02529; Pfrommer et al. (2023),
        arXiv:2305.09619.

    Example:
        >>> import torch
        >>> from poise.control import lqr
        >>> K = lqr([[0.0, 1.0], [10.0, 0.0]], [[0.0], [1.0]], torch.eye(2), torch.eye(1))
        >>> def pendulum(x, u):
        ...     return torch.stack([x[1], 10 * torch.sin(x[0]) + u[0]])
        >>> report = audit_closed_loop(
        ...     pendulum, lambda x: -K @ x, x0=[0.0, 0.0], box=([-0.3, -0.3], [0.3, 0.3]), dt=0.02, n_samples=20
        ... )
        >>> report.verdict
        'stable at the goal'
    """
    # Imported here: listings read the rules of this folder, and need no measurements.
    from poise.control.closed_loop_audit.measure import measure
    from poise.control.closed_loop_audit.report import closed_loop_report

    facts = measure(
        plant,
        controller,
        x0=x0,
        box=box,
        dt=dt,
        model=model,
        train_states=train_states,
        angles=angles,
        input_limits=input_limits,
        batched=batched,
        n_samples=n_samples,
        horizon=horizon,
        seed=seed,
        progress=progress,
    )
    return closed_loop_report(facts)
