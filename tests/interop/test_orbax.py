"""orbax: parameters, states and state_dicts saved and restored, on other devices, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import functorch_optim as fo
import functorch_optim.stateful as optim
from functorch_optim.interop.orbax import as_state_dict, carried_over
from tests.support.problems import assert_trees_close, at, problem
from tests.tables.algorithms import TABLE as ALGORITHMS
from tests.tables.transforms import TABLE as TRANSFORMS

ocp = pytest.importorskip("orbax.checkpoint")


def saved(path: Path, tree: Any) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def restored(path: Path, *target: Any) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, *target)


def abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def assert_same(actual: Any, wanted: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def after_a_step(tx: Any, **extra: Any) -> tuple[Any, Any, Any]:
    params, grads = problem(steps=1)
    grads = at(grads, 0)
    updates, state = tx.update(grads, tx.init(params), params, **extra)
    return fo.apply_updates(params, updates), state, grads


def states(table: Any) -> Any:
    """`{name: (params, state)}` after a step, for all rows of a table."""
    return {row.name: after_a_step(row.pair(), **getattr(row, "extra", {}))[:2] for row in table}


@pytest.mark.parametrize("table", [ALGORITHMS, TRANSFORMS], ids=["algorithms", "transforms"])
def test_every_state_comes_back(table: Any, tmp_path: Path) -> None:
    everything = states(table)
    path = saved(tmp_path / "all", everything)
    assert_same(restored(path, abstract(everything)), everything)
    # Without a target containers are dicts and lists, and names lead back.
    merged, report = carried_over(restored(path), jax.tree.map(jnp.zeros_like, everything))
    assert_same(merged, everything)
    assert not report.fresh and not report.dropped


def test_the_run_goes_on_and_the_schedule_with_it(tmp_path: Path) -> None:
    tx = fo.named_chain(
        ("adamw", fo.adamw(fo.cosine_annealing_lr(0.1, T_max=10))),
        ("warmup", fo.scale_by_schedule(lambda step: jnp.minimum(step + 1, 4) / 4)),
    )
    params, state, grads = after_a_step(tx)
    path = saved(tmp_path / "run", {"params": params, "state": state})
    wanted, _ = tx.update(grads, state, params)
    run = restored(path, abstract({"params": params, "state": state}))
    got, after = tx.update(grads, run["state"], run["params"])
    assert_same(got, wanted)
    assert (int(after["warmup"].step), int(after["adamw"].step)) == (2, 2)


def test_saved_on_8_devices_restored_on_4(tmp_path: Path) -> None:
    def placed(tree: Any, devices: int) -> Any:
        mesh = Mesh(np.array(jax.devices()[:devices]), ("x",))
        return jax.tree.map(
            lambda x: jax.device_put(
                x, NamedSharding(mesh, PartitionSpec("x") if x.ndim else PartitionSpec())
            ),
            tree,
        )

    tx = fo.adam(0.1)
    params = placed({"w": jnp.arange(16.0).reshape(8, 2)}, 8)
    updates, state = jax.jit(tx.update)(params, placed(tx.init(params), 8), params)
    run = {"params": fo.apply_updates(params, updates), "state": state}
    assert len(state.exp_avg["w"].sharding.device_set) == 8
    path = saved(tmp_path / "sharded", run)

    target = abstract(placed(jax.tree.map(jnp.zeros_like, jax.device_get(run)), 4))
    on_four = restored(path, target)
    assert_same(on_four, run)
    for x, like in zip(jax.tree.leaves(on_four), jax.tree.leaves(target), strict=True):
        assert x.sharding == like.sharding
    updates, _ = jax.jit(tx.update)(on_four["params"], on_four["state"], on_four["params"])
    wanted, _ = jax.jit(tx.update)(run["params"], run["state"], run["params"])
    assert_trees_close(updates, wanted, 1e-6)

    # by name, onto the devices of the fresh state
    fresh = placed(tx.init(jax.device_get(run["params"])), 4)
    merged, _ = carried_over(restored(path)["state"], fresh)
    assert_same(merged, run["state"])
    assert merged.exp_avg["w"].sharding == fresh.exp_avg["w"].sharding


def trained(lr: float = 0.1) -> tuple[Any, Any]:
    model = optim.parameters({"a": jnp.ones((2, 2)), "b": jnp.ones(2)})
    opt = optim.Adam(optim.named_parameters(model), lr=lr, betas=(0.8, 0.9))
    optim.backward(lambda p: jnp.sum(p["a"] ** 2) + jnp.sum(p["b"]), model)
    opt.step()
    return model, opt


@pytest.mark.parametrize("with_target", [False, True])
def test_a_state_dict_by_parts(with_target: bool, tmp_path: Path) -> None:
    model, opt = trained()
    checkpoint = opt.state_dict()
    args = ocp.args
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            tmp_path / "run",
            args.Composite(
                params=args.StandardSave(optim.values(model)),
                state=args.StandardSave(checkpoint["state"]),
                param_groups=args.JsonSave(checkpoint["param_groups"]),
            ),
        )
        target = (
            args.Composite(
                params=args.StandardRestore(abstract(optim.values(model))),
                state=args.StandardRestore(abstract(checkpoint["state"])),
                param_groups=args.JsonRestore(),
            ),
        )
        run = checkpointer.restore(tmp_path / "run", *(target if with_target else ()))

    other, again = trained(lr=0.7)
    for name, p in optim.named_parameters(other):
        p.data = run["params"][name]
    again.load_state_dict(as_state_dict(run))
    assert_same(again.state_dict()["state"], checkpoint["state"])
    assert again.param_groups[0]["lr"] == 0.1
    assert again.param_groups[0]["betas"] == (0.8, 0.9)
    assert again.param_groups[0]["param_names"] == ["a", "b"]
    for opt_, tree in (opt, model), (again, other):
        optim.backward(lambda p: jnp.sum(p["a"] ** 2), tree)
        opt_.step()
    assert_same(optim.values(other), optim.values(model))


def test_a_member_was_added_and_another_removed(tmp_path: Path) -> None:
    old = fo.named_chain(("trace", fo.trace(0.5)), ("adam", fo.adam(0.1)))
    new = fo.named_chain(("adam", fo.adam(0.1)), ("slow", fo.scale_by_schedule(lambda step: 0.5)))
    params, state, grads = after_a_step(old)
    path = saved(tmp_path / "old", state)
    for source in state, restored(path):
        merged, report = carried_over(source, new.init(params))
        assert_same(merged["adam"], state["adam"])
        assert merged["slow"].step == 0
        assert report.fresh == ("slow.step",)
        assert report.dropped == ("trace.step", "trace.trace.kernel", "trace.trace.rest.0")
        assert "adam.exp_avg.rest.0" in report.kept and len(report.kept) == 5
        new.update(grads, merged, params)


def test_carried_over_refuses_another_shape_or_dtype() -> None:
    fresh = {"a": jnp.zeros(3), "b": jnp.zeros(2), "c": jnp.zeros(1)}
    other = {"a": jnp.zeros(2), "b": jnp.zeros(2, jnp.bfloat16), "c": jnp.ones(1)}
    with pytest.raises(ValueError) as error:
        carried_over(other, fresh)
    for part in "a: saved float32[2], fresh float32[3]", "b: saved bfloat16[2], fresh float32[2]":
        assert part in str(error.value)
    assert "c: " not in str(error.value)


def test_carried_over_of_plain_numbers() -> None:
    merged, report = carried_over({"n": 3, "x": np.ones(2)}, {"n": 0, "x": np.zeros(2)})
    assert merged["n"] == 3
    np.testing.assert_array_equal(merged["x"], [1, 1])
    assert report == (("n", "x"), (), ())


@pytest.mark.parametrize(
    ("restored", "words"),
    [
        (None, "but got a NoneType"),
        ({"state": {}}, r"but got a mapping of \['state'\]"),
        ({"state": [], "param_groups": []}, "the 'state' is a dict by parameter, but got a list"),
        ({"state": {"x": {}}, "param_groups": []}, "but got a mapping of .* for 'x'"),
        ({"state": {"0": None}, "param_groups": []}, "but got a NoneType for '0'"),
        ({"state": {}, "param_groups": {}}, "are a list of dicts, but got a mapping of"),
        ({"state": {}, "param_groups": [1]}, "are a list of dicts, but got a list"),
    ],
)
def test_what_is_no_state_dict_is_refused(restored: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        as_state_dict(restored)
