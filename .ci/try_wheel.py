"""Tries an installed package as its users do: a pair, torch's face, and no other package needed."""

import importlib.metadata
import pathlib

import jax
import jax.numpy as jnp

import functorch_optim as fo
import functorch_optim.stateful as optim

installed = pathlib.Path(fo.__file__)
assert "site-packages" in installed.parts, f"this is not the installed package: {installed}"


def loss_fn(params: dict[str, jax.Array]) -> jax.Array:
    return jnp.sum((params["w"] - 1.0) ** 2)


tx = fo.chain(fo.clip_by_global_norm(10.0), fo.adam(0.1))
params = {"w": jnp.zeros(3)}
state = tx.init(params)
for _ in range(100):
    updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
    params = fo.apply_updates(params, updates)
assert loss_fn(params) < 1e-2

model = optim.parameters({"w": jnp.zeros(3)})
opt = optim.SGD(model, lr=0.1, momentum=0.5)
scheduler = optim.lr_scheduler.StepLR(opt, step_size=50)
train_step = opt.make_step(loss_fn, model)
for _ in range(50):
    loss = optim.backward(loss_fn, model)
    opt.step()
    opt.zero_grad()
    scheduler.step()
assert train_step() < 1e-2
opt.load_state_dict(opt.state_dict())
print("functorch_optim", importlib.metadata.version("functorch_optim"), "works")
