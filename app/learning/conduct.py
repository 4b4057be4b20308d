"""Whether a network behaves as meta-training and the service need, found out by trying it.

The service promises that an answer depends on the session's support set and the query alone, and
that it is the same after a restart. What would break that in a network of one's own is refused
before any time is spent on it, by the name of the module that does it where that can be found.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_leaves

from app.learning.normalisation import BatchStatisticsNorm

EXAMPLES = 2
TOLERANCE = 1e-3
"""As a share of the largest number: rounding stays well below it, whatever a batch's size."""

JUMPS = 0.1
"""The same for the length of a gradient."""

Parameters = dict[str, Tensor]
Make = Callable[[int], nn.Module]
"""Makes a network, with the first values of a seed."""


def check_conduct(network: nn.Module, make: Make, input_shape: Sequence[int]) -> None:
    """Tries a network out, in both modes; it ends in training mode.

    Args:
        network: what `make` made of the seed 0.
        make: makes it anew.
        input_shape: of one input.

    Raises:
        ValueError: it misbehaves; the message says how, and where it can be found in which module.
    """
    inputs = _inputs(input_shape)
    transductive = any(isinstance(module, BatchStatisticsNorm) for module in network.modules())
    for training in (False, True):
        network.train(training)
        with torch.no_grad():
            _check_state(network, inputs)
            if not transductive:
                _check_independence(network, inputs)
            _check_tasks_at_once(network, make, inputs)
    with torch.no_grad():
        _check_modes(network, inputs)
        _check_made_again(network, make, inputs)
    _check_zeros(network, inputs)


def check_second_derivative(network: nn.Module, input_shape: Sequence[int]) -> None:
    """Tries the gradient through a gradient, which the algorithms of second order need.

    Raises:
        ValueError: there is none; the message names what has none.
    """
    parameters = {
        name: value.detach().requires_grad_() for name, value in network.named_parameters()
    }
    if not parameters:
        return

    def steepness(inputs: Tensor) -> Tensor:
        gradient = grad(_loss, argnums=1)(network, parameters, inputs)
        return torch.stack([value.square().sum() for value in gradient.values()]).sum()

    try:
        total = vmap(steepness)(_tasks(_inputs(input_shape))).sum()
        torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    except RuntimeError as error:
        raise ValueError(
            f"it cannot be differentiated twice ({one_line(error)}): take first-order-maml, or "
            "other modules"
        ) from error


def one_line(error: BaseException) -> str:
    """An error in one line: functorch's have many."""
    first = (str(error).strip().splitlines() or [""])[0].strip()
    return f"{type(error).__name__}: {first[:160]}"


def _check_state(network: nn.Module, inputs: Tensor) -> None:
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    before = inputs.clone()
    first, second = _calls(network, inputs), _calls(network, inputs)
    changed = [
        name for name, value in network.named_buffers() if not torch.equal(value, buffers[name])
    ]
    if changed:
        raise ValueError(
            f"the buffer {', '.join(changed)} changes in the forward pass: what one request leaves "
            "there would change the answers to others; compute it from the input, or make it an "
            "nn.Parameter"
        )
    if not torch.equal(inputs, before):
        raise ValueError(
            "the forward pass changes its input in place, which every inner step reads again: "
            "begin with an operation that leaves it"
        )
    if name := _parting(first, second):
        raise ValueError(
            f"{name} answers the same input differently the second time: it draws at random or "
            "keeps a state; take that out, of dropout by p = 0"
        )


def _check_independence(network: nn.Module, inputs: Tensor) -> None:
    for place in range(EXAMPLES):
        others = _inputs(inputs.shape[1:], seed=1)
        others[place] = inputs[place]
        alone, among = _calls(network, inputs[place : place + 1]), _calls(network, others)
        if name := _parting(alone, among, place):
            raise ValueError(
                f"{name} answers an input differently alone and among others: a query's answer "
                "would depend on what else is in the batch; let it compute over one example, as "
                "nn.GroupNorm and nn.LayerNorm do"
            )


def _check_tasks_at_once(network: nn.Module, make: Make, inputs: Tensor) -> None:
    """Whether many tasks in one computation have the gradients that each has by itself."""
    tasks, ours, others = _tasks(inputs), _parameters(network), _parameters(make(1))
    if not ours:
        return
    own = {name: torch.stack([value, others[name]]) for name, value in ours.items()}
    gradient = grad(_loss, argnums=1)
    with _reporting(network):
        shared = vmap(lambda inputs: gradient(network, ours, inputs))(tasks)
        apart = vmap(lambda parameters, inputs: gradient(network, parameters, inputs))(own, tasks)
        together = [shared, shared, apart]
        alone = [
            gradient(network, parameters, tasks[place])
            for parameters, place in ((ours, 0), (ours, 1), (others, 1))
        ]
    for batched, single, place in zip(together, alone, (0, 1, 1), strict=True):
        # As one vector, for a gradient that is zero is nothing but rounding errors; and by its
        # length, for where maxima are close rounding makes single numbers jump.
        one = torch.cat([value[place].flatten() for value in batched.values()]).nan_to_num()
        other = torch.cat([value.flatten() for value in single.values()]).nan_to_num()
        if (one - other).norm() > JUMPS * other.norm() + TOLERANCE * TOLERANCE:
            raise ValueError(
                "torch.func.vmap over tasks gives another gradient than a task alone: look at the "
                "`vmap` or `generate_vmap_rule` of its autograd.Function"
            )


def _check_modes(network: nn.Module, inputs: Tensor) -> None:
    serving, training = _calls(network.eval(), inputs), _calls(network.train(), inputs)
    if name := _parting(serving, training):
        raise ValueError(
            f"{name} answers differently in training mode, by which θ is made, and in evaluation "
            "mode, which serves it: let both compute the same"
        )


def _check_made_again(network: nn.Module, make: Make, inputs: Tensor) -> None:
    ours, again = _parameters(network), _parameters(make(0))
    if ours.keys() != again.keys() or not all(_same(ours[name], again[name]) for name in ours):
        raise ValueError(
            "made again with the same seed it has other parameters: draw their first values from "
            "torch's generator, so that a recipe gives one θ"
        )
    other = make(1)
    if shared := _shared(network, other):
        raise ValueError(
            f"{shared} is the same object in every network that is made, and a server runs several "
            "at the same time: make a new one in every call"
        )
    if _same(network(inputs), functional_call(other, ours, (inputs,))):
        return
    buffers = dict(other.named_buffers())
    drawn = [name for name, value in network.named_buffers() if not _same(value, buffers[name])]
    what = f"the buffer {', '.join(drawn)}" if drawn else "something that is no parameter"
    raise ValueError(
        f"{what} is drawn at random when the network is made, so that θ, loaded again, would "
        "answer differently: make it an nn.Parameter, or draw it by a torch.Generator of a fixed "
        "seed"
    )


def _shared(network: nn.Module, other: nn.Module) -> str | None:
    """A module with parameters, which are put into it in every call, that is in both networks."""
    theirs = {id(module) for module in other.modules()}
    for name, module in network.named_modules():
        if id(module) in theirs and any(True for _ in module.parameters()):
            return f"the module {name!r}" if name else "the network itself"
    return None


def _check_zeros(network: nn.Module, inputs: Tensor) -> None:
    zeros, parameters = torch.zeros_like(inputs), _parameters(network)
    numbers = [network(zeros)]
    if parameters:
        numbers += grad(_loss, argnums=1)(network, parameters, zeros).values()
    if not all(bool(number.isfinite().all()) for number in numbers):
        raise ValueError(
            "for an input of zeros, by which smaller support sets are padded, its features or "
            "their gradient are not finite: add a small number to what is divided by, or is under "
            "a root"
        )


def _loss(network: nn.Module, parameters: Parameters, inputs: Tensor) -> Tensor:
    features: Tensor = functional_call(network, parameters, (inputs,))
    # No sum of squares: of normalised features that is constant, and its gradient nothing.
    weights = torch.arange(1, features.shape[1] + 1, dtype=features.dtype).sin()
    return (features @ weights).square().mean()


def _inputs(input_shape: Sequence[int], seed: int = 0) -> Tensor:
    """Uniform in [-1, 1], so that a network that takes numbers for indices sees zeros."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(EXAMPLES, *input_shape, generator=generator) - 1


def _tasks(inputs: Tensor) -> Tensor:
    return torch.stack([inputs, inputs.flip(0) / 2])


def _parameters(network: nn.Module) -> Parameters:
    return {name: value.detach() for name, value in network.named_parameters()}


class _Call(NamedTuple):
    """One call of a module, with the tensors that went in and came out."""

    name: str
    given: list[Tensor]
    returned: list[Tensor]


def _calls(network: nn.Module, inputs: Tensor) -> list[_Call]:
    """The calls of all modules in a forward pass, in the order in which they end."""
    calls = []

    def entered(name: str, given: Any) -> None:
        under_way.append((name, _tensors(given)))

    def left(_: str, returned: Any) -> None:
        calls.append(_Call(*under_way.pop(), _tensors(returned)))

    under_way: list[tuple[str, list[Tensor]]] = []
    with _hooks(network, entered, left):
        try:
            network(inputs)
        except Exception as error:  # it is somebody else's code
            where = under_way[-1][0] if under_way else type(network).__name__
            mode = "training" if network.training else "evaluation"
            raise ValueError(
                f"{where} fails in {mode} mode on inputs {tuple(inputs.shape)}: {one_line(error)}"
            ) from error
    return calls


@contextmanager
def _reporting(network: nn.Module) -> Iterator[None]:
    """Turns what fails into a ValueError that names the module under way."""
    under_way: list[str] = []
    with _hooks(network, lambda name, _: under_way.append(name), lambda *_: under_way.pop()):
        try:
            yield
        except Exception as error:  # it is somebody else's code
            where = under_way[-1] if under_way else type(network).__name__
            raise ValueError(
                f"{where} cannot run under torch.func.vmap and grad, by which many tasks are one "
                f"computation ({one_line(error)}): no `if` on a tensor's values, no .item(), and "
                "no writing in place into a tensor that does not come from the input"
            ) from error


@contextmanager
def _hooks(
    network: nn.Module, entered: Callable[[str, Any], object], left: Callable[[str, Any], object]
) -> Iterator[None]:
    """Calls `entered` with a module's name and arguments, `left` with its name and result."""
    handles = []
    for path, module in network.named_modules():
        name = f"{path} ({type(module).__name__})" if path else type(module).__name__

        def before(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            entered(name, (args, kwargs))

        def after(_: nn.Module, args: Any, result: Any, name: str = name) -> None:  # noqa: ARG001
            left(name, result)

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(values: Any) -> list[Tensor]:
    return [value.clone() for value in tree_leaves(values) if isinstance(value, Tensor)]


def _parting(ours: list[_Call], theirs: list[_Call], place: int = 0) -> str | None:
    """The name of the module where two passes part, None where they answer the same.

    That is the first one that ended which was given the same and returned something else. `place`
    is the first of their examples that is compared, `ours` may have fewer.
    """
    if _agree(ours[-1].returned, theirs[-1].returned, place):
        return None
    for one, other in zip(ours, theirs, strict=False):
        given = _agree(one.given, other.given, place)
        if (
            one.name == other.name
            and given
            and _agree(one.returned, other.returned, place) is False
        ):
            return one.name
    return ours[-1].name


def _agree(ours: list[Tensor], theirs: list[Tensor], place: int) -> bool | None:
    """Whether tensors agree from an example on; None: they cannot be compared."""
    if len(ours) != len(theirs):
        return None
    agree = True
    for one, other in zip(ours, theirs, strict=True):
        rows = other[place * len(one) :][: len(one)] if one.ndim else other
        if one.shape != rows.shape:
            return None
        agree = agree and _same(one, rows)
    return agree


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = other.double().nan_to_num(posinf=0, neginf=0).abs().amax() if other.numel() else 0
    return torch.allclose(
        one.double(), other.double(), rtol=0, atol=TOLERANCE * float(scale), equal_nan=True
    )
