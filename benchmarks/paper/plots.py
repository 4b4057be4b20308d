"""The plots of RESULTS.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt

from app.data.pools import TaskShape
from app.data.sinusoid import Sinusoids
from app.learning.inner_loop import descend
from app.registry import Registry
from benchmarks.paper.results import LOG, Result
from benchmarks.paper.rows import HERE, MODELS, Row

PLOTS = HERE / "plots"
SHOWN_STEPS = (0, 1, 5, 10)
mpl.use("agg")


def draw_learning_curves(rows: Sequence[Row]) -> None:
    """Validation accuracy by meta-iteration, one panel a data set and protocol."""
    accuracies = [row for row in rows if row.dataset != "sinusoid"]
    panels = list(dict.fromkeys((row.dataset, row.protocol) for row in accuracies))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 4), squeeze=False)
    for axis, (dataset, protocol) in zip(axes[0], panels, strict=True):
        chosen = [row for row in accuracies if (row.dataset, row.protocol) == (dataset, protocol)]
        for name in dict.fromkeys(row.model for row in chosen):
            lines = _log(name)
            if lines:
                axis.plot(
                    [line["iteration"] for line in lines],
                    [line["validation_accuracy"] for line in lines],
                    label=name.removeprefix(f"{dataset}-"),
                    linewidth=1,
                )
        axis.set(title=f"{dataset}, {protocol}", xlabel="iteration", ylabel="validation accuracy")
        axis.set_xscale("log")
        if axis.lines:
            axis.legend(fontsize=6)
    _save(figure, "learning_curves.png")


def draw_accuracy_by_step(rows: Sequence[Row], results: Mapping[Any, Result]) -> None:
    """Accuracy on the test classes by inner step, one panel a data set and protocol."""
    found = [row for row in rows if "accuracy_by_step" in results.get(row.key, {})]
    panels = list(dict.fromkeys((row.dataset, row.protocol) for row in found)) or [("", "")]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 4), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for row in found:
            if (row.dataset, row.protocol) == panel:
                steps = results[row.key]["accuracy_by_step"]
                label = f"{row.ways}w{row.shots}s {row.algorithm}"
                axis.plot(range(len(steps)), steps, marker="o", markersize=2, label=label)
        axis.set(title=", ".join(panel), xlabel="inner step", ylabel="accuracy")
        if axis.lines:
            axis.legend(fontsize=6)
    _save(figure, "accuracy_by_step.png")


def draw_sinusoids() -> None:
    """One task's function before the first step and after each shown one, for every θ there is."""
    names = [name for name in ("maml", "pretraining", "oracle") if _made(f"sinusoid-{name}")]
    if not names:
        return
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False)
    shape = TaskShape((1, 1), (5, 5), 200)
    task = Sinusoids(oracle=True).sample(shape, 1, (7,))
    x = torch.linspace(-5, 5, 200)
    amplitude, phase = task.support.inputs[0, 0, 1:].tolist()
    for axis, name in zip(axes[0], names, strict=True):
        model = Registry(MODELS).load(f"sinusoid-{name}", 1)
        width = model.card.input.shape[0]  # 1: x alone; 3: for the oracle A and p too
        support = task.support._replace(inputs=task.support.inputs[..., :width])
        (support,) = [type(support)(*(tensor[0] for tensor in support))]
        grid = torch.stack([x, torch.full_like(x, amplitude), torch.full_like(x, phase)], -1)
        phis, _ = descend(
            model.learner, model.theta, support, task.classes[0], model.alpha, SHOWN_STEPS[-1]
        )
        axis.plot(x, amplitude * torch.sin(x - phase), "k--", linewidth=1, label="true")
        for step in SHOWN_STEPS:
            y = model.learner.logits(phis[step], grid[:, :width]).detach()[:, 0]
            axis.plot(x, y, linewidth=1, label=f"{step} steps")
        axis.plot(support.inputs[:, 0], support.labels[:, 0], "k^", markersize=5)
        axis.set(title=name, xlabel="x", ylim=(-6, 6))
        axis.legend(fontsize=7)
    _save(figure, "sinusoid.png")


def _made(name: str) -> bool:
    return (MODELS / name / "1" / "card.json").exists()


def _log(name: str) -> list[dict[str, Any]]:
    path = MODELS / name / "1" / LOG
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _save(figure: Any, name: str) -> None:
    PLOTS.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(Path(PLOTS / name), dpi=90)
    plt.close(figure)
