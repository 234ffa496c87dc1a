"""Begin in torch, go on in flax: one training run on handwritten digits that moves halfway.

    python docs/examples/resume_from_torch.py [--epochs 8] [--seed 0] [--out FOLDER]
                                              [--optimizer adamw|sgd] [--dtype float64|float32]

A small convolutional network is trained in torch. Halfway a checkpoint (model, optimizer,
scheduler) is saved; from it a flax model goes on here, and torch goes on as well. Names, the layout
of the weights and of the images differ in the two libraries, so weights and the optimizer's
buffers are transposed on the way. Both losses are drawn: the curves lie on each other. The images
are scikit-learn's bundled digits: 1,797 real scans of 8 x 8 pixels, nothing is downloaded.
"""

import argparse
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
from sklearn.datasets import load_digits

import functorch_optim.stateful as optim

try:
    import torch
    from flax import linen

    from functorch_optim.interop.torch import (
        conv,
        flattened_linear,
        from_torch,
        linear,
        load,
        preview,
        weights_from_torch,
        weights_to_torch,
    )
except ImportError as error:
    raise SystemExit(
        'this example needs torch and flax: pip install "functorch_optim[examples,torch,flax]"'
    ) from error

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # the backend comes first

BATCH = 64
console = Console()
Data = tuple[np.ndarray, np.ndarray]


# The network, in torch and in flax.


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.hidden = torch.nn.Linear(16 * 4 * 4, 32)
        self.output = torch.nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.conv1(images).relu()).relu()
        return self.output(self.hidden(x.flatten(1)).relu())


class FlaxNet(linen.Module):
    dtype: Any

    @linen.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        common = {"dtype": self.dtype, "param_dtype": self.dtype}
        x = linen.relu(linen.Conv(8, (3, 3), padding=1, name="conv1", **common)(images))
        x = linen.relu(linen.Conv(16, (3, 3), 2, padding=1, name="conv2", **common)(x))
        x = linen.relu(linen.Dense(32, name="hidden", **common)(x.reshape(len(x), -1)))
        return linen.Dense(10, name="output", **common)(x)


# What is called how, and lies how, over there and here.
NAMES = {
    f"{layer}.{theirs}": f"{layer}.{ours}"
    for layer in ("conv1", "conv2", "hidden", "output")
    for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
}
TRANSFORMS = [
    (r"conv.*kernel", conv),
    (r"hidden\.kernel", flattened_linear(16, 4, 4)),
    (r"kernel", linear),
]


# The data.


def load_data(dtype: str) -> tuple[Data, Data]:
    digits = load_digits()
    images = (digits.images / 16.0).astype(dtype)
    labels = digits.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1437], order[1437:]
    return (images[train], labels[train]), (images[test], labels[test])


def batches(data: Data, seed: int, epoch: int) -> Iterator[Data]:
    """An epoch in random order: images (batch, 8, 8) and labels (batch,)."""
    images, labels = data
    order = np.random.default_rng((seed, epoch)).permutation(len(images))
    for i in range(len(images) // BATCH):
        chosen = order[i * BATCH : (i + 1) * BATCH]
        yield images[chosen], labels[chosen]


# The same run in both libraries.


def build(library: Any, named_parameters: Any, optimizer: str, epochs: int) -> tuple[Any, Any]:
    """torch.optim or functorch_optim.stateful: the same lines."""
    if optimizer == "adamw":
        opt = library.AdamW(named_parameters, lr=3e-3, weight_decay=0.01)
    else:
        opt = library.SGD(named_parameters, lr=0.05, momentum=0.9, weight_decay=1e-4)
    return opt, library.lr_scheduler.CosineAnnealingLR(opt, T_max=epochs)


def train_torch(
    net: TorchNet, opt: Any, scheduler: Any, data: Data, seed: int, epochs: range
) -> list[float]:
    losses = []
    for epoch in track(epochs, "torch", console=console):
        for images, labels in batches(data, seed, epoch):
            opt.zero_grad()
            logits = net(torch.from_numpy(images)[:, None])
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
            loss.backward()
            opt.step()
            losses.append(loss.item())
        scheduler.step()
    return losses


def train_flax(
    net: FlaxNet, model: Any, opt: Any, scheduler: Any, data: Data, seed: int, epochs: range
) -> list[float]:
    def loss_fn(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        log_probabilities = jax.nn.log_softmax(net.apply({"params": params}, images[..., None]))
        return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))

    train_step = opt.make_step(loss_fn, model)
    losses = []
    for epoch in track(epochs, "flax", console=console):
        losses += [train_step(*batch) for batch in batches(data, seed, epoch)]
        scheduler.step()
    return [float(loss) for loss in losses]


def moved(checkpoint: Path, net: FlaxNet, optimizer: str, epochs: int) -> tuple[Any, Any, Any]:
    """The model, its optimizer and its scheduler here, as they were in torch."""
    saved = load(checkpoint)
    like = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    model = optim.parameters(weights_from_torch(saved["model"], NAMES, TRANSFORMS, like=like))
    opt, scheduler = build(optim, optim.named_parameters(model), optimizer, epochs)
    console.print(str(preview(saved["optimizer"], NAMES, TRANSFORMS, like=opt)), soft_wrap=True)
    state = from_torch(saved["optimizer"], NAMES, TRANSFORMS, like=opt)
    opt.load_state_dict(state, match="name")
    scheduler.load_state_dict(saved["scheduler"])
    return model, opt, scheduler


# What the user sees.


def accuracy(net: TorchNet, test: Data) -> float:
    with torch.no_grad():
        found = net(torch.from_numpy(test[0])[:, None]).argmax(1).numpy()
    return float(np.mean(found == test[1]))


def draw(theirs: list[float], ours: list[float], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    start = len(theirs) - len(ours)
    steps = start + np.arange(len(ours))
    left.plot(theirs, label="torch all the way", linewidth=2.4, alpha=0.5)
    left.plot(steps, ours, "--", label="moved to flax", linewidth=1.2, color="black")
    left.set(title="Training loss", xlabel="step", ylabel="cross-entropy", yscale="log")
    left.legend(frameon=False)
    difference = np.abs(np.array(theirs[start:]) - ours)
    right.plot(steps, np.where(difference > 0, difference, np.nan), ".", color="black")
    right.set(title="Difference of the losses, where there is one", xlabel="step", yscale="log")
    for axes in (left, right):
        axes.axvline(start - 0.5, color="gray", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Begin a training run in torch, go on in flax.")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the data (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order")
    parser.add_argument("--out", type=Path, help="folder for the files (default: a temporary one)")
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error("--epochs should be at least 2")
    epochs, seed, dtype = arguments.epochs, arguments.seed, arguments.dtype
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="digits-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", dtype == "float64")
    torch.manual_seed(seed)

    train, test = load_data(dtype)
    net = TorchNet().to(getattr(torch, dtype))
    opt, scheduler = build(torch.optim, net.named_parameters(), arguments.optimizer, epochs)
    first, second = range(epochs // 2), range(epochs // 2, epochs)
    losses = train_torch(net, opt, scheduler, train, seed, first)
    checkpoint = out / "halfway.pt"
    parts = {"model": net, "optimizer": opt, "scheduler": scheduler}
    torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
    losses += train_torch(net, opt, scheduler, train, seed, second)

    flax_net = FlaxNet(dtype)
    model, *rest = moved(checkpoint, flax_net, arguments.optimizer, epochs)
    ours = train_flax(flax_net, model, *rest, train, seed, second)
    returned = TorchNet().to(getattr(torch, dtype))
    returned.load_state_dict(weights_to_torch(model, NAMES, TRANSFORMS))

    largest = np.max(np.abs(np.array(losses[-len(ours) :]) - ours))
    console.print(f"largest difference of {len(ours)} losses: {largest:.1e} ({dtype})")
    console.print(f"test accuracy of torch's model {100 * accuracy(net, test):.2f} %")
    console.print(f"of the one that moved, back in torch {100 * accuracy(returned, test):.2f} %")
    figure = out / "resume_from_torch.png"
    draw(losses, ours, figure)
    console.print(f"figure: {figure}", soft_wrap=True)


if __name__ == "__main__":
    main()
