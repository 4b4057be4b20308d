"""Checkpoints: the whole state of a run in one safetensors file, written atomically."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from app.errors import CheckpointError
from app.training.run import write_run_file
from app.training.state import State

ADAM = ("exp_avg", "exp_avg_sq", "step")
RUN = ("iteration", "wall_seconds", "peak_memory_bytes", "loss", "score")


def save_checkpoint(path: Path, state: State, identity: str) -> None:
    """Writes the state of a run; `identity` is a digest of all that it must go on with.

    Raises:
        CheckpointError: the folder cannot be written to; the checkpoint before is still whole.
    """
    tensors = {}
    for name, parameter in state.parameters.items():
        tensors[f"parameter.{name}"] = parameter.detach().cpu().contiguous()
        for key, value in state.optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value.detach().cpu().contiguous()
    metadata = {
        "identity": identity,
        "run": json.dumps({key: getattr(state, key) for key in RUN}),
    }
    write_run_file(path, save(tensors, metadata))


def restore_checkpoint(path: Path, state: State, identity: str) -> None:
    """Puts a fresh state where the checkpoint's run stood.

    Raises:
        CheckpointError: the file is broken, or of another recipe, data set or network.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        run = json.loads(metadata["run"])
        progress, owner = {key: run[key] for key in RUN}, metadata["identity"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no whole checkpoint ({error}): delete it to start anew"
        ) from error
    shapes = {f"parameter.{name}": value.shape for name, value in state.parameters.items()}
    found = {name: value.shape for name, value in tensors.items() if name in shapes}
    if owner != identity or found != shapes:
        raise CheckpointError(
            f"{path} belongs to another recipe or data set: use another --run folder, or delete it"
        )
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            moments = {key: tensors[f"{key}.{name}"] for key in ADAM if f"{key}.{name}" in tensors}
            if moments:
                state.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in moments.items()
                }
    for key, value in progress.items():
        setattr(state, key, value)
