"""How the inner loop differentiates: vector-Jacobian products, as `torch.func.vjp` gives them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Vjp = Callable[..., tuple[Any, ...]]
"""As `torch.func.vjp`: of a function and its arguments, the value v, the map from a gradient of v
to those of the arguments and, with `has_aux`, what else the function returned."""


def vjp_once(function: Callable[..., Any], *primals: Any, has_aux: bool = False) -> tuple[Any, ...]:
    """`torch.func.vjp` by the plain autograd, for a lone task: the same numbers, sooner.

    The gradients are constants to any derivative outside, they can be asked for once, and the
    function must not run under a transform of `torch.func`.
    """
    leaves, structure = tree_flatten(primals)
    with torch.enable_grad():
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        result = function(*tree_unflatten(leaves, structure))
    value, *aux = result if has_aux else (result,)

    def pull(gradient: Tensor) -> Any:
        gradients = torch.autograd.grad(value, leaves, gradient, materialize_grads=True)
        return tree_unflatten(list(gradients), structure)

    return (value.detach(), pull, *(extra.detach() for extra in aux))
