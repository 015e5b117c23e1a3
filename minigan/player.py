"""One player of a game: a network with its optimiser, whose gradients are looked at before it moves."""

from collections.abc import Callable, Mapping

import numpy as np

from minigan.backend import FLOATS, moved
from minigan.errors import NonFiniteError
from minigan.nn import Module
from minigan.ops import all_finite
from minigan.optim import Optimizer
from minigan.tape import grad, no_grad
from minigan.tensor import Tensor
from minigan.trace import require

LISTED = 3  # tensors that a message about NaN and infinities names


class Player:
    """A network, its optimiser and what that remembers."""

    def __init__(self, name: str, network: Module, optimizer: Optimizer) -> None:
        self.name, self.network, self.optimizer = name, network, optimizer
        self.parameters = network.parameters()
        self.memory = optimizer.init(self.parameters)
        self.state = network.state()
        # What a step changes and reads: floats of the network, and the slots by their name and the parameter's.
        slots = {f"{k}.{name}": x for k, xs in self.memory.slots.items() for name, x in xs.items()}
        self.tensors = {name: x for name, x in self.state.items() if x.dtype in FLOATS} | slots

    def gradients(self, losses: dict[str, Tensor], others: dict[str, Tensor]) -> list[Tensor]:
        """Those of the sum of the losses in this player's parameters, and in no other's; errors as for `checked`."""
        gradients = grad(list(losses.values()), list(self.parameters.values()))
        return self.checked(losses, gradients, others)

    def checked(
        self, losses: dict[str, Tensor], gradients: list[Tensor], others: dict[str, Tensor]
    ) -> list[Tensor]:
        """The gradients.

        Raises `NonFiniteError`, saying what and where, if a NaN or an infinity is among the losses, the gradients, what
        the update reads besides them, or the `others`.
        """
        with no_grad():
            state = self.tensors | others
            fine = all_finite([*losses.values(), *gradients, *state.values()])

        def refuse() -> None:
            found = losses | {
                f"gradient.{name}": g for name, g in zip(self.parameters, gradients, strict=True)
            }
            raise NonFiniteError(f"{self.name}: {'; '.join(not_finite(found | state))}")

        require(fine.array, refuse)
        return gradients

    def move(self, gradients: list[Tensor], rate: Callable[[Optimizer], float]) -> None:
        """Make one step of the optimiser, at the rate that the game has for it."""
        self.optimizer.update(self.parameters, gradients, self.memory, lambda: rate(self.optimizer))


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """What stands in which tensor, for the first few of those with NaN or infinities."""
    counts = {name: x.size - int(np.isfinite(moved(x.array, "cpu")).sum()) for name, x in tensors.items()}
    found = [
        f"{name} is {tensors[name].item()}"
        if tensors[name].size == 1
        else f"{name} has {n} of {tensors[name].size}"
        for name, n in counts.items()
        if n
    ]
    return [*found[:LISTED], f"and {len(found) - LISTED} more"] if len(found) > LISTED else found
