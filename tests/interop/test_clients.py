"""Programs that were written for optax run unchanged with a pair of ours, to the same values.

Each runs for a few steps with our pair and with optax's of the same numbers. A program that is not
installed (the extra `clients`), or that this jax is too new for, is left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from tests.support.problems import assert_trees_close

optax = pytest.importorskip("optax")

pytestmark = [
    pytest.mark.slow,
    # Of the programs, not of ours.
    pytest.mark.filterwarnings("ignore"),
]

X = jnp.asarray(np.random.RandomState(0).standard_normal((8, 3)), jnp.float32)
Y = X @ jnp.array([[1.0], [-2.0], [0.5]]) + 0.3
KEY = jax.random.PRNGKey(0)  # which all of the programs take


@pytest.fixture(autouse=True)
def standard_promotion() -> Iterator[None]:
    """The programs' own arithmetic needs it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def program(name: str) -> Any:
    """A module of a program."""
    try:
        return importlib.import_module(name)
    except (ImportError, AttributeError) as error:  # a name that jax no longer has is the latter
        pytest.skip(f"{name} is not installed, or not for this jax: {error}")


def params() -> Any:
    return {"w": jnp.full((3, 1), 0.1), "b": jnp.zeros(1)}


def loss(params: Any, x: jax.Array = X, y: jax.Array = Y) -> jax.Array:
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def log_density(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum((x - 1.0) ** 2)


def numpyro_svi(tx: Any) -> Any:
    numpyro = program("numpyro")
    infer = program("numpyro.infer")

    def model(x: jax.Array, y: jax.Array) -> None:
        w = numpyro.sample("w", numpyro.distributions.Normal(jnp.zeros(3), 1.0).to_event(1))
        numpyro.sample("y", numpyro.distributions.Normal(x @ w, 0.5).to_event(1), obs=y)

    guide = infer.autoguide.AutoNormal(model)
    svi = infer.SVI(model, guide, tx, infer.Trace_ELBO())
    return svi.run(KEY, 5, X, Y[:, 0], progress_bar=False).params


def gpjax_fit(tx: Any) -> Any:
    gpx = program("gpjax")
    prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Constant(), kernel=gpx.kernels.RBF())
    fitted, _ = gpx.fit(
        model=prior * gpx.likelihoods.Gaussian(),
        objective=lambda model, data: -gpx.objectives.conjugate_mll(model, data),
        train_data=gpx.Dataset(X=X[:, :1], y=Y),
        optim=tx,
        num_iters=4,
        verbose=False,
    )
    return jax.tree.leaves(fitted)


def blackjax_meanfield(tx: Any) -> Any:
    algorithm = program("blackjax").meanfield_vi(log_density, tx, 4)
    state = algorithm.init(jnp.zeros(3))
    for key in jax.random.split(KEY, 4):
        state, _ = jax.jit(algorithm.step)(key, state)
    return state.mu, state.rho


def blackjax_svgd(tx: Any) -> Any:
    algorithm = program("blackjax").svgd(jax.grad(log_density), tx)
    state = algorithm.init(X)
    for _ in range(4):
        state = jax.jit(algorithm.step)(state)
    return state.particles


def flowjax_fit_to_data(tx: Any) -> Any:
    flows, train = program("flowjax.flows"), program("flowjax.train")
    normal = program("flowjax.distributions").Normal(jnp.zeros(3))
    flow = flows.coupling_flow(KEY, base_dist=normal, flow_layers=1, nn_width=4)
    fitted, _ = train.fit_to_data(
        KEY, flow, X, optimizer=tx, max_epochs=3, batch_size=4, show_progress=False
    )
    return [x for x in jax.tree.leaves(fitted) if isinstance(x, jax.Array)]


def optimistix_minimise(tx: Any) -> Any:
    optimistix = program("optimistix")
    solver = optimistix.OptaxMinimiser(tx, rtol=1e-9, atol=1e-9)
    found = optimistix.minimise(
        lambda p, args: loss(p, *args), solver, params(), (X, Y), max_steps=6, throw=False
    )
    return found.value


def jaxopt_solver(tx: Any) -> Any:
    solver = program("jaxopt").OptaxSolver(loss, tx, maxiter=6, tol=0.0)
    return solver.run(params(), X, Y).params


def evosax_open_es(tx: Any) -> Any:
    algorithms = program("evosax.algorithms")
    es = algorithms.Open_ES(population_size=8, solution=params(), optimizer=tx)
    state = es.init(KEY, params(), es.default_params)
    for key in jax.random.split(KEY, 4):
        ask, tell = jax.random.split(key)
        population, state = es.ask(ask, state, es.default_params)
        state, _ = es.tell(tell, population, jax.vmap(loss)(population), state, es.default_params)
    return state.mean


def brax_gradient_update(tx: Any) -> Any:
    gradients = program("brax.training.gradients")
    update = jax.jit(gradients.gradient_update_fn(loss, tx, pmap_axis_name=None))
    values, state = params(), tx.init(params())
    for _ in range(4):
        _, values, state = update(values, X, Y, optimizer_state=state)
    return values


def penzai_trainer(tx: Any) -> Any:
    pz, training = program("penzai.pz"), program("penzai.toolshed.basic_training")
    model = pz.nn.Affine.from_config("affine", KEY, {"in": 3}, {"out": 1})

    def of_model(model: Any, state: Any, rng: Any, x: jax.Array, y: jax.Array) -> Any:
        predicted = model(pz.nx.wrap(x).tag("batch", "in")).unwrap("batch", "out")
        return jnp.mean((predicted - y) ** 2), state, {}

    trainer = training.StatefulTrainer.build(KEY, model, tx, of_model)
    for _ in range(4):
        trainer.step(x=X, y=Y)
    return jax.tree.leaves(pz.freeze_params(pz.unbind_params(model)[1]))


def haiku_loop(tx: Any) -> Any:
    hk = program("haiku")
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 1])(x)))
    values = net.init(KEY, X)
    state = tx.init(values)

    @jax.jit
    def step(values: Any, state: Any) -> Any:
        grads = jax.grad(lambda p: jnp.mean((net.apply(p, X) - Y) ** 2))(values)
        updates, state = tx.update(grads, state, values)
        return optax.apply_updates(values, updates), state

    for _ in range(4):
        values, state = step(values, state)
    return values


def flax_train_state(tx: Any) -> Any:
    train_state = program("flax.training.train_state")
    state = train_state.TrainState.create(apply_fn=None, params=params(), tx=tx)
    for _ in range(4):
        state = jax.jit(lambda s: s.apply_gradients(grads=jax.grad(loss)(s.params)))(state)
    return state.params


def flax_nnx_optimizer(tx: Any) -> Any:
    nnx = program("flax.nnx")
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        value, grads = nnx.value_and_grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model)
        optimizer.update(model, grads, value=value)

    for _ in range(4):
        step(model, optimizer)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def equinox_loop(tx: Any) -> Any:
    eqx = program("equinox")
    model = eqx.nn.MLP(3, 1, 4, 1, key=KEY)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model: Any, state: Any) -> Any:
        grads = eqx.filter_grad(lambda m: jnp.mean((jax.vmap(m)(X) - Y) ** 2))(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    for _ in range(4):
        model, state = step(model, state)
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


CLIENTS: dict[str, Callable[[Any], Any]] = {
    f.__name__: f
    for f in (
        numpyro_svi,
        gpjax_fit,
        blackjax_meanfield,
        blackjax_svgd,
        flowjax_fit_to_data,
        optimistix_minimise,
        jaxopt_solver,
        evosax_open_es,
        brax_gradient_update,
        penzai_trainer,
        haiku_loop,
        flax_train_state,
        flax_nnx_optimizer,
        equinox_loop,
    )
}

# Of both libraries the same numbers. The powers of these betas are exact in float32, in which optax
# subtracts them from 1 (of 0.999 that has an error of 1e-5).
PAIRS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "adam in a chain": lambda: (
        fo.chain(fo.clip_by_value(0.5), fo.adam(0.1, betas=(0.75, 0.9375))),
        optax.chain(optax.clip(0.5), optax.adam(0.1, b1=0.75, b2=0.9375)),
    ),
    "sgd": lambda: (fo.sgd(0.05, momentum=0.9), optax.sgd(0.05, momentum=0.9)),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_program_ends_at_the_same_values(name: str, pair: str) -> None:
    ours, theirs = PAIRS[pair]()
    assert_trees_close(CLIENTS[name](ours), CLIENTS[name](theirs), 1e-5)
