"""Modules that no network here may hold, each with the reason and the way out."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

_BATCH_NORM = (
    "batch norm makes an answer depend on the other queries; use nn.GroupNorm, or to reproduce "
    "published figures BatchStatisticsNorm, which makes the learner transductive"
)
_RUNNING_STATISTICS = (
    "it would be trained by the statistics of each example and answer by running ones; leave "
    "track_running_stats False, or use nn.GroupNorm"
)
_DROPOUT = (
    "dropout draws at random, and the same recipe must give the same θ, interrupted or not; take "
    "it out, or set p = 0"
)
_RECURRENT = (
    "torch.func.vmap, by which many tasks are one computation, cannot run it; use the cell "
    "(nn.GRUCell, nn.LSTMCell) in a loop over time, or convolutions"
)


def refuse_modules(network: nn.Module) -> None:
    """Refuses a network for what its modules are known to do.

    Raises:
        ValueError: the names of the modules within the network, the reason and the way out.
    """
    refused: dict[str, list[str]] = {}
    for name, module in network.named_modules():
        if reason := _reason(module):
            refused.setdefault(reason, []).append(name or type(module).__name__)
    if refused:
        raise ValueError(
            "; ".join(f"{', '.join(names)}: {reason}" for reason, names in refused.items())
        )


def _reason(module: nn.Module) -> str | None:
    if isinstance(module, _BatchNorm):
        return _BATCH_NORM
    if isinstance(module, _NormBase) and module.track_running_stats:
        return _RUNNING_STATISTICS
    if isinstance(module, _DropoutNd) and module.p > 0:
        return _DROPOUT
    if isinstance(module, nn.RNNBase):
        return _RECURRENT
    return None
