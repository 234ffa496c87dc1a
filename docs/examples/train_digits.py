"""Train a small convolutional network on handwritten digits, three ways.

    python docs/examples/train_digits.py [--epochs 12] [--seed 0] [--out FOLDER]

(a) a pure pair inside one jitted `lax.scan` per epoch, (b) the stateful optimizer in a torch-like
loop with two parameter groups and a scheduler, saved and reloaded halfway, (c) `make_step`, which
compiles forward, backward and update into one program. The images are scikit-learn's bundled
digits: 1,797 real scans of 8 x 8 pixels, nothing is downloaded.
"""

import argparse
import functools
import pickle
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits

import functorch_optim as fo
import functorch_optim.stateful as optim

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # the backend comes first

BATCH = 64
console = Console()
Curves = dict[str, dict[str, list[float]]]


# The model, in plain JAX: parameters are a dict, the network is a function.


def init_params(key: jax.Array) -> dict[str, Any]:
    keys = jax.random.split(key, 4)

    def weight(key: jax.Array, *shape: int) -> jax.Array:
        fan_in = int(np.prod(shape[:-1]))
        return jax.random.normal(key, shape) * np.sqrt(2 / fan_in)

    return {
        "base": {
            "conv1": {"kernel": weight(keys[0], 3, 3, 1, 16), "bias": jnp.zeros(16)},
            "conv2": {"kernel": weight(keys[1], 3, 3, 16, 32), "bias": jnp.zeros(32)},
        },
        "classifier": {
            "hidden": {"kernel": weight(keys[2], 4 * 4 * 32, 64), "bias": jnp.zeros(64)},
            "output": {"kernel": weight(keys[3], 64, 10), "bias": jnp.zeros(10)},
        },
    }


def logits(params: dict[str, Any], images: jax.Array) -> jax.Array:
    def conv(layer: dict[str, jax.Array], x: jax.Array, stride: int) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), "SAME", dimension_numbers=numbers
        )
        return jax.nn.relu(x + layer["bias"])

    def dense(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return x @ layer["kernel"] + layer["bias"]

    base, classifier = params["base"], params["classifier"]
    x = conv(base["conv2"], conv(base["conv1"], images, 1), 2)
    x = jax.nn.relu(dense(classifier["hidden"], x.reshape(len(x), -1)))
    return dense(classifier["output"], x)


def loss_fn(params: dict[str, Any], images: jax.Array, labels: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(logits(params, images))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


@jax.jit
def accuracy(params: dict[str, Any], images: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits(params, images), axis=1) == labels)


# The data.


def load() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    digits = load_digits()
    images = (digits.images[..., None] / 16.0).astype(np.float32)
    labels = digits.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1437], order[1437:]
    return (images[train], labels[train]), (images[test], labels[test])


def batches(
    data: tuple[np.ndarray, np.ndarray], seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """An epoch in random order: images (steps, batch, 8, 8, 1), labels (steps, batch)."""
    images, labels = data
    steps = len(images) // BATCH
    order = np.random.default_rng((seed, epoch)).permutation(len(images))[: steps * BATCH]
    return images[order].reshape(steps, BATCH, 8, 8, 1), labels[order].reshape(steps, BATCH)


# Three ways to train.


def train_pure(params: Any, data: Any, epochs: int, seed: int, report: Any) -> Any:
    """(a) A pure pair; a whole epoch is one compiled program."""
    steps = len(data[0]) // BATCH
    schedule = fo.sequential_lr(
        [
            fo.linear_lr(3e-3, start_factor=0.1, total_iters=steps),
            fo.cosine_annealing_lr(3e-3, T_max=max(1, (epochs - 1) * steps)),
        ],
        milestones=[steps],
    )
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(schedule))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_epoch(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
            updates, state = tx.update(grads, state, params)
            return (fo.apply_updates(params, updates), state), loss

        (params, state), losses = jax.lax.scan(step, (params, state), (images, labels))
        return params, state, losses

    params = jax.tree.map(jnp.copy, params)  # train_epoch reuses the memory of what it is given
    state = tx.init(params)
    for epoch in range(epochs):
        params, state, losses = train_epoch(params, state, *batches(data, seed, epoch))
        report(losses, [schedule(epoch * steps + i) for i in range(steps)])
    return params


def build_sgd(params: Any, epochs: int) -> tuple[Any, Any, Any]:
    model = optim.parameters(params)
    opt = optim.SGD(
        [{"params": model["base"]}, {"params": model["classifier"], "lr": 0.05}],
        lr=0.02,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
    )
    return model, opt, optim.lr_scheduler.CosineAnnealingLR(opt, T_max=epochs)


def train_stateful(
    params: Any, data: Any, epochs: int, seed: int, report: Any, checkpoint: Path
) -> Any:
    """(b) torch's loop: backward, step, zero_grad, scheduler."""
    model, opt, scheduler = build_sgd(params, epochs)

    def train_epoch(model: Any, opt: Any, scheduler: Any, epoch: int) -> list[jax.Array]:
        losses = []
        for images, labels in zip(*batches(data, seed, epoch), strict=True):
            losses.append(optim.backward(loss_fn, model, images, labels))
            opt.step()
            opt.zero_grad()
        scheduler.step()
        return losses

    for epoch in range(epochs):
        lr = opt.param_groups[0]["lr"]
        if epoch == epochs // 2:
            # Save, rebuild everything from the file, and go on with both for one epoch.
            saved = {
                "model": optim.values(model),
                "optimizer": opt.state_dict(),
                "scheduler": scheduler.state_dict(),
            }
            checkpoint.write_bytes(pickle.dumps(jax.device_get(saved)))
            uninterrupted = train_epoch(model, opt, scheduler, epoch)

            loaded = pickle.loads(checkpoint.read_bytes())
            model, opt, scheduler = build_sgd(loaded["model"], epochs)
            opt.load_state_dict(loaded["optimizer"])
            scheduler.load_state_dict(loaded["scheduler"])
            losses = train_epoch(model, opt, scheduler, epoch)
            if not np.array_equal(uninterrupted, losses):
                raise SystemExit("the reloaded run differs from the uninterrupted one")
            console.print(f"(b) reloaded after epoch {epoch}: it goes on identically")
        else:
            losses = train_epoch(model, opt, scheduler, epoch)
        report(losses, [lr] * len(losses))
    return optim.values(model)


def train_compiled(params: Any, data: Any, epochs: int, seed: int, report: Any) -> Any:
    """(c) make_step: forward, backward and update in one program; the lr stays a live number."""
    model = optim.parameters(params)
    opt = optim.AdamW(model, lr=2e-3)
    scheduler = optim.lr_scheduler.StepLR(opt, step_size=max(1, epochs // 3), gamma=0.3)
    train_step = opt.make_step(loss_fn, model)
    for epoch in range(epochs):
        lr = opt.param_groups[0]["lr"]
        losses = [
            train_step(images, labels)
            for images, labels in zip(*batches(data, seed, epoch), strict=True)
        ]
        scheduler.step()
        report(losses, [lr] * len(losses))
    return optim.values(model)


# What the user sees.


def draw(curves: Curves, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, curve in curves.items():
        smooth = np.convolve(curve["loss"], np.ones(5) / 5, mode="valid")
        (line,) = left.plot(np.arange(len(smooth)) + 4, smooth, label=name, linewidth=1.4)
        left.plot(curve["loss"], color=line.get_color(), alpha=0.2, linewidth=0.8)
        right.plot(curve["lr"], color=line.get_color(), label=name, linewidth=1.4)
    left.set(title="Training loss", xlabel="step", ylabel="cross-entropy", yscale="log")
    right.set(title="Learning rate", xlabel="step", ylabel="lr", yscale="log")
    right.set_ylim(bottom=1e-4)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on handwritten digits, three ways.")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the data (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order")
    parser.add_argument("--out", type=Path, help="folder for the figure (default: a temporary one)")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error("--epochs should be at least 1")
    epochs, seed = arguments.epochs, arguments.seed
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="digits-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)

    train, test = load()
    params = init_params(jax.random.key(seed))
    ways = {
        "(a) pure pair, scan": train_pure,
        "(b) stateful SGD": functools.partial(train_stateful, checkpoint=out / "halfway.pkl"),
        "(c) make_step, AdamW": train_compiled,
    }
    curves: Curves = {}
    columns = (
        TextColumn("{task.description:<21}"),
        BarColumn(bar_width=30),
        TextColumn("epoch {task.completed:>3.0f}/{task.total:.0f}"),
        TextColumn("loss {task.fields[loss]:.4f}  lr {task.fields[lr]:.2e}"),
        TimeElapsedColumn(),
    )
    accuracies = {}
    with Progress(*columns, console=console) as progress:
        for name, way in ways.items():
            curve = curves[name] = {"loss": [], "lr": []}
            task = progress.add_task(name, total=epochs, loss=float("nan"), lr=float("nan"))

            def report(losses: Any, lrs: Any, curve: Any = curve, task: Any = task) -> None:
                curve["loss"] += [float(x) for x in losses]
                curve["lr"] += [float(x) for x in lrs]
                mean = float(np.mean(curve["loss"][-len(lrs) :]))
                progress.update(task, advance=1, loss=mean, lr=curve["lr"][-1])

            trained = way(params, train, epochs, seed, report)
            accuracies[name] = float(accuracy(trained, *test))
    for name, value in accuracies.items():
        console.print(f"{name:<21} test accuracy {100 * value:.2f} %")
    figure = out / "train_digits.png"
    draw(curves, figure)
    console.print(f"figure: {figure}", soft_wrap=True)


if __name__ == "__main__":
    main()
