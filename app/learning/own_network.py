"""A network of one's own: a factory of somebody else's package, named "package.module:factory".

The factory is called with the input's shape and the recipe's arguments and returns an `nn.Module`
from inputs (M, *input_shape) to features (M, D). Whoever names a factory runs its code. A server on
a CPU makes one network for every lane and runs them at the same time, each on a thread of its own.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from importlib import import_module
from inspect import Parameter, signature
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from app.learning.conduct import check_conduct, one_line
from app.learning.refused import refuse_modules

DRY_RUN_EXAMPLES = 3
"""Inputs of a dry run; more than one, so that they can be told from the features."""
_MAKING = threading.Lock()
"""Torch's generator of random numbers is one for all threads."""
NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def is_own(name: str) -> bool:
    """Whether a network's name is that of a factory."""
    return ":" in name


def own_arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a factory, with those of its defaults that a card can hold.

    Raises:
        ValueError: there is no such factory.
    """
    return {**_plain_defaults(_factory(name)), **given}


class OwnNetwork:
    """A network that a factory made and that was tried out.

    `network` is in training mode and has the first values of the seed 0.
    """

    def __init__(self, input_shape: Sequence[int], name: str, **arguments: Any):
        """Imports the factory, makes the network and tries it out.

        Args:
            input_shape: of one input; the factory is called with it, as a tuple.
            name: of the factory.
            arguments: what the factory is called with beside the shape.

        Raises:
            ValueError: there is no such factory, or what it makes cannot be meta-trained and
                served; the message names the factory, and where it can be found the module within
                the network that is to blame.
        """
        self._input_shape = tuple(input_shape)
        self._name = name
        self._arguments = arguments
        try:
            self.network = self.make(0)
            self.features = _feature_size(self.network, self._input_shape)
            _refuse_parameters(self.network)
            check_conduct(self.network, self.make, self._input_shape)
        except ValueError as error:
            raise ValueError(f"network {name!r}: {error}") from error

    def make(self, seed: int) -> nn.Module:
        """The network with the first values that a seed gives it, in training mode.

        Any thread may call it.
        """
        factory = _factory(self._name)
        defaults = _plain_defaults(factory)
        # Not what a card has made of a default: it may have turned a tuple to a list.
        given = {
            key: value
            for key, value in self._arguments.items()
            if key not in defaults or value != defaults[key]
        }
        with _MAKING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                network = factory(self._input_shape, **given)
            except Exception as error:  # it is somebody else's code
                raise ValueError(
                    f"the call with {self._input_shape} and {given} failed: {one_line(error)}"
                ) from error
            if not isinstance(network, nn.Module):
                raise ValueError(f"it returned {type(network).__name__}, no nn.Module")
            refuse_modules(network)
            _feature_size(network, self._input_shape)  # from here on lazy modules have parameters
        return network


def _feature_size(network: nn.Module, input_shape: tuple[int, ...]) -> int:
    """The length D of the features, by a dry run in evaluation mode; ends in training mode."""
    inputs = torch.zeros(DRY_RUN_EXAMPLES, *input_shape)
    try:
        with torch.no_grad():
            features = network.eval()(inputs)
    except Exception as error:  # it is somebody else's code
        raise ValueError(f"inputs {tuple(inputs.shape)} fail: {one_line(error)}") from error
    finally:
        network.train()
    wanted = f"where 32-bit floats ({DRY_RUN_EXAMPLES}, features) are needed"
    if not isinstance(features, Tensor):
        raise ValueError(
            f"for inputs {tuple(inputs.shape)} it returns {type(features).__name__}, {wanted}"
        )
    if features.ndim != 2 or len(features) != len(inputs) or features.dtype != inputs.dtype:
        raise ValueError(
            f"for inputs {tuple(inputs.shape)} it returns {features.dtype} of shape "
            f"{tuple(features.shape)}, {wanted}: end it with nn.Flatten() perhaps"
        )
    return features.shape[1]


def _refuse_parameters(network: nn.Module) -> None:
    frozen = [name for name, value in network.named_parameters() if not value.requires_grad]
    if frozen:
        raise ValueError(
            f"{', '.join(frozen)}: requires no gradient, but every parameter is one of θ and is "
            "trained: make what never changes a buffer"
        )
    other = [name for name, value in network.named_parameters() if value.dtype != torch.float32]
    if other:
        raise ValueError(
            f"{', '.join(other)}: of {network.get_parameter(other[0]).dtype}, but φ is kept as "
            "32-bit floats: make it of torch.float32"
        )


def _factory(name: str) -> Callable[..., object]:
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        raise ValueError(
            "name the module as Python imports it, not its file: package.module:factory"
        )
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"there is no module {error.name or module_name!r} to import: start the command in the "
            "folder that holds it, add that folder to PYTHONPATH, or install the package"
        ) from error
    except Exception as error:  # it is somebody else's code
        raise ValueError(f"importing {module_name!r} failed: {one_line(error)}") from error
    try:
        factory = reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise ValueError(f"{_where(module)} has no {attribute!r}") from error
    if not callable(factory):
        raise ValueError(
            f"{attribute!r} in {_where(module)} is of type {type(factory).__name__} and cannot be "
            "called"
        )
    return factory


def _where(module: ModuleType) -> str:
    return f"module {module.__name__!r} ({module.__file__ or 'a folder'})"


def _plain_defaults(factory: Callable[..., object]) -> dict[str, Any]:
    """The defaults of a factory's arguments as JSON gives them back; what it cannot hold is out."""
    try:
        parameters = list(signature(factory).parameters.values())
    except (TypeError, ValueError):  # some that are written in C have none
        return {}
    plain = {}
    for parameter in parameters[1:]:  # the first is the input's shape
        if parameter.kind in NAMED and parameter.default is not Parameter.empty:
            with suppress(TypeError, ValueError):
                plain[parameter.name] = json.loads(json.dumps(parameter.default, allow_nan=False))
    return plain
