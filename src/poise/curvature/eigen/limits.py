"""How many products a solver may take, and how many vectors it keeps."""

from __future__ import annotations

_UNRESTARTED = 4
"""Up to this many default bases long, a whole basis is kept: it needs at most n products, restarts may need more."""


def product_limit(max_matvecs: int | None, n: int) -> int:
    """Return the most products that a solver may take: what is given, or 20 n.

    Args:
        max_matvecs: the caller's limit.
        n: size of the operator.

    Raises:
        ValueError: if the limit is below 1.
    """
    if max_matvecs is None:
        return 20 * n
    if max_matvecs < 1:
        raise ValueError(f"max_matvecs must be at least 1, got {max_matvecs}")
    return max_matvecs


def pair_limit(max_matvecs: int | None) -> int | None:
    """Return the most products with an operator that takes two of another.

    Args:
        max_matvecs: the limit of the other.

    Raises:
        ValueError: if the limit is below 2.
    """
    if max_matvecs is not None and max_matvecs < 2:
        raise ValueError(
            f"max_matvecs must be at least 2, one with the operator and one with its transpose, got {max_matvecs}"
        )
    return None if max_matvecs is None else max_matvecs // 2


def basis_limit(basis_size: int | None, default: int, n: int) -> int:
    """Return the most basis vectors: what is given or the default; all n where that is not much more.

    Args:
        basis_size: the caller's limit.
        default: the solver's.
        n: size of the operator.
    """
    if basis_size is None:
        return n if n <= _UNRESTARTED * default else default
    return min(n, basis_size)
