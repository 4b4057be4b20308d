"""Inner learning rates that are learned with θ: the parameters they have and the α they give.

"step"       one α a parameter tensor and inner step: the per-layer, per-step rates of MAML++
             (Antoniou, Edwards & Storkey 2019, arXiv 1810.09502, §4), as log α: α > 0.
"parameter"  one α for every number of θ, the same in all steps: Meta-SGD (Li, Zhou, Chen & Li
             2017, arXiv 1707.09835, Eq. 3), as it is: α may change its sign.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from app.learning.heads import Params

RateForm = Literal["step", "parameter"]


def initial_rates(
    theta: Mapping[str, Tensor], first: Mapping[str, Sequence[float]], form: RateForm
) -> Params:
    """The parameters of α by θ's names, from the first values of T steps.

    Shapes are (T,) with the form "step" and (1, *shape) with "parameter", whose first value is that
    of the first step. A parameter of θ with no first value gets no α.
    """
    if form == "step":
        return {name: torch.tensor(first[name]).log() for name in theta if first[name]}
    return {
        name: torch.full((1, *theta[name].shape), first[name][0]) for name in theta if first[name]
    }


def rates(parameters: Mapping[str, Tensor], form: RateForm) -> Params:
    """α for the inner loop, from its parameters."""
    return {name: value.exp() if form == "step" else value for name, value in parameters.items()}
