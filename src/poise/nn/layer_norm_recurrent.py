"""Stacks of layer-normalised recurrent cells that take the place of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from poise.nn.layer_norm_cells import LayerNormGRUCell, LayerNormLSTMCell, LayerNormRNNCell, RecurrentCell, State


class _Recurrent(nn.Module):
    """Layers and directions of cells. A sequence is its rows in order of time, and how many rows each time has."""

    _torch: ClassVar[type[nn.RNNBase]]

    def __init__(
        self,
        cell: Callable[[int], RecurrentCell],
        input_size: int,
        hidden_size: int,
        num_layers: int,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must lie in [0, 1], got {dropout}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional
        directions = 2 if bidirectional else 1
        sizes = [input_size] + [directions * hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList(cell(size) for size in sizes for _ in range(directions))

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """Return all outputs of the last layer and the final state of every layer, as torch's classes do.

        Args:
            input: of shape (time, batch, input), (batch, time, input) with ``batch_first``, (time, input), or packed.
            hx: initial state, zeros by default; its tensors are of shape (layers x directions, batch, hidden).

        Raises:
            ValueError: if shapes do not fit, or there is no time step.
        """
        rows, counts, batch = self._rows(input)
        state = self._initial(input, hx, rows, batch)
        finals: list[State] = []
        step = 2 if self.bidirectional else 1
        for layer in range(0, len(self.cells), step):
            done = [self._run(index, rows, counts, state[index]) for index in range(layer, layer + step)]
            rows = done[0][0] if step == 1 else torch.cat([output for output, _ in done], -1)
            finals += [final for _, final in done]
            if self.dropout and layer + step < len(self.cells):
                rows = F.dropout(rows, self.dropout, self.training)
        return self._outputs(input, rows, batch), self._finals(input, finals)

    @classmethod
    def from_torch(cls, module: nn.RNNBase) -> Self:
        """Return a stack with the sizes and weights of one of torch's; its norms are new, so outputs differ.

        Args:
            module: an instance of the class whose place this one takes.

        Raises:
            TypeError: if it is another class, or an LSTM with a projection.
        """
        if not isinstance(module, cls._torch) or module.proj_size:
            wanted, got = cls._torch.__name__, type(module).__name__
            raise TypeError(f"module must be an nn.{wanted} without projection, got {got}")
        same = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
        arguments: dict[str, Any] = {name: getattr(module, name) for name in same}
        if isinstance(module, nn.RNN):
            arguments["nonlinearity"] = module.nonlinearity
        weight = next(module.parameters())
        arguments |= {"device": weight.device, "dtype": weight.dtype}
        made = cls(**arguments)
        made.load_state_dict(module.state_dict())
        return made.train(module.training)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Names of torch's class are taken too: weights as they are, biases joined, norms as they stand."""
        if f"{prefix}weight_ih_l0" in state_dict:
            for index, cell in enumerate(self.cells):
                assert isinstance(cell, RecurrentCell)
                layer, backward = divmod(index, 2 if self.bidirectional else 1)
                suffix = f"_l{layer}{'_reverse' * backward}"
                found = self._converted(cell, state_dict, prefix, suffix)
                state_dict.update({f"{prefix}cells.{index}.{name}": tensor for name, tensor in found.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _converted(self, cell: RecurrentCell, state: dict[str, Any], prefix: str, suffix: str) -> dict[str, Tensor]:
        found = dict(cell.state_dict())
        for name in ("weight_ih", "weight_hh"):
            found[name] = self._reordered(state.pop(f"{prefix}{name}{suffix}"))
        biases = [state.pop(f"{prefix}{name}{suffix}", None) for name in ("bias_ih", "bias_hh")]
        if biases[0] is not None and "bias" in found:
            found |= self._joined(*biases)
        return found

    def _joined(self, input: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """A cell's biases, from the two of torch's."""
        return {"bias": input + hidden}

    def _reordered(self, rows: Tensor) -> Tensor:
        return rows

    def _run(self, index: int, rows: Tensor, counts: Sequence[int], state: State) -> tuple[Tensor, State]:
        cell = self.cells[index]
        assert isinstance(cell, RecurrentCell)
        # No state enters the input's part: one product and one norm for all time steps.
        projected = cell.project(rows).split(list(counts))
        if self.bidirectional and index % 2:
            return _run_backward(cell, projected, state)
        return _run_forward(cell, projected, state)

    def _rows(self, input: Tensor | PackedSequence) -> tuple[Tensor, list[int], int]:
        if isinstance(input, PackedSequence):
            counts = input.batch_sizes.tolist()
            return self._require_features(input.data), counts, counts[0]
        if input.ndim not in (2, 3) or not self._time(input):
            raise ValueError(
                f"input must be packed or (time, batch, features) with at least one time step, got {tuple(input.shape)}"
            )
        x = self._require_features(input)
        if x.ndim == 2:
            x = x[:, None]
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x.reshape(-1, x.shape[-1]), [x.shape[1]] * len(x), x.shape[1]

    def _time(self, input: Tensor) -> int:
        return input.shape[1 if self.batch_first and input.ndim == 3 else 0]

    def _require_features(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.input_size:
            raise ValueError(f"input must have {self.input_size} features, got {x.shape[-1]}")
        return x

    def _initial(self, input: Any, hx: Any, rows: Tensor, batch: int) -> list[State]:
        cells = [cell for cell in self.cells if isinstance(cell, RecurrentCell)]
        if hx is None:
            return [cell.initial(rows, batch) for cell in cells]
        given = hx if isinstance(hx, tuple) else (hx,)
        if not isinstance(input, PackedSequence) and input.ndim == 2:
            given = tuple(part[:, None] for part in given)
        elif isinstance(input, PackedSequence) and input.sorted_indices is not None:
            given = tuple(part[:, input.sorted_indices] for part in given)
        wanted = (len(cells), batch, self.hidden_size)
        if len(given) != cells[0].states or any(part.shape != wanted for part in given):
            shapes = [tuple(part.shape) for part in given]
            raise ValueError(f"hx must be {cells[0].states} tensor(s) of shape {wanted}, got {shapes}")
        return [tuple(part[index] for part in given) for index in range(len(cells))]

    def _outputs(self, input: Tensor | PackedSequence, rows: Tensor, batch: int) -> Tensor | PackedSequence:
        if isinstance(input, PackedSequence):
            return PackedSequence(rows, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        output = rows.unflatten(0, (self._time(input), batch))
        if input.ndim == 2:
            return output[:, 0]
        return output.transpose(0, 1) if self.batch_first else output

    def _finals(self, input: Tensor | PackedSequence, finals: list[State]) -> Any:
        stacked = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        if isinstance(input, PackedSequence):
            if input.unsorted_indices is not None:
                stacked = tuple(part[:, input.unsorted_indices] for part in stacked)
        elif input.ndim == 2:
            stacked = tuple(part[:, 0] for part in stacked)
        return stacked if len(stacked) > 1 else stacked[0]

    def extra_repr(self) -> str:
        """Show the sizes in the module's ``repr``."""
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bidirectional={self.bidirectional}"
        )


def _run_forward(cell: RecurrentCell, projected: Sequence[Tensor], state: State) -> tuple[Tensor, State]:
    """Sequences are sorted by length: those that have ended are at the end, and leave with their state."""
    outputs, ended = [], []
    for gates in projected:
        if len(gates) < len(state[0]):
            ended.append(tuple(part[len(gates) :] for part in state))
            state = tuple(part[: len(gates)] for part in state)
        state = cell.step(gates, state)
        outputs.append(state[0])
    ended.append(state)
    return torch.cat(outputs), tuple(torch.cat(parts) for parts in zip(*reversed(ended), strict=True))


def _run_backward(cell: RecurrentCell, projected: Sequence[Tensor], state: State) -> tuple[Tensor, State]:
    """From the last time step to the first; the shorter sequences join with their initial state."""
    outputs = []
    initial, state = state, tuple(part[: len(projected[-1])] for part in state)
    for gates in reversed(projected):
        if len(gates) > len(state[0]):
            joining = [part[len(state[0]) : len(gates)] for part in initial]
            state = tuple(torch.cat(pair) for pair in zip(state, joining, strict=True))
        state = cell.step(gates, state)
        outputs.append(state[0])
    return torch.cat(outputs[::-1]), state


class LayerNormLSTM(_Recurrent):
    r"""LSTM with layer normalisation; takes the place of ``nn.LSTM``. See :class:`LayerNormLSTMCell`.

    ``load_state_dict`` takes the state of an ``nn.LSTM`` of the same sizes as well.

    Args:
        input_size: features of the input.
        hidden_size: units.
        num_layers: stacked layers.
        bias: whether the gates have a bias.
        batch_first: input and output are (batch, time, features).
        dropout: of the outputs of every layer but the last.
        bidirectional: add cells that run backwards in time.
        eps: added to the variance.
        normalize_gates: ``False`` normalises the cell state only.
        forget_bias: initial bias of the forget gate.
        device: where parameters live.
        dtype: dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range, or in ``forward`` shapes do not fit.

    References:
        Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv:1607.06450.

    Example:
        >>> lstm = LayerNormLSTM(10, 32, num_layers=2, batch_first=True)
        >>> output, (h, c) = lstm(torch.randn(4, 25, 10))
    """

    _torch = nn.LSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        eps: float = 1e-5,
        normalize_gates: bool = True,
        forget_bias: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        def cell(size: int) -> LayerNormLSTMCell:
            return LayerNormLSTMCell(
                size,
                hidden_size,
                bias,
                eps,
                normalize_gates=normalize_gates,
                forget_bias=forget_bias,
                device=device,
                dtype=dtype,
            )

        super().__init__(cell, input_size, hidden_size, num_layers, batch_first, dropout, bidirectional)


class LayerNormGRU(_Recurrent):
    """GRU with layer normalisation; takes the place of ``nn.GRU``. See :class:`LayerNormGRUCell`.

    ``load_state_dict`` takes the state of an ``nn.GRU`` of the same sizes as well.

    Args:
        input_size: features of the input.
        hidden_size: units.
        num_layers: stacked layers.
        bias: whether the gates have a bias.
        batch_first: input and output are (batch, time, features).
        dropout: of the outputs of every layer but the last.
        bidirectional: add cells that run backwards in time.
        eps: added to the variance.
        device: where parameters live.
        dtype: dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range, or in ``forward`` shapes do not fit.

    References:
        Ba, Kiros and Hinton, 2016, arXiv:1607.06450.
    """

    _torch = nn.GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        def cell(size: int) -> LayerNormGRUCell:
            return LayerNormGRUCell(size, hidden_size, bias, eps, device=device, dtype=dtype)

        super().__init__(cell, input_size, hidden_size, num_layers, batch_first, dropout, bidirectional)

    def _reordered(self, rows: Tensor) -> Tensor:
        """Torch's z keeps the old state, the z here admits the new one: its rows change their sign."""
        r, z, n = rows.chunk(3)
        return torch.cat([r, -z, n])

    def _joined(self, input: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """The reset gate multiplies the recurrent bias of n, which therefore stays apart."""
        cut = 2 * self.hidden_size
        inside = torch.cat([hidden[:cut], torch.zeros_like(hidden[cut:])])
        return {"bias": self._reordered(input + inside), "bias_hn": hidden[cut:]}


class LayerNormRNN(_Recurrent):
    """Elman network with layer normalisation; takes the place of ``nn.RNN``. See :class:`LayerNormRNNCell`.

    ``load_state_dict`` takes the state of an ``nn.RNN`` of the same sizes as well.

    Args:
        input_size: features of the input.
        hidden_size: units.
        num_layers: stacked layers.
        bias: whether the norms have a bias.
        batch_first: input and output are (batch, time, features).
        dropout: of the outputs of every layer but the last.
        bidirectional: add cells that run backwards in time.
        eps: added to the variance.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        device: where parameters live.
        dtype: dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range, or in ``forward`` shapes do not fit.

    References:
        Ba, Kiros and Hinton, 2016, arXiv:1607.06450.
    """

    _torch = nn.RNN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        eps: float = 1e-5,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        def cell(size: int) -> LayerNormRNNCell:
            return LayerNormRNNCell(size, hidden_size, bias, eps, nonlinearity=nonlinearity, device=device, dtype=dtype)

        super().__init__(cell, input_size, hidden_size, num_layers, batch_first, dropout, bidirectional)
