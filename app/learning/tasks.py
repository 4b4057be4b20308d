"""Containers for few-shot tasks.

Each is a NamedTuple, so that `torch.func.vmap` maps over its tensors: a batch of tasks is the same
container with a leading dimension on every tensor. Tasks of different sizes share a batch by
padding: what is not there is False in `mask` and in `classes`, and has no influence on anything, so
long as it is no larger than inputs are; zeros are the habit.
"""

from typing import NamedTuple

from torch import Tensor


class Examples(NamedTuple):
    """M labelled examples, padding included."""

    inputs: Tensor  # (M, *input_shape)
    labels: Tensor  # (M,) int64 in [0, N), or in regression (M, K) targets
    mask: Tensor  # (M,) bool, False for padding


class Task(NamedTuple):
    """One few-shot problem of N classes, padding included; in regression of N = K outputs."""

    support: Examples
    query: Examples
    classes: Tensor  # (N,) bool, False for padding
