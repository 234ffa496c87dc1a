"""SparseAdam: the pair and the class against a loop in numpy and against torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import functorch_optim as fo
import functorch_optim.stateful as optim
from functorch_optim.algorithms.sparse_adam import SparseAdamState, sparse_adam
from functorch_optim.stateful.classes import SparseAdam
from tests.support.stateful import numbers

SHAPE = (9, 3)
SLOTS = 6
DENSE_ERROR = "SparseAdam does not support dense gradients, please consider Adam instead"
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"lr": 0.1, "maximize": True},
    {"lr": 0.05, "betas": (0.5, 0.9), "eps": 0.1},
    {"lr": 0.01, "betas": (0, 0.99)},
)


def gradients(steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`(rows, ids)`: with repetitions, with a row of zeros, and without any row at step 3."""
    random = np.random.RandomState(3)
    for step in range(steps):
        count = 0 if step == 3 else SLOTS
        data = random.standard_normal((count, SHAPE[1]))
        data[1:2] = 0
        yield data, random.randint(0, SHAPE[0], count)


def bcoo(data: np.ndarray, ids: np.ndarray, dtype: Any = np.float64) -> BCOO:
    """Always of `SLOTS` rows: unused ones are out of range."""
    padded = np.full((SLOTS, *data.shape[1:]), 77.0)
    padded[: len(data)] = data
    indices = np.full((SLOTS, 1), SHAPE[0])
    indices[: len(ids), 0] = ids
    return BCOO((jnp.asarray(padded, dtype), jnp.asarray(indices)), shape=SHAPE)


def reference(
    p: np.ndarray,
    steps: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    maximize: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p, m, v = np.array(p), np.zeros(SHAPE), np.zeros(SHAPE)
    for t, (data, ids) in enumerate(gradients(steps), start=1):
        size = lr * np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
        for row in sorted(set(ids.tolist())):
            g = sum(x for x, where in zip(data, ids, strict=True) if where == row)
            g = -g if maximize else g
            m[row] += (1 - betas[0]) * (g - m[row])
            v[row] += (1 - betas[1]) * (g * g - v[row])
            p[row] -= size * m[row] / (np.sqrt(v[row]) + eps)
    return p, m, v


def trained(tx: Any, p: Any, steps: int) -> tuple[Any, Any]:
    @jax.jit
    def step(p: Any, state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, p)
        assert isinstance(updates, BCOO)
        return fo.apply_updates(p, updates), state

    state = tx.init(p)
    for data, ids in gradients(steps):
        p, state = step(p, state, bcoo(data, ids))
    assert step._cache_size() == 1
    return p, state


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fifty_steps_are_those_of_the_formula(options: Any, x64: None) -> None:
    start = numbers(0, SHAPE, np.float64)
    p, state = trained(sparse_adam(**options), jnp.asarray(start), 50)
    wanted = reference(start, 50, **options)
    for got, want in zip((p, state.exp_avg, state.exp_avg_sq), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    assert state.step == 50


def torch_gradient(torch: Any, data: np.ndarray, ids: np.ndarray) -> Any:
    return torch.sparse_coo_tensor(
        torch.from_numpy(ids[None]), torch.from_numpy(data), SHAPE, check_invariants=True
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fifty_steps_are_torchs(options: Any, x64: None) -> None:
    """The pair and the class, whose state_dicts go both ways after 30 steps."""
    torch = pytest.importorskip("torch")
    start = numbers(0, SHAPE, np.float64)
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    ours = optim.Parameter(start)
    their_opt = torch.optim.SparseAdam([theirs], **options)
    our_opt = SparseAdam([ours], **options)
    for step, (data, ids) in enumerate(gradients(50)):
        theirs.grad = torch_gradient(torch, data, ids)
        ours.grad = bcoo(data, ids)
        their_opt.step()
        our_opt.step()
        if step == 29:
            before = torch.optim.SparseAdam([theirs]), SparseAdam([ours])
            given = our_opt.state_dict()
            assert type(given["state"][0]["step"]) is int
            before[0].load_state_dict(with_tensors(torch, given))
            before[1].load_state_dict(with_numpy(copy.deepcopy(their_opt.state_dict())))
            assert type(their_opt.state_dict()["state"][0]["step"]) is int
            assert list(given["state"][0]) == list(their_opt.state_dict()["state"][0])
            their_opt, our_opt = before
    np.testing.assert_allclose(ours.data, theirs.detach().numpy(), rtol=1e-12, atol=1e-14)
    for name in ("exp_avg", "exp_avg_sq"):
        want = their_opt.state[theirs][name].numpy()
        np.testing.assert_allclose(our_opt.state[ours][name], want, rtol=1e-12, atol=1e-14)
    assert our_opt.state[ours]["step"] == their_opt.state[theirs]["step"] == 50
    assert our_opt.compile_count == 0  # it went on with the program of the one before
    pair, _ = trained(sparse_adam(**options), jnp.asarray(start), 50)
    np.testing.assert_allclose(pair, theirs.detach().numpy(), rtol=1e-12, atol=1e-14)


def with_tensors(torch: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: with_tensors(torch, value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [with_tensors(torch, item) for item in tree]
    return torch.from_numpy(np.array(tree)) if isinstance(tree, jax.Array) else tree


def with_numpy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: with_numpy(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [with_numpy(item) for item in tree]
    return tree.numpy() if hasattr(tree, "numpy") else tree


def test_rows_without_gradient_keep_everything() -> None:
    p = jnp.asarray(numbers(0, SHAPE))
    tx = sparse_adam(0.1)
    full = BCOO((jnp.ones(SHAPE), jnp.arange(SHAPE[0])[:, None]), shape=SHAPE)
    updates, state = tx.update(full, tx.init(p), p)
    one = BCOO((jnp.ones((1, 3)), jnp.asarray([[4]])), shape=SHAPE)
    updates, new = tx.update(one, state, p)
    moved = np.arange(SHAPE[0]) == 4
    for before, after in (
        (p, fo.apply_updates(p, updates)),
        (state.exp_avg, new.exp_avg),
        (state.exp_avg_sq, new.exp_avg_sq),
    ):
        np.testing.assert_array_equal(np.any(np.asarray(before != after), axis=1), moved)


def test_single_elements_are_entries_too() -> None:
    p = jnp.zeros((2, 3))
    tx = sparse_adam(0.1, eps=1e-30)
    g = BCOO((jnp.asarray([5.0, 3.0]), jnp.asarray([[1, 2], [1, -1]])), shape=(2, 3))
    updates, state = tx.update(g, tx.init(p), p)
    np.testing.assert_allclose(updates.todense(), [[0, 0, 0], [0, 0, -0.1]], rtol=1e-5)
    np.testing.assert_allclose(state.exp_avg, [[0, 0, 0], [0, 0, 0.8]], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_are_kept(dtype: str) -> None:
    p = jnp.asarray(numbers(0, SHAPE), dtype)
    (data, ids), *_ = gradients(1)
    tx = sparse_adam(0.1, eps=1e-3)
    exact, narrow = (
        tx.update(bcoo(data, ids, np.float32).astype(kind), tx.init(p.astype(kind)), p.astype(kind))
        for kind in (np.float32, dtype)
    )
    updates, state = narrow
    for x, y in zip(jax.tree.leaves(narrow), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(x.astype(np.float32), y.astype(np.float32), rtol=0.02)
    assert {updates.dtype, state.exp_avg.dtype, state.exp_avg_sq.dtype} == {jnp.dtype(dtype)}
    assert state.step.dtype == np.int32


def test_scan_vmap_and_derivatives(x64: None) -> None:
    p = jnp.asarray(numbers(0, SHAPE, np.float64))
    every = [bcoo(data, ids) for data, ids in gradients(5)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *every)

    @jax.jit
    def run(p: Any, lr: Any, grads: Any) -> Any:
        tx = sparse_adam(lr)

        def body(carry: Any, g: Any) -> Any:
            updates, state = tx.update(g, carry[1], carry[0])
            return (fo.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(body, (p, tx.init(p)), grads)[0]

    wanted = reference(np.asarray(p), 5, lr=0.1)[0]
    np.testing.assert_allclose(run(p, 0.1, stacked)[0], wanted, rtol=1e-12)

    lrs = jnp.asarray([0.1, 0.2])
    both = jax.vmap(lambda lr: run(p, lr, stacked)[0])(lrs)
    np.testing.assert_allclose(both[0], wanted, rtol=1e-12)
    np.testing.assert_allclose(both[1], reference(np.asarray(p), 5, lr=0.2)[0], rtol=1e-12)
    tables = jnp.stack([p, 2 * p])
    apart = jax.vmap(lambda p: run(p, 0.1, stacked)[0])(tables)
    np.testing.assert_allclose(apart[0], wanted, rtol=1e-12)
    # A BCOO array is mapped along its batch axis.
    tx = sparse_adam(0.1)
    data, indices = (
        jnp.stack([getattr(g, name) for g in every[:2]]) for name in ("data", "indices")
    )
    batched = BCOO((data, indices), shape=(2, *SHAPE))

    @jax.jit
    def update(g: Any, p: Any) -> Any:
        return tx.update(g, tx.init(p), p)

    updates, state = jax.jit(jax.vmap(update))(batched, tables)
    assert isinstance(updates, BCOO)
    for i in range(2):
        alone, its_state = update(every[i], tables[i])
        np.testing.assert_allclose(updates.todense()[i], alone.todense(), rtol=1e-12)
        np.testing.assert_allclose(state.exp_avg_sq[i], its_state.exp_avg_sq, rtol=1e-12)

    slope = jax.grad(lambda lr: jnp.sum(run(p, lr, stacked)[0] ** 2))(0.1)
    near = [np.sum(reference(np.asarray(p), 5, lr=0.1 + d)[0] ** 2) for d in (1e-6, -1e-6)]
    np.testing.assert_allclose(slope, (near[0] - near[1]) / 2e-6, rtol=1e-6)


def test_trees_and_leaves_that_are_skipped() -> None:
    params = {"a": jnp.ones(SHAPE), "b": None, "c": jnp.arange(3), "d": jnp.ones(SHAPE)}
    (data, ids), *_ = gradients(1)
    grads = {"a": bcoo(data, ids, np.float32), "b": None, "c": None, "d": None}
    tx = sparse_adam(0.1)
    updates, state = tx.update(grads, tx.init(params), params)
    assert (updates["b"], updates["c"], updates["d"]) == (None, None, None)
    assert (state.exp_avg["b"], state.exp_avg["c"]) == (None, None)
    assert isinstance(state, SparseAdamState)
    assert not np.any(state.exp_avg["d"])
    without, _ = tx.update(grads, tx.init(params))
    np.testing.assert_array_equal(without["a"].todense(), updates["a"].todense())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, "Invalid learning rate: 0.0"),
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"lr": np.ones(2)}, "Tensor lr must be 1-element"),
        ({"eps": 0.0}, "Invalid epsilon value: 0.0"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -1)}, "Invalid beta parameter at index 1: -1"),
        ({"lr": 0.0, "eps": 0.0}, "Invalid learning rate: 0.0"),
        ({"eps": 0.0, "betas": (1.0, 0.9)}, "Invalid epsilon value: 0.0"),
    ],
    ids=str,
)
def test_bad_values_are_refused_in_torchs_words(options: Any, words: str) -> None:
    for build in (sparse_adam, lambda **kwargs: SparseAdam([optim.Parameter([1.0])], **kwargs)):
        with pytest.raises(ValueError) as error:
            build(**options)
        assert str(error.value) == words
    torch = pytest.importorskip("torch")
    given = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    with pytest.raises(ValueError) as error:
        torch.optim.SparseAdam([torch.nn.Parameter(torch.ones(1))], **given)
    assert str(error.value) == words


def test_dense_gradients_are_refused() -> None:
    p = jnp.ones(SHAPE)
    tx = sparse_adam()
    with pytest.raises(RuntimeError, match=f"^{DENSE_ERROR}$"):
        tx.update(p, tx.init(p), p)
    cell = optim.Parameter(np.ones(SHAPE))
    opt = SparseAdam([cell])
    cell.grad = p
    with pytest.raises(RuntimeError, match=f"^{DENSE_ERROR}$"):
        opt.step()
    with pytest.raises(RuntimeError, match=f"^{DENSE_ERROR}"):  # and notes of the tracing
        opt.make_step(lambda p: jnp.sum(p), cell)()
    np.testing.assert_array_equal(cell.data, 1)
    assert opt.state == {}


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^SparseAdam does not support complex parameters$"):
        sparse_adam().init(jnp.ones(2, jnp.complex64))
    real, other = optim.Parameter(np.ones(2)), optim.Parameter(np.ones(2))
    bad = optim.Parameter(np.ones(2, np.complex64))
    groups = [{"params": [real]}, {"params": [other, bad]}]
    words = "Complex params at indices [[1, 1]]: SparseAdam does not support complex parameters"
    with pytest.raises(ValueError) as error:
        SparseAdam(groups)
    assert str(error.value) == words


def test_a_state_of_another_shape_is_refused() -> None:
    tx = sparse_adam()
    (data, ids), *_ = gradients(1)
    p = jnp.ones(SHAPE)
    with pytest.raises(ValueError, match=r"exp_avg has shape \(8, 3\)"):
        tx.update(bcoo(data, ids, np.float32), tx.init(p[1:]), p)


def test_the_class_has_torchs_groups_and_counts_steps_without_rows() -> None:
    cell = optim.Parameter(np.ones(SHAPE))
    opt = SparseAdam([cell], maximize=True)
    assert [*opt.param_groups[0]] == ["params", "lr", "betas", "eps", "maximize"]
    cell.grad = bcoo(np.zeros((0, 3)), np.zeros(0), np.float32)
    opt.step()
    opt.zero_grad(set_to_none=False)
    opt.step()
    np.testing.assert_array_equal(cell.data, 1)
    assert opt.state[cell]["step"] == 2


def test_steps_of_the_class_reuse_memory_and_keep_what_was_read() -> None:
    cell = optim.Parameter(np.ones(SHAPE))
    opt = SparseAdam([cell], lr=0.1)
    (data, ids), *_ = gradients(1)
    cell.grad = bcoo(data, ids, np.float32)
    opt.step()
    read, state = cell.data, opt.state_dict()
    values = np.array(read), np.array(state["state"][0]["exp_avg"])
    opt.step()
    np.testing.assert_array_equal(read, values[0])
    np.testing.assert_array_equal(state["state"][0]["exp_avg"], values[1])
    del read, state
    place = cell._data.unsafe_buffer_pointer()
    opt.step()
    opt.step()
    assert cell._data.unsafe_buffer_pointer() == place


def test_to_functional_and_back() -> None:
    cell = optim.Parameter(np.ones(SHAPE))
    opt = SparseAdam([cell], lr=0.1)
    (data, ids), *_ = gradients(1)
    g = bcoo(data, ids, np.float32)
    opt.step([g])
    tx, params, state = opt.to_functional()
    updates, state = tx.update([g], state, params)
    opt.from_functional(fo.apply_updates(params, updates), state)
    opt.step([g])
    other = optim.Parameter(np.ones(SHAPE))
    twin = SparseAdam([other], lr=0.1)
    for _ in range(3):
        twin.step([g])
    np.testing.assert_allclose(cell.data, other.data, rtol=1e-6)
    assert opt.state[cell]["step"] == 3
