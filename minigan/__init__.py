"""minigan: generative adversarial networks on a small automatic differentiation engine of their own."""

from minigan import ops
from minigan.tape import grad, hvp, jvp, no_grad, vjp
from minigan.tensor import Tensor, asarray, tensor
