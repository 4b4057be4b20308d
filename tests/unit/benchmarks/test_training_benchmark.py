"""The speed benchmark compares what is the same, and says so where it is not."""

from dataclasses import replace

import pytest
import torch

for peer in ("higher", "torchopt"):
    pytest.importorskip(peer, reason=f"{peer} is not installed: make bench")

from benchmarks import training  # noqa: E402 - after the skip

CPU = torch.device("cpu")
TINY = replace(
    training.WORKLOADS["omniglot-5w1s-5"], shape=(1, 12, 12), filters=4, blocks=2, tasks=3, steps=2
)


@pytest.mark.filterwarnings("ignore")  # the peers' own
@pytest.mark.parametrize("pool", [False, True])
def test_all_contenders_compute_the_same_meta_gradient(pool):
    workload = replace(TINY, pool=pool)
    contenders = training.build_contenders(workload, CPU, training.PEERS)
    assert set(contenders) == {"ours", "autograd", "higher", "torchopt"}
    assert training.compare_gradients(workload, contenders, 1e-4) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_another_gradient_is_told_by_name():
    contenders = training.build_contenders(TINY, CPU, training.PEERS)
    other = training.build_contenders(replace(TINY, alpha=0.1), CPU, training.PEERS)
    with pytest.raises(training.Disagreement, match="higher"):
        training.compare_gradients(TINY, {**contenders, "higher": other["higher"]}, 1e-4)
