"""Stochastic weight averaging: the recipe of torch's documentation, on handwritten digits.

    python docs/examples/swa_digits.py [--epochs 40] [--seed 0] [--out FOLDER]

For three quarters of the epochs a cosine schedule lowers the learning rate; then `SWALR` takes it
to a constant, and the weights after each epoch go into an `AveragedModel`. They never saw data:
`update_bn` computes the statistics of batch norm for them (here after each of these epochs, for the
figure; once at the end is enough). The images are scikit-learn's bundled digits: 1,797 real scans
of 8 x 8 pixels, nothing is downloaded.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits

import functorch_optim.stateful as optim
from functorch_optim.stateful.lr_scheduler import CosineAnnealingLR
from functorch_optim.stateful.swa_utils import SWALR, AveragedModel, update_bn

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # the backend comes first

BATCH = 64
WIDTHS = (64, 64, 64, 10)
LR, SWA_LR = 0.2, 0.1
console = Console()
Tree = dict[str, Any]


# The model, in plain JAX: a tree of Parameters and of running statistics, and a function.


def init_model(key: jax.Array) -> Tree:
    weights, norms = [], []
    for fan_in, width in itertools.pairwise(WIDTHS):
        key, own = jax.random.split(key)
        kernel = jax.random.normal(own, (fan_in, width)) * np.sqrt(2 / fan_in)
        weights.append({"kernel": kernel, "scale": jnp.ones(width), "bias": jnp.zeros(width)})
        norms.append({"mean": jnp.zeros(width), "var": jnp.ones(width)})
    return {"weights": optim.parameters(weights), "norms": norms}


def forward(model: Tree, x: jax.Array, training: bool) -> tuple[jax.Array, list[Any]]:
    """The logits, and the running statistics after this batch: 0.9 of the old, 0.1 of its own."""
    norms = []
    for i, (layer, running) in enumerate(zip(model["weights"], model["norms"], strict=True)):
        x = (jax.nn.relu(x) if i else x) @ layer["kernel"]
        used = running
        if training:
            used = {"mean": jnp.mean(x, axis=0), "var": jnp.var(x, axis=0)}
            running = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, running, used)
        x = (x - used["mean"]) / jnp.sqrt(used["var"] + 1e-5) * layer["scale"] + layer["bias"]
        norms.append(running)
    return x, norms


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -jnp.mean(chosen)


def loss_fn(model: Tree, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, list[Any]]:
    logits, norms = forward(model, images, training=True)
    return cross_entropy(logits, labels), norms


@jax.jit
def refreshed(model: Tree, images: jax.Array) -> Tree:
    """What update_bn asks for: the model with the statistics that follow a batch."""
    return {**model, "norms": forward(model, images, training=True)[1]}


@jax.jit
def measured(model: Tree, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Accuracy and loss, by the running statistics."""
    logits, _ = forward(model, images, training=False)
    return jnp.mean(jnp.argmax(logits, axis=1) == labels), cross_entropy(logits, labels)


# The data.


def load() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    digits = load_digits()
    images = (digits.data / 16.0).astype(np.float32)
    labels = digits.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1437], order[1437:]
    return (images[train], labels[train]), (images[test], labels[test])


def batches(data: tuple[np.ndarray, np.ndarray], seed: int, epoch: int) -> Iterator[Any]:
    """An epoch in random order: pairs of images (batch, 64) and labels (batch,)."""
    images, labels = data
    order = np.random.default_rng((seed, epoch)).permutation(len(images))
    for i in range(len(images) // BATCH):
        chosen = order[i * BATCH : (i + 1) * BATCH]
        yield images[chosen], labels[chosen]


# The recipe.


def train(data: Any, test: Any, epochs: int, seed: int) -> tuple[Tree, AveragedModel, Tree]:
    """The model, its average (with statistics of its own), and the test loss of each epoch."""
    model = init_model(jax.random.key(seed))
    opt = optim.SGD(model["weights"], lr=LR, momentum=0.9, weight_decay=1e-4)
    start = max(1, 3 * epochs // 4)
    scheduler = CosineAnnealingLR(opt, T_max=start, eta_min=SWA_LR / 10)
    swa_model = AveragedModel(model)
    swa_scheduler: Any = None
    curves: Tree = {"start": start, "lr": [], "last": [], "averaged": []}

    for epoch in track(range(epochs), "training", console=console):
        curves["lr"].append(opt.param_groups[0]["lr"])
        for images, labels in batches(data, seed, epoch):
            _, model["norms"] = optim.backward(loss_fn, model, images, labels, has_aux=True)
            opt.step()
            opt.zero_grad()
        curves["last"].append(float(measured(optim.values(model), *test)[1]))
        if epoch < start:
            scheduler.step()
        else:
            if swa_scheduler is None:
                swa_scheduler = SWALR(opt, swa_lr=SWA_LR, anneal_epochs=max(1, epochs // 20))
            swa_scheduler.step()
            swa_model.update_parameters(model)
            update_bn(batches(data, seed, epoch), swa_model, refreshed)
            averaged = optim.values(swa_model.module)
            curves["averaged"].append(float(measured(averaged, *test)[1]))
    return model, swa_model, curves


# What the user sees.


def draw(curves: Tree, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.plot(curves["last"], label="weights of the epoch", linewidth=1.4)
    begun = curves["start"] + np.arange(len(curves["averaged"]))
    left.plot(begun, curves["averaged"], "o-", label="their average", linewidth=1.4, markersize=3)
    left.set(title="Test loss", xlabel="epoch", ylabel="cross-entropy", yscale="log")
    left.legend(frameon=False)
    right.plot(curves["lr"], linewidth=1.4)
    right.set(title="Learning rate", xlabel="epoch", ylabel="lr", yscale="log")
    for axes in (left, right):
        axes.axvline(curves["start"] - 0.5, color="gray", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Average weights while training on digits.")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the data (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order")
    parser.add_argument("--out", type=Path, help="folder for the figure (default: a temporary one)")
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error("--epochs should be at least 2")
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="digits-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)

    data, test = load()
    model, swa_model, curves = train(data, test, arguments.epochs, arguments.seed)
    averaged = optim.values(swa_model.module)
    last = optim.values(model)
    rows = {
        "last": last,
        "averaged": averaged,
        "averaged, without update_bn": {**averaged, "norms": last["norms"]},
    }
    table = Table("weights", "test accuracy", "test loss")
    for name, tree in rows.items():
        accuracy, loss = (float(x) for x in measured(tree, *test))
        table.add_row(name, f"{100 * accuracy:.2f} %", f"{loss:.4f}")
    console.print(table)
    figure = out / "swa_digits.png"
    draw(curves, figure)
    console.print(f"{swa_model.n_averaged} epochs were averaged; figure: {figure}", soft_wrap=True)


if __name__ == "__main__":
    main()
