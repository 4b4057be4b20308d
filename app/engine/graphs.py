"""Computations on a CPU, recorded once as graphs of operators and run without Python.

An adaptation is some hundreds of operations. Asked for by Python each of them gives the
interpreter's lock away and waits to have it again, so that lanes side by side wait for each other
half of their time. A graph is one call, and needs the lock only to begin and to end.

A computation is traced once (`torch.fx.experimental.proxy_tensor.make_fx`) with sizes that stay
symbols, and written down in TorchScript, which torch runs with no compiler there. A program is
TorchScript that calls what was so written down.
"""

import math
import operator
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import structlog
import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from app.recordings import CannotRecord

Run = Callable[..., Sequence[Tensor]]
"""A function of tensors, in order, to tensors."""
Program = Callable[..., Sequence[Tensor]]
"""A function of lists of tensors to tensors."""

log = structlog.get_logger(__name__)

_INFIX = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
}
_TRACING = threading.Lock()
"""One thread at a time: to trace patches `torch.nn.Module` for all, and puts it back at its end."""
_WHERE = {"device", "layout", "pin_memory"}
"""What says where a new tensor is to be: here there is one place."""


class Traced(NamedTuple):
    """A computation in TorchScript."""

    kept: list[Tensor]
    """What it reads beside its inputs, as it was then."""
    names: list[str]
    """Of `kept`, then of its inputs."""
    lines: list[str]

    def function(self, name: str) -> str:
        """As a function of that name, of `kept` and its inputs, which are one list."""
        given = [f"{each} = given[{index}]" for index, each in enumerate(self.names)]
        body = "".join(f"    {line}\n" for line in (*given, *self.lines))
        return f"def {name}(given: List[Tensor]):\n{body}"


class Graphs:
    """Programs by what they compute. Any thread may run them."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, Program] = {}

    def run(self, what: Hashable, compute: Program, *lists: Sequence[Tensor]) -> Sequence[Tensor]:
        """What `compute` gives for the lists, by the program of that name where there is one.

        A program that fails where `compute` does not is not used again.
        """
        program = self._programs.get(what)
        if program is None:
            return compute(*lists)
        try:
            return program(*lists)
        except RuntimeError as error:
            computed = compute(*lists)
            self._programs.pop(what, None)
            log.exception("a graph of operators failed and is dropped", error=str(error))
            return computed

    def record(self, whats: Sequence[Hashable], make: Callable[[], Sequence[Program]]) -> None:
        """Keeps the programs that `make` gives under these names, unless it has all of them.

        The same name must always mean the same.

        Raises:
            CannotRecord: see `trace` and `compiled`.
        """
        with _TRACING:
            if not self._programs.keys() >= set(whats):
                self._programs |= zip(whats, make(), strict=True)


def compiled(source: str, names: Sequence[str]) -> list[Program]:
    """The functions of those names of a source in TorchScript.

    Raises:
        CannotRecord: it is not TorchScript.
    """
    try:
        unit = torch.jit.CompilationUnit(source)
    except RuntimeError as error:
        raise CannotRecord(f"it is no TorchScript ({_first_line(error)})") from error
    return [getattr(unit, name) for name in names]


def trace(compute: Run, inputs: Sequence[Tensor], free: Sequence[int]) -> Traced:
    """Traces a computation; for `Graphs.record`, as one thread at a time may.

    Args:
        compute: the computation; what else it reads of tensors is kept as it is now.
        inputs: tensors as it takes them.
        free: the numbers of those, from 0 or back from -1, that may be of any size in their first
            dimension; where two are alike now, they are always. All other shapes never change.

    Raises:
        CannotRecord: what is computed hangs on a size, or cannot be written down.
    """
    # Here, for they take a second to import, which a GPU's server need not wait for.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import (
        DimDynamic,
        ShapeEnv,
        StatelessSymbolicContext,
    )

    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)

    def fake(tensor: Tensor, *, is_free: bool) -> Tensor:
        sizes = [DimDynamic.STATIC] * tensor.ndim
        if is_free:
            sizes[0] = DimDynamic.DUCK  # a size for each number that is there
        context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
        return mode.from_tensor(tensor, static_shapes=False, symbolic_context=context)

    any_size = {number % len(inputs) for number in free}
    fakes = [fake(each, is_free=index in any_size) for index, each in enumerate(inputs)]
    tracing = make_fx(compute, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    try:
        traced = tracing(*fakes)
    except Exception as error:  # torch raises errors of many kinds here
        raise CannotRecord(f"it cannot be traced ({_first_line(error)})") from error
    relations = [guard.expr for guard in shapes.guards]
    fixing = [str(each) for each in relations if getattr(each, "rel_op", None) == "=="]
    if fixing:
        raise CannotRecord(f"it is another computation for other sizes ({', '.join(fixing)})")
    for node in list(traced.graph.nodes):
        if node.target is torch.ops.aten.detach.default:  # nothing is differentiated any more
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    kept = dict(traced.named_buffers())
    return _written_down(traced.graph, kept)


def _written_down(graph: Graph, kept: Mapping[str, Tensor]) -> Traced:
    names, lines = list(kept), []
    for node in graph.nodes:
        if node.op == "placeholder":
            names.append(node.name)
        elif node.op == "output":
            lines.append(f"return {_written(list(node.args[0]))}")
        elif node.op == "get_attr":
            lines.append(f"{node.name} = {node.target}")
        else:
            lines.append(f"{node.name} = {_call(node)}")
    return Traced(list(kept.values()), names, lines)


def _call(node: Node) -> str:
    """What a node computes, in TorchScript."""
    target, arguments = node.target, [_written(each) for each in node.args]
    if target in _INFIX:
        return f" {_INFIX[target]} ".join(arguments)
    if target is operator.getitem:
        return f"{arguments[0]}[{arguments[1]}]"
    if target is torch.ops.aten.sym_size.int:
        return f"{arguments[0]}.size({arguments[1]})"
    if not isinstance(target, torch._ops.OpOverload):
        raise CannotRecord(f"{target} is no operator of tensors")
    named = [f"{key}={_written(value)}" for key, value in node.kwargs.items() if key not in _WHERE]
    namespace, name = target._schema.name.split("::")
    return f"torch.ops.{namespace}.{name}({', '.join(arguments + named)})"


def _written(value: Any) -> str:
    """An argument, in TorchScript."""
    if isinstance(value, Node):
        return value.name
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, bool | int | float | torch.dtype | torch.memory_format):
        return str(value)
    raise CannotRecord(f"{value!r} cannot be written down")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
