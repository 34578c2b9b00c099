"""The planar birotor: two rotors on a bar that flies in a vertical plane."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Birotor:
    r"""A planar birotor with the state (horizontal and vertical position, roll, body velocities v and w, roll rate).

    It is affine in its input, the forces of the two rotors: :math:`\dot x = f(x) + B u`, with a constant B.

    Args:
        mass: in kg.
        arm: distance of a rotor from the centre, in m.
        inertia: in kg m^2.
        gravity: in m/s^2.

    References:
        Richards et al. (2023), arXiv:2302.02529, appendix.
    """

    mass: float = 0.5
    arm: float = 0.25
    inertia: float = 0.005
    gravity: float = 9.81

    @property
    def hover(self) -> Float[Tensor, "2"]:
        """The input that holds it in the air, in N."""
        return torch.full((2,), self.mass * self.gravity / 2, dtype=torch.float64)

    def drift(self, x: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 6"]:
        """Return f(x), the velocity of the state without input."""
        _, _, roll, v, w, rate = x.unbind(-1)
        s, c = roll.sin(), roll.cos()
        zero = torch.zeros_like(rate)
        return torch.stack(
            [
                v * c - w * s,
                v * s + w * c,
                rate,
                w * rate - self.gravity * s,
                -v * rate - self.gravity * c,
                zero,
            ],
            -1,
        )

    def input_matrix(self, x: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 6 2"]:
        """Return B, which is the same at all states."""
        B = x.new_zeros(6, 2)
        B[4] = 1 / self.mass
        B[5, 0], B[5, 1] = self.arm / self.inertia, -self.arm / self.inertia
        return B.expand(*x.shape[:-1], 6, 2)

    def __call__(self, x: Float[Tensor, "*batch 6"], u: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 6"]:
        """Return the velocity of the state."""
        return self.drift(x) + (self.input_matrix(x) @ u[..., None])[..., 0]

    def factorize(
        self, xr: Float[Tensor, "*batch 6"], ur: Float[Tensor, "*batch 2"], e: Float[Tensor, "*batch 6"]
    ) -> tuple[Float[Tensor, "*batch 6 6"], Float[Tensor, "*batch 6 2"]]:
        """Return A and B with ``f(xr + e) - f(xr) = A e`` exactly; at e = 0, A is the Jacobian.

        Args:
            xr: states of the reference.
            ur: inputs of the reference; they do not matter here, as B is constant.
            e: distances from the reference.
        """
        _, _, roll, v, w, rate = xr.unbind(-1)
        turn, dv, dw = e[..., 2], e[..., 3], e[..., 4]
        s, c, p, q = roll.sin(), roll.cos(), sinc(turn), cosc(turn)
        sn, cn = (roll + turn).sin(), (roll + turn).cos()
        A = xr.new_zeros(*torch.broadcast_shapes(xr.shape, e.shape), 6)
        A[..., 0, 2], A[..., 0, 3], A[..., 0, 4] = (v * c - w * s) * q - (v * s + w * c) * p, cn, -sn
        A[..., 1, 2], A[..., 1, 3], A[..., 1, 4] = (v * s + w * c) * q + (v * c - w * s) * p, sn, cn
        A[..., 2, 5] = 1.0
        A[..., 3, 2], A[..., 3, 4], A[..., 3, 5] = -self.gravity * (s * q + c * p), rate, w + dw
        A[..., 4, 2], A[..., 4, 3], A[..., 4, 5] = -self.gravity * (c * q - s * p), -rate, -(v + dv)
        return A, self.input_matrix(xr + e)

    def double_loop(
        self, t: Float[Tensor, " times"], duration: float = 10.0
    ) -> tuple[Float[Tensor, "times 6"], Float[Tensor, "times 2"]]:
        """Return states and inputs of a flight through two loops, which the exact dynamics follow.

        The position determines all else: the thrust points along the acceleration that gravity does not give.

        Args:
            t: times, from 0 to ``duration``.
            duration: of both loops, in s.
        """
        t = t.to(torch.float64)
        omega = 4 * math.pi / duration
        angle = omega * t
        s, c = angle.sin(), angle.cos()
        speed = 10.0 / duration
        # Position 3 sin, 2.5 (1 - cos); each list holds a derivative with respect to time.
        x = [3 * s + speed * t - 5, 3 * omega * c + speed, -3 * omega**2 * s, -3 * omega**3 * c, 3 * omega**4 * s]
        y = [2.5 * (1 - c), 2.5 * omega * s, 2.5 * omega**2 * c, -2.5 * omega**3 * s, -2.5 * omega**4 * c]
        up = y[2] + self.gravity
        square = x[2].square() + up.square()
        roll = unwrapped(torch.atan2(-x[2], up))
        cross = x[2] * y[3] - x[3] * up
        rate = cross / square
        acceleration = (x[2] * y[4] - x[4] * up) / square - cross * 2 * (x[2] * x[3] + up * y[3]) / square.square()
        v = x[1] * roll.cos() + y[1] * roll.sin()
        w = -x[1] * roll.sin() + y[1] * roll.cos()
        thrust, torque = self.mass * square.sqrt(), self.inertia / self.arm * acceleration
        states = torch.stack([x[0], y[0], roll, v, w, rate], -1)
        return states, torch.stack([thrust + torque, thrust - torque], -1) / 2


def unwrapped(angles: Float[Tensor, " times"]) -> Float[Tensor, " times"]:
    """Return angles without jumps by a whole turn."""
    turns = torch.round(torch.diff(angles, prepend=angles[:1]) / (2 * math.pi)).cumsum(0)
    return angles - 2 * math.pi * turns


def sinc(a: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return sin(a) / a, which is 1 at 0."""
    return torch.sinc(a / math.pi)


def cosc(a: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return (cos(a) - 1) / a without cancellation; 0 at 0."""
    return -(a / 2).sin() * sinc(a / 2)
