"""The minimax subset of stable inputs, learned from rows of one or several environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import narwhals as nw
import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from poise.report import Report
from poise.shift.minimax.search import MinimaxResult
from poise.shift.minimax.small_networks import SmallNetworks
from poise.shift.minimax.stable_graph import StableGraph

_HIDDEN, _MECHANISM_HIDDEN = 12, 4
_FIT_STEPS, _LR = 600, 0.02


class MinimaxSelector(RegressorMixin, BaseEstimator):
    """Predicts from changing inputs and from those stable inputs that keep the worst-case risk smallest.

    Structural equations, the predictor of each class of subsets, and for each class the worst mechanisms of the
    changing variables are small networks, all of a kind trained side by side. Mechanisms are bounded to the observed
    range of their variable.

    Args:
        graph: columns are found by the names of its variables.
        n_adversary_steps: steps of gradient ascent on the mechanisms.
        restarts: starts of the ascent; the worst one counts.
        max_rows: rows that are used at most, drawn at random.
        random_state: seed.

    Attributes:
        support_: the stable inputs that are kept.
        worst_case_risk_: estimate for each class of subsets, by its smallest member, in units of the target.
        result_: both, as of :func:`minimax_search`.

    References:
        M. Liu et al. (2023), Which invariance should we transfer? A causal minimax learning approach, arXiv:2107.01876.
    """

    def __init__(
        self,
        graph: StableGraph,
        n_adversary_steps: int = 200,
        restarts: int = 2,
        max_rows: int = 1_000,
        random_state: int = 0,
    ) -> None:
        self.graph = graph
        self.n_adversary_steps = n_adversary_steps
        self.restarts = restarts
        self.max_rows = max_rows
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from rows.

        Args:
            X: table with a column for each stable and each changing variable.
            y: the target.

        Raises:
            ValueError: if a column is missing, a value is not finite, or there are fewer than 20 rows.
        """
        if self.n_adversary_steps < 1 or self.restarts < 1:
            raise ValueError(
                f"n_adversary_steps and restarts must be at least 1, got {self.n_adversary_steps}, {self.restarts}"
            )
        names = [name for name in self.graph.order if name != self.graph.target]
        columns = _columns(X, names)
        target = np.asarray(y, dtype=np.float64)
        if target.shape != (len(columns),) or not np.isfinite(target).all():
            raise ValueError(f"y must be finite, one number for each of {len(columns)} rows, got shape {target.shape}")
        if len(target) < 20:
            raise ValueError(f"X must have at least 20 rows, got {len(target)}")
        generator = torch.Generator().manual_seed(self.random_state)
        table = np.c_[columns, target]
        self.center_, self.scale_ = table.mean(0), table.std(0)
        self.scale_[self.scale_ == 0] = 1.0
        rows = torch.as_tensor((table - self.center_) / self.scale_, dtype=torch.float32)
        rows = rows[torch.randperm(len(rows), generator=generator)[: self.max_rows]]
        data = {name: rows[:, i] for i, name in enumerate([*names, self.graph.target])}
        equations = self._equations(data, generator)
        classes = [group.representative for group in self.graph.classes()]
        self.inputs_ = names
        masks = torch.tensor([[name in group or name in self.graph.mutable for name in names] for group in classes])
        self.predictors_ = self._predictors(self._interventional(data, equations, generator), masks, generator)
        risks = self._worst_cases(data, equations, generator)
        in_units = float(self.scale_[-1] ** 2)
        self.worst_case_risk_ = {group: in_units * risk for group, risk in zip(classes, risks, strict=True)}
        self.result_ = MinimaxResult(self.graph, self.worst_case_risk_, len(classes), 2 ** len(self.graph.stable))
        self.support_ = self.result_.best
        self.classes_ = classes
        return self

    def predict(self, X: Any) -> Float[np.ndarray, " rows"]:
        """Return predictions of the best subset."""
        return self.predict_all(X)[self.support_]

    def predict_all(self, X: Any) -> dict[frozenset[str], Float[np.ndarray, " rows"]]:
        """Return predictions of every class of subsets, by its smallest member."""
        check_is_fitted(self, "predictors_")
        columns = (_columns(X, self.inputs_) - self.center_[:-1]) / self.scale_[:-1]
        with torch.no_grad():
            found = self.predictors_(torch.as_tensor(columns, dtype=torch.float32))
        return {
            group: self.center_[-1] + self.scale_[-1] * row.double().numpy()
            for group, row in zip(self.classes_, found, strict=True)
        }

    def report(self) -> Report:
        """Return a report with the ranking and a drawing of the graph."""
        check_is_fitted(self, "result_")
        return self.result_.report()

    def _equations(
        self, data: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, tuple[SmallNetworks, Tensor]]:
        """Fit the mean of every variable that is regenerated given its parents, and keep each row's residual."""
        needed = {*self.graph.regenerated, *self.graph.descendants(self.graph.mutable, cut=self.graph.mutable)}
        out = {}
        for name in self.graph.order:
            if name in needed and name not in self.graph.mutable:
                x = torch.stack([data[parent] for parent in self.graph.parents(name)], 1)
                net = SmallNetworks(torch.ones(1, x.shape[1], dtype=torch.bool), _HIDDEN, generator)
                net.fit(x, data[name], _FIT_STEPS, _LR)
                with torch.no_grad():
                    out[name] = net, data[name] - net(x)[0]
        return out

    def _interventional(self, data: dict[str, Tensor], equations: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Return rows of the distribution under interventions on the changing effects of the target."""
        new = dict(data)
        for name in sorted(self.graph.x_do):
            new[name] = data[name][torch.randperm(len(data[name]), generator=generator)]
        for name in self.graph.regenerated:
            net, residual = equations[name]
            with torch.no_grad():
                new[name] = net(torch.stack([new[parent] for parent in self.graph.parents(name)], 1))[0] + residual
        return new

    def _predictors(self, data: dict[str, Tensor], masks: Tensor, generator: torch.Generator) -> SmallNetworks:
        x = torch.stack([data[name] for name in self.inputs_], 1)
        return SmallNetworks(masks, _HIDDEN, generator).fit(x, data[self.graph.target], _FIT_STEPS, _LR)

    def _worst_cases(self, data: dict[str, Tensor], equations: Any, generator: torch.Generator) -> Sequence[float]:
        """Maximise the risk of each predictor over mechanisms of the changing variables."""
        graph, classes = self.graph, self.predictors_.count
        movable = [m for m in graph.mutable if graph.parents(m)]
        for part in self.predictors_.parameters():
            part.requires_grad_(False)
        copies = classes * self.restarts
        adversaries = {
            m: SmallNetworks(torch.ones(copies, len(graph.parents(m)), dtype=torch.bool), _MECHANISM_HIDDEN, generator)
            for m in movable
        }
        limits = {m: data[m].abs().max() for m in movable}
        affected = set(graph.mutable) | graph.descendants(graph.mutable, cut=graph.mutable)

        def risk() -> Tensor:
            new = {name: value.expand(copies, -1) for name, value in data.items()}
            for name in graph.order:
                if name in movable:
                    x = torch.stack([new[parent] for parent in graph.parents(name)], -1)
                    new[name] = limits[name] * torch.tanh(adversaries[name](x) / limits[name])
                elif name in affected and name in equations:
                    net, residual = equations[name]
                    x = torch.stack([new[parent] for parent in graph.parents(name)], -1)
                    new[name] = net(x.reshape(-1, x.shape[-1]))[0].reshape(copies, -1) + residual
            x = torch.stack([new[name] for name in self.inputs_], -1)
            predicted = self.predictors_(x.reshape(classes, -1, x.shape[-1]))
            return ((new[graph.target].reshape(classes, -1) - predicted) ** 2).reshape(copies, -1).mean(1)

        worst = torch.zeros(copies)
        parameters = [p for net in adversaries.values() for p in net.parameters()]
        if not parameters:
            with torch.no_grad():
                return risk().reshape(classes, -1).amax(1).tolist()
        optimizer = torch.optim.Adam(parameters, lr=_LR, maximize=True)
        for _ in range(self.n_adversary_steps):
            optimizer.zero_grad()
            values = risk()
            values.sum().backward()
            optimizer.step()
            worst = torch.maximum(worst, values.detach())
        return worst.reshape(classes, -1).amax(1).tolist()


def _columns(X: Any, names: Sequence[str]) -> np.ndarray:
    table = nw.from_native(X, eager_only=True)
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ValueError(f"X must have the columns {missing} of the graph")
    values = np.asarray(table.select(list(names)).to_numpy(), dtype=np.float64)
    if not np.isfinite(values).all():
        column = names[int(np.flatnonzero(~np.isfinite(values).all(0))[0])]
        raise ValueError(f"X[{column!r}] must be finite, got NaN or infinity")
    return values
