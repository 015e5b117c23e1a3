"""A game as a vector field: its Jacobian, the Jacobian's eigenvalues, and what they say of training.

Simultaneous gradient descent moves the parameters θ of all players along v(θ), for each player minus the gradient of
its own loss in its own parameters: θ ← θ + h v(θ). Near a point where v = 0 the eigenvalues λ of the Jacobian v'
decide: with Re λ < 0 for all of them it attracts, if the steps are small enough; with one on the imaginary axis it is
turned about, and left (Mescheder, Nowozin and Geiger 2017, "The numerics of GANs", §3).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigan.backend import Array, moved, zeros_like
from minigan.errors import ConfigError, DataError, ShapeError
from minigan.extras import needs
from minigan.program import compile
from minigan.tape import grad, recording
from minigan.tensor import Tensor

MOST = 5000  # parameters of a dense Jacobian, which takes 200 MB
SMALL = 500  # parameters up to which no product is compiled
RESTARTS = 300  # of Arnoldi's method


class Field:
    """The vector field of a game at its players' present parameters: v = -∂(loss k)/∂(parameters of k), joined.

    Args:
        players: for each its loss, a scalar tensor that was computed from all parameters, and its own parameters.

    The parameters count as one vector of `size` numbers, in the order of the players. Nothing is computed anew when
    they change: make another `Field`. `ConfigError` without parameters, or for a loss that is no scalar.

    The Dirac-GAN (Mescheder, Geiger and Nowozin 2018, Definition 2.1): data and generator are points, 0 and θ, and the
    discriminator has the logits ψ x.

    >>> import minigan as mg
    >>> theta, psi = mg.tensor(0.0, dtype="float64"), mg.tensor(0.0, dtype="float64")
    >>> value = -mg.ops.softplus(theta * psi)  # and a constant
    >>> game = mg.analysis.Field([(value, [theta]), (-value, [psi])])
    >>> game.eigenvalues()
    array([0.+0.5j, 0.-0.5j])
    """

    def __init__(self, players: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> None:
        self.parameters = [p for _, own in players for p in own]
        self.size = sum(p.size for p in self.parameters)
        if not self.size:
            raise ConfigError("a game without parameters has no vector field")
        self._sizes = [sum(p.size for p in own) for _, own in players]
        with recording(True):
            self._field: list[Tensor] = []
            for loss, own in players:
                if loss.shape != ():
                    raise ConfigError(f"a player's loss is a scalar, got shape {loss.shape}")
                self._field += [-slope for slope in grad(loss, list(own), create_graph=True)]
            # v'ᵀ u is linear in u, whatever u is: its derivative for u, pulled back along t, is v' t.
            self._u = [Tensor(zeros_like(v.array)) for v in self._field]
            self._pulled = grad(self._field, self.parameters, self._u, create_graph=True)

    def vector(self) -> Array:
        """v, float64 (size,)."""
        return _joined(self._field)

    def pull(self, u: Any) -> Array:
        """v'ᵀ u for u (size,), float64: one backward pass. `ShapeError` for another shape."""
        return _joined(self._pull(*self._parts(u)))

    def push(self, t: Any) -> Array:
        """v' t for t (size,), float64: one backward pass through a backward pass. `ShapeError` for another shape."""
        return _joined(self._push(*self._parts(t)))

    def _pull(self, *u: Tensor) -> list[Tensor]:
        return grad(self._field, self.parameters, list(u))

    def _push(self, *t: Tensor) -> list[Tensor]:
        return grad(self._pulled, self._u, list(t))

    def _often(self, product: Callable[..., list[Tensor]]) -> Callable[[Any], Array]:
        """A product that is computed so often that it pays to compile it: of 2,003 parameters it is 7 times as fast."""
        fast = compile(product) if self.size > SMALL else product
        return lambda vector: _joined(fast(*self._parts(vector)))

    def jacobian(self) -> Array:
        """v', float64 (size, size), by `size` backward passes; `ConfigError` for more than 5,000 parameters."""
        if self.size > MOST:
            raise ConfigError(
                f"a dense Jacobian of {self.size:,} parameters: up to {MOST:,} are possible; eigenvalues(count) takes"
                " any number"
            )
        return np.stack(list(map(self._often(self._pull), np.eye(self.size))))

    def hessians(self) -> list[Array]:
        """For each player the second derivatives of its loss in its own parameters: minus the blocks of v'."""
        jacobian, ends = self.jacobian(), np.cumsum(self._sizes)
        return [
            -jacobian[end - n : end, end - n : end] for n, end in zip(self._sizes, ends.tolist(), strict=True)
        ]

    def eigenvalues(self, count: int | None = None, which: str = "LR", seed: int = 0) -> Array:
        """Eigenvalues of v', complex128, those with the largest real part first.

        Args:
            count: how many, by Arnoldi's method with products `push`; by default all, from the dense Jacobian.
            which: of some, "LR" those with the largest real part, on which convergence hangs, or as
                `scipy.sparse.linalg.eigs` has it: "LM" the largest, "LI" the most imaginary.
            seed: of the vector that the method begins with.

        Arnoldi's method stops at a relative residual of 1e-9, or after 300 restarts with those that it has found, which
        may be fewer than asked for, or none.

        Raises: `ConfigError` for a count that is not from 1 to size - 2, `ExtraError` without SciPy (extra
            `analysis`) if a count is given.
        """
        if count is None:
            found = np.linalg.eigvals(self.jacobian())
        else:
            if not 1 <= count <= self.size - 2:
                raise ConfigError(
                    f"{count} eigenvalues of {self.size} parameters: Arnoldi's method finds 1 to {self.size - 2};"
                    " without a count all are found"
                )
            linalg = needs("scipy.sparse.linalg", "analysis")
            push = self._often(self._push)
            operator = linalg.LinearOperator(
                (self.size, self.size), matvec=lambda t: push(t.reshape(-1)), dtype=np.float64
            )
            first = np.random.default_rng(seed).standard_normal(self.size)
            options = {"which": which, "v0": first, "tol": 1e-9, "maxiter": RESTARTS}
            try:
                found = linalg.eigs(operator, count, return_eigenvectors=False, **options)
            except linalg.ArpackNoConvergence as stopped:
                found = stopped.eigenvalues
        found = np.asarray(found, np.complex128)
        return found[np.lexsort((-found.imag, -found.real))]

    def _parts(self, vector: Any) -> list[Tensor]:
        """A vector as tensors of the shapes and dtypes of the parameters."""
        given = np.asarray(vector)
        if given.shape != (self.size,):
            raise ShapeError(f"a vector of shape {given.shape} for {self.size} parameters")
        ends = np.cumsum([p.size for p in self.parameters])[:-1]
        pieces = np.split(given, ends)
        return [
            Tensor(moved(np.array(piece.reshape(p.shape), p.dtype), p.device))
            for piece, p in zip(pieces, self.parameters, strict=True)
        ]


def _joined(tensors: Sequence[Tensor]) -> Array:
    return np.concatenate([x.numpy().reshape(-1) for x in tensors]).astype(np.float64)


def stable_step(eigenvalues: Any) -> float:
    """The step h below which θ ← θ + h v(θ) converges near a point where v = 0: min 2 |Re λ| / |λ|².

    It is 0 if an eigenvalue has no negative real part; one that is 0, to 1e-12 of the largest, moves nothing and is
    passed over. That is |1 + h λ| < 1, solved for h (Mescheder et al. 2017, Lemma 4). `DataError` for what is not
    finite.

    >>> import minigan as mg
    >>> round(mg.analysis.stable_step([-0.15 + 0.4769696j, -0.15 - 0.4769696j]), 6)  # R1 with γ = 0.3: 4 γ
    1.2
    """
    found = np.asarray(eigenvalues, np.complex128).reshape(-1)
    if not np.isfinite(found).all():
        raise DataError(
            f"stable_step: {np.count_nonzero(~np.isfinite(found))} of {found.size} eigenvalues are not finite"
        )
    sizes = np.abs(found)
    found = found[sizes > 1e-12 * np.max(sizes, initial=0.0)]
    if (found.real >= 0).any():
        return 0.0
    return float(np.min(2 * -found.real / np.abs(found) ** 2, initial=np.inf))
