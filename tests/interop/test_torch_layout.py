"""Models that changed names and layout on the way: weights, and buffers with them."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim

torch = pytest.importorskip("torch")
interop = importlib.import_module("functorch_optim.interop.torch")

# An embedding, a 1d convolution and a linear layer behind its flattened output (4, 5).
SHAPES = {"embed": (7, 3), "conv.weight": (4, 3, 2), "conv.bias": (4,), "fc.weight": (2, 20)}
NAMES = {
    "embed": "embedding",
    "conv.weight": "layers.conv.kernel",
    "conv.bias": "layers.conv.bias",
    "fc.weight": "head.kernel",
}
TRANSFORMS = [(r"conv\.kernel$", interop.conv), (r"head", interop.flattened_linear(4, 5))]


def there(kind: str, named: bool = True, **kwargs: Any) -> tuple[dict[str, Any], Any]:
    """torch's parameters and their optimizer."""
    torch.manual_seed(0)
    params = {name: torch.randn(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    given = params.items() if named else params.values()
    return params, getattr(torch.optim, kind)(list(given), **kwargs)


def moved(name: str, x: Any) -> np.ndarray:
    """An array of torch's in our layout, written out."""
    x = np.asarray(x)
    if name == "conv.weight":
        return np.stack([[x[:, i, k] for i in range(3)] for k in range(2)])
    if name == "fc.weight":
        return np.stack([x[:, 5 * c + w] for w in range(5) for c in range(4)])
    return x


def here(kind: str, params: Any, **kwargs: Any) -> Any:
    """Our optimizer over a nested tree with the same values."""
    tree: dict[str, Any] = {"layers": {"conv": {}}, "head": {}}
    tree["embedding"] = moved("embed", params["embed"])
    tree["head"]["kernel"] = moved("fc.weight", params["fc.weight"])
    tree["layers"]["conv"]["bias"] = moved("conv.bias", params["conv.bias"])
    tree["layers"]["conv"]["kernel"] = moved("conv.weight", params["conv.weight"])
    model = optim.parameters(tree)
    return model, getattr(optim, kind)(optim.named_parameters(model), **kwargs)


def step_both(params: Any, reference: Any, opt: Any, start: int, count: int) -> None:
    """Steps those that are given with the same gradients."""
    cells = {} if opt is None else dict(zip(*[opt.param_groups[0][k] for k in KEYS], strict=True))
    for step in range(start, start + count):
        for i, (name, p) in enumerate(params.items()):
            g = np.random.RandomState(100 * step + i).standard_normal(p.shape)
            if reference is not None:
                p.grad = torch.tensor(g)
            if opt is not None:
                cells[NAMES[name]].grad = moved(name, g)
        for x in (reference, opt):
            if x is not None:
                x.step()


KEYS = "param_names", "params"


def check_values(model: Any, params: Any) -> None:
    values = interop.weights_to_torch(model, NAMES, TRANSFORMS)
    assert list(values) == list(params)
    for name, x in values.items():
        np.testing.assert_allclose(x, params[name], rtol=1e-12, atol=1e-13)


KINDS = [
    ("SGD", {"momentum": 0.9}),
    ("AdamW", {"amsgrad": True}),
    ("NAdam", {}),
    ("ASGD", {}),
    ("Rprop", {"lr": 0.01}),
]


@pytest.mark.parametrize(("kind", "kwargs"), KINDS, ids=[kind for kind, _ in KINDS])
@pytest.mark.parametrize("named", [True, False])
def test_a_run_moves_to_another_layout_and_back(
    kind: str, kwargs: Any, named: bool, x64: None
) -> None:
    params, stays = there(kind, named, **kwargs)
    step_both(params, stays, None, 0, 3)
    model, opt = here(kind, params, **kwargs)
    names = NAMES if named else list(NAMES.values())
    opt.load_state_dict(
        interop.from_torch(stays.state_dict(), names, TRANSFORMS, like=opt), match="name"
    )
    step_both(params, stays, opt, 3, 3)
    check_values(model, params)
    back = interop.to_torch(opt.state_dict(), names, TRANSFORMS)
    wanted = stays.state_dict()
    assert ("param_names" in back["param_groups"][0]) == named
    assert back["param_groups"] == wanted["param_groups"]
    assert back["state"].keys() == wanted["state"].keys()
    for key, entries in wanted["state"].items():
        assert list(back["state"][key]) == list(entries)
        for name, x in entries.items():
            np.testing.assert_allclose(back["state"][key][name], x, rtol=1e-12, atol=1e-13)
    params2 = {n: x.clone() for n, x in interop.weights_to_torch(model, NAMES, TRANSFORMS).items()}
    given = params2.items() if named else params2.values()
    returned = getattr(torch.optim, kind)(list(given))
    returned.load_state_dict(back)
    step_both(params, stays, None, 6, 3)
    step_both(params2, returned, None, 6, 3)
    for name, x in params.items():
        np.testing.assert_allclose(params2[name], x, rtol=1e-11, atol=1e-12)


def test_with_like_the_state_dict_also_fits_by_position(x64: None) -> None:
    params, reference = there("Adam")
    step_both(params, reference, None, 0, 1)
    _, opt = here("Adam", params)
    got = interop.from_torch(reference.state_dict(), NAMES, TRANSFORMS, like=opt)
    assert got["param_groups"][0]["param_names"] == opt.param_groups[0]["param_names"]
    opt.load_state_dict(got)
    _, again = here("Adam", params)
    again.load_state_dict(
        interop.from_torch(reference.state_dict(), NAMES, TRANSFORMS), match="name"
    )
    for p, q in zip(*[o.param_groups[0]["params"] for o in (opt, again)], strict=True):
        for name, x in opt.state[p].items():
            np.testing.assert_array_equal(again.state[q][name], x)


def test_groups_stay_groups(x64: None) -> None:
    params, _ = there("SGD")
    pairs = list(params.items())
    reference = torch.optim.SGD(
        [{"params": pairs[:1], "lr": 0.5}, {"params": pairs[1:]}], lr=0.1, momentum=0.9
    )
    step_both(params, reference, None, 0, 1)
    model, _ = here("SGD", params)
    groups = optim.group_by_path(model, [("embedding", {"lr": 7.0})])
    opt = optim.SGD(groups, lr=7.0)
    got = interop.from_torch(reference.state_dict(), NAMES, TRANSFORMS, like=opt)
    opt.load_state_dict(got, match="name")
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.1]
    back = interop.to_torch(opt.state_dict(), NAMES, TRANSFORMS)
    assert [g["params"] for g in back["param_groups"]] == [[0], [1, 2, 3]]
    assert [n for g in back["param_groups"] for n in g["param_names"]] == list(SHAPES)
    np.testing.assert_array_equal(
        back["state"][3]["momentum_buffer"], reference.state_dict()["state"][3]["momentum_buffer"]
    )


# L-BFGS.


@pytest.mark.parametrize("complex_too", [False, True])
def test_lbfgs_vectors_are_cut_and_moved(complex_too: bool, x64: None) -> None:
    """Against the parts, moved one by one."""
    shapes = {"w": (2, 3), "c": (2, 2, 3), "z": (3, 2) if complex_too else (1, 2)}
    names = {"w": "linear.kernel", "c": "conv.kernel", "z": "a.kernel"}
    dtypes = {"z": torch.complex128} if complex_too else {}
    rules = [("linear|^a", interop.linear), ("conv", interop.conv)]
    torch.manual_seed(1)
    params = {
        n: torch.randn(s, dtype=dtypes.get(n, torch.float64), requires_grad=True)
        for n, s in shapes.items()
    }
    reference = torch.optim.LBFGS(params.items(), lr=0.1, max_iter=3)

    def closure() -> Any:
        reference.zero_grad()
        loss = sum(((x.abs() - 1) ** 2 * (i + 1)).sum() for i, x in enumerate(params.values()))
        loss.backward()
        return loss.detach()

    reference.step(closure)
    reference.step(closure)
    rows = {names[n]: x.detach().numpy() for n, x in params.items()}
    model = {  # the order here is another one
        "a": {"kernel": rows["a.kernel"].T},
        "conv": {"kernel": rows["conv.kernel"].transpose(2, 1, 0)},
        "linear": {"kernel": rows["linear.kernel"].T},
    }
    opt = optim.LBFGS(optim.named_parameters(optim.parameters(model)))
    saved = reference.state_dict()
    with pytest.raises(ValueError, match=r"L-BFGS keeps vectors .* Give `like`"):
        interop.from_torch(saved, names, rules)
    got = interop.from_torch(saved, names, rules, like=opt)
    opt.load_state_dict(got, match="name")

    def by_hand(vector: Any) -> np.ndarray:
        parts, at = {}, 0
        for name, shape in shapes.items():
            size = int(np.prod(shape)) * (2 if name in dtypes else 1)
            part = np.asarray(vector)[at : at + size]
            at += size
            part = part.view(np.complex128) if name in dtypes else part
            part = part.reshape(shape)
            part = np.ascontiguousarray(part.transpose(2, 1, 0) if part.ndim == 3 else part.T)
            parts[name] = part.view(np.float64).reshape(-1)
        assert at == len(vector)
        return np.concatenate([parts["z"], parts["c"], parts["w"]])

    theirs = saved["state"][0]
    assert len(theirs["old_dirs"]) == 3
    for name in ("d", "prev_flat_grad"):
        np.testing.assert_array_equal(got["state"][0][name], by_hand(theirs[name]))
    for name in ("old_dirs", "old_stps"):
        for x, y in zip(got["state"][0][name], theirs[name], strict=True):
            np.testing.assert_array_equal(x, by_hand(y))
    back = interop.to_torch(opt.state_dict(), names, rules, like=opt)
    assert back["param_groups"][0]["param_names"] == list(shapes)
    for name in ("d", "prev_flat_grad"):
        assert torch.equal(back["state"][0][name], theirs[name])
    for x, y in zip(back["state"][0]["old_dirs"], theirs["old_dirs"], strict=True):
        assert torch.equal(x, y)
    assert back["state"][0]["al"] == [None] * 100


def test_lbfgs_of_another_length_is_refused() -> None:
    state = {"func_evals": 1, "n_iter": 1, "d": torch.ones(5), "old_dirs": [], "old_stps": []}
    saved = {"state": {0: state}, "param_groups": [{"params": [0]}]}
    like = {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match="vectors of 5 numbers, the parameters 6"):
        interop.from_torch(saved, ["w"], [("w", interop.linear)], like=like)


# Adafactor.


def adafactor(shape: tuple[int, ...], transform: Any) -> None:
    torch.manual_seed(2)
    p = torch.randn(shape, dtype=torch.float64)
    reference = torch.optim.Adafactor([("w", p)], lr=0.1)
    q = optim.Parameter(transform.forward(p.numpy()), name="w")
    opt = optim.Adafactor([("w", q)], lr=0.1)

    def step(optimizers: Any, number: int) -> None:
        g = np.random.RandomState(number).standard_normal(shape)
        p.grad, q.grad = torch.tensor(g), np.ascontiguousarray(transform.forward(g))
        for o in optimizers:
            o.step()

    step([reference], 0)
    q.data = np.ascontiguousarray(transform.forward(p.numpy()))
    opt.load_state_dict(
        interop.from_torch(reference.state_dict(), transforms={"w": transform}), match="name"
    )
    for number in range(1, 4):
        step([reference, opt], number)
        np.testing.assert_allclose(transform.inverse(np.asarray(q)), p, rtol=1e-12)
    back = interop.to_torch(opt.state_dict(), transforms={"w": transform})
    for name, x in reference.state_dict()["state"][0].items():
        assert back["state"][0][name].shape == x.shape
        np.testing.assert_allclose(back["state"][0][name], x, rtol=1e-12)


def test_a_transposed_adafactor_swaps_rows_and_columns(x64: None) -> None:
    adafactor((3, 5), interop.linear)


def test_an_adafactor_batch_of_transposed_matrices(x64: None) -> None:
    axes = (1, 0, 3, 2)
    batch = interop.LayoutChange(
        "batch", lambda x: np.transpose(x, axes), lambda x: np.transpose(x, axes), lambda n: axes
    )
    adafactor((2, 3, 4, 5), batch)


@pytest.mark.parametrize("how", ["conv", "function"])
def test_adafactors_means_that_cannot_move_are_refused(how: str) -> None:
    p = torch.ones(2, 3, 4, 5) if how == "conv" else torch.ones(3, 5)
    reference = torch.optim.Adafactor([("w", p)])
    p.grad = torch.ones_like(p)
    reference.step()
    transform = interop.conv if how == "conv" else (np.transpose, np.transpose)
    with pytest.raises(ValueError, match=r"state of w: row_var and col_var are means over"):
        interop.from_torch(reference.state_dict(), transforms=[("w", transform)])


# Ready-made transforms, and one's own.


@pytest.mark.parametrize(
    ("name", "shape", "moved_shape"),
    [
        ("linear", (2, 3), (3, 2)),
        ("conv", (2, 3, 4), (4, 3, 2)),
        ("conv", (2, 3, 4, 5), (4, 5, 3, 2)),
        ("conv", (2, 3, 4, 5, 6), (4, 5, 6, 3, 2)),
        ("conv_transpose", (2, 3, 4), (4, 2, 3)),
        ("conv_transpose", (2, 3, 4, 5), (4, 5, 2, 3)),
        ("identity", (2, 3), (2, 3)),
    ],
)
def test_shapes_and_inverses(name: str, shape: Any, moved_shape: Any) -> None:
    x = np.random.RandomState(0).standard_normal(shape)
    transform = getattr(interop, name)
    assert transform.forward(x).shape == moved_shape
    np.testing.assert_array_equal(transform.inverse(transform.forward(x)), x)


@pytest.mark.parametrize(("name", "ndim"), [("linear", 1), ("linear", 4), ("conv", 2)])
def test_a_transform_names_what_it_is_for(name: str, ndim: int) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is for"):
        interop.weights_from_torch(
            {"w": torch.ones((2,) * ndim)}, transforms=[("w", getattr(interop, name))]
        )


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_are_flaxs(ndim: int, transposed: bool) -> None:
    nn = pytest.importorskip("flax.linen")
    size, stride = (3, 2, 2)[:ndim], (2, 1, 2)[:ndim]
    torch.manual_seed(0)
    kind = f"Conv{'Transpose' if transposed else ''}{ndim}d"
    module = getattr(torch.nn, kind)(3, 4, size, stride)
    x = torch.randn(2, 3, *(5, 4, 3)[:ndim])
    transform = interop.conv_transpose if transposed else interop.conv
    names = {"weight": "params.kernel", "bias": "params.bias"}
    weights = interop.weights_from_torch(module.state_dict(), names, [("weight", transform)])
    layer = (nn.ConvTranspose if transposed else nn.Conv)(4, size, stride, padding="VALID")
    variables = {"params": {name.split(".")[1]: w for name, w in weights.items()}}
    with jax.numpy_rank_promotion("allow"):
        y = layer.apply(variables, jnp.moveaxis(interop.as_array(x), 1, -1))
    wanted = module(x).detach().numpy()
    np.testing.assert_allclose(np.moveaxis(np.asarray(y), -1, 1), wanted, rtol=1e-4, atol=1e-5)


def test_a_flattened_image_reaches_the_same_outputs() -> None:
    torch.manual_seed(0)
    image, weight = torch.randn(2, 4, 3, 5), torch.randn(6, 60)
    kernel = interop.flattened_linear(4, 3, 5).forward(weight.numpy())
    ours = np.moveaxis(image.numpy(), 1, -1).reshape(2, -1) @ kernel
    np.testing.assert_allclose(ours, image.reshape(2, -1) @ weight.T, rtol=1e-5, atol=1e-5)


def test_a_padded_vocabulary_moves_with_its_buffers() -> None:
    def padded(x: Any) -> Any:
        return jnp.pad(x, ((0, 3), (0, 0)))

    p = torch.ones(5, 2)
    reference = torch.optim.Adam([("embed", p)])
    p.grad = torch.ones(5, 2)
    reference.step()
    rule = {"embed": (padded, lambda x: x[:5])}
    got = interop.from_torch(reference.state_dict(), transforms=rule)
    entry = got["state"][0]["exp_avg"]
    assert entry.shape == (8, 2)
    np.testing.assert_array_equal(entry[5:], np.zeros((3, 2)))
    back = interop.to_torch(got, transforms=rule)
    assert torch.equal(back["state"][0]["exp_avg"], reference.state_dict()["state"][0]["exp_avg"])


def minus_one(x: Any) -> Any:
    return x - 1


def rolled(x: Any) -> Any:
    return np.roll(x, 1)


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        ((minus_one, lambda x: x + 1), "minus_one does more than move numbers"),
        ((lambda x: 2 * x, lambda x: x // 2), "a function does more than move numbers"),
        ((rolled, rolled), "the inverse of rolled does not undo it"),
        ((lambda x: x.astype(np.int8), lambda x: x), "its transform makes"),
    ],
)
def test_a_function_that_buffers_cannot_follow_is_refused(transform: Any, words: str) -> None:
    p = torch.ones(5)
    reference = torch.optim.Adam([("w", p)])
    p.grad = torch.ones(5)
    reference.step()
    with pytest.raises((ValueError, TypeError), match=words):
        interop.from_torch(reference.state_dict(), transforms={"w": transform})


def test_of_weights_a_function_may_compute() -> None:
    got = interop.weights_from_torch(
        {"norm": torch.full((2,), 3.0)}, transforms={"norm": (minus_one, lambda x: x + 1)}
    )
    np.testing.assert_array_equal(got["norm"], [2.0, 2.0])


def test_what_is_no_transform_is_refused() -> None:
    with pytest.raises(TypeError, match="a transform is a LayoutChange or a pair"):
        interop.weights_from_torch({"w": torch.ones(2)}, transforms=[("w", np.transpose)])


def test_a_layout_change_has_its_former_name_too() -> None:
    assert interop.Transform is interop.LayoutChange
    assert isinstance(interop.linear, interop.Transform)


def test_state_of_other_shapes_than_the_parameters_stays_or_is_refused() -> None:
    state = {"step": torch.tensor(1.0), "exp_avg": torch.ones(2, 3), "blocks": torch.ones(4)}
    saved = {"state": {0: state}, "param_groups": [{"params": [0]}]}
    kept = interop.from_torch(saved, ["w"])
    assert kept["state"][0]["blocks"].shape == (4,)
    with pytest.raises(ValueError, match="cannot move entries of different shapes"):
        interop.from_torch(saved, ["w"], [("w", interop.linear)])


def test_muons_step_that_depends_on_the_layout_is_told() -> None:
    p = torch.ones(3, 2)
    for adjust, told in (("original", True), ("match_rms_adamw", False)):
        reference = torch.optim.Muon([("w", p)], adjust_lr_fn=adjust)
        p.grad = torch.ones(3, 2)
        reference.step()
        if told:
            with pytest.warns(UserWarning, match="Muon's step of w has the factor"):
                interop.from_torch(reference.state_dict(), transforms={"w": interop.linear})
        else:
            interop.from_torch(reference.state_dict(), transforms={"w": interop.linear})


# Weights.


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.norm = torch.nn.BatchNorm2d(2)


WEIGHT_NAMES = {
    "conv.weight": "params.conv.kernel",
    "conv.bias": "params.conv.bias",
    "norm.weight": "params.norm.scale",
    "norm.bias": "params.norm.bias",
    "norm.running_mean": "batch_stats.norm.mean",
    "norm.running_var": "batch_stats.norm.var",
    "norm.num_batches_tracked": None,
}


def test_weights_go_into_a_tree_and_back() -> None:
    torch.manual_seed(0)
    module = Net()
    layer = {"kernel": jnp.zeros((3, 3, 1, 2)), "bias": jnp.zeros(2)}
    like = {
        "params": {"conv": layer, "norm": {"scale": jnp.zeros(2), "bias": jnp.zeros(2)}},
        "batch_stats": {"norm": {"mean": jnp.zeros(2), "var": jnp.zeros(2)}},
    }
    rules = [(r"conv\.weight", interop.conv)]
    tree = interop.weights_from_torch(module.state_dict(), WEIGHT_NAMES, rules, like=like)
    assert jax.tree.structure(tree) == jax.tree.structure(like)
    np.testing.assert_array_equal(
        tree["params"]["conv"]["kernel"], module.conv.weight.detach().numpy().transpose(2, 3, 1, 0)
    )
    flat = interop.weights_from_torch(module.state_dict(), WEIGHT_NAMES, rules)
    assert list(flat) == [name for name in WEIGHT_NAMES.values() if name]
    for source in (tree, flat, optim.parameters(tree)):
        back = interop.weights_to_torch(source, WEIGHT_NAMES, rules)
        assert list(back) == list(WEIGHT_NAMES)[:-1]
        other = Net()
        other.load_state_dict(back, strict=False)
        assert torch.equal(other.conv.weight, module.conv.weight)


def test_weights_that_do_not_fit_are_all_told() -> None:
    names = {"conv.weight": "a.kernel", "conv.bias": "a.kernel", "norm.weight": "b"}
    state = {name: x for name, x in Net().state_dict().items() if "running" not in name}
    like = {"a": {"kernel": jnp.zeros((3, 3, 2, 1))}, "c": jnp.zeros(2)}
    with pytest.raises(ValueError) as told:
        interop.weights_from_torch(
            state, names, [("conv.weight", interop.conv), ("zz", interop.linear)], like
        )
    for words in (
        "'conv.weight' of shape (2, 1, 3, 3) becomes (3, 3, 1, 2) (conv), but 'a.kernel' has shape "
        "(3, 3, 2, 1)",
        "'conv.weight' and 'conv.bias' are both 'a.kernel'",
        "'norm.weight' goes to 'b', which is not there",
        "torch's 'norm.bias' has no name here: `names` lacks it",
        "nothing comes for 'c'",
        "the transform for 'zz' is used for none of",
    ):
        assert words in str(told.value)


# The dry run, and errors of names.


def test_the_preview_shows_what_goes_where_and_changes_nothing(x64: None) -> None:
    params, reference = there("Adam")
    step_both(params, reference, None, 0, 1)
    model, opt = here("Adam", params)
    before = {n: x.clone() for n, x in params.items()}
    seen = interop.preview(reference.state_dict(), {**NAMES, "old": "x"}, TRANSFORMS, like=opt)
    assert seen.problems == ()
    assert seen.unused == ("old",)
    first, *lines, last = str(seen).splitlines()
    assert first.split() == ["torch", "shape", "transform", "here", "shape", "state"]
    assert len(lines) == 4
    for part in ("conv.weight", "(4, 3, 2)", "conv", "layers.conv.kernel", "(2, 3, 4)"):
        assert part in lines[1]
    assert lines[1].endswith("step exp_avg exp_avg_sq")
    assert last == "unused: 'old'"
    assert all(torch.equal(params[n], x) for n, x in before.items())
    assert len(opt.state) == 0
    fresh = there("SGD")[1]  # no state: the shapes are those of here
    rows = interop.preview(fresh.state_dict(), NAMES, TRANSFORMS, like=model).rows
    assert [row.shape for row in rows] == list(SHAPES.values())
    rows = interop.preview(fresh.state_dict(), NAMES, TRANSFORMS).rows
    assert [row.our_shape for row in rows] == [None] * 4


def test_the_preview_tells_problems() -> None:
    params, reference = there("Adam")
    step_both(params, reference, None, 0, 1)
    _, opt = here("Adam", params)
    names = {k: v for k, v in NAMES.items() if k != "conv.bias"}
    seen = interop.preview(reference.state_dict(), names, TRANSFORMS[:1], like=opt)
    text = str(seen)
    for words in (
        "PROBLEM: torch's 'conv.bias' has no name here: `names` lacks it",
        "PROBLEM: torch's 'fc.weight' of shape (2, 20) becomes (2, 20) (identity), but "
        "'head.kernel' has shape (20, 2)",
        "PROBLEM: nothing comes for 'layers.conv.bias'",
    ):
        assert words in text
    with pytest.raises(ValueError, match="nothing comes for"):
        interop.from_torch(reference.state_dict(), names, TRANSFORMS[:1], like=opt)


def test_errors_of_names() -> None:
    params, reference = there("Adam", named=False)
    state = reference.state_dict()
    with pytest.raises(ValueError, match=r"0 has no name .*: give `names`, ours in torch's order"):
        interop.from_torch(state, transforms=TRANSFORMS)
    with pytest.raises(ValueError, match="torch's 3 has no name here"):
        interop.from_torch(state, list(NAMES.values())[:3])
    with pytest.raises(ValueError, match=r"trained, and cannot be left behind"):
        interop.from_torch(state, dict(enumerate(["a", None, "b", "c"])))
    with pytest.raises(TypeError, match="for an optimizer's state_dict; weights_from_torch"):
        interop.from_torch({"last_epoch": 3}, names={})
    _, opt = here("Adam", params)
    with pytest.raises(ValueError, match=r"no name of torch's for \['head.kernel'\]"):
        interop.to_torch(opt.state_dict(), {k: v for k, v in NAMES.items() if k != "fc.weight"})
    unnamed = optim.Adam([jnp.ones(2)])
    with pytest.raises(ValueError, match="no param_names: build the optimizer with names"):
        interop.to_torch(unnamed.state_dict(), ["w"])
    with pytest.raises(ValueError, match="like: a parameter of the optimizer has no name"):
        interop.to_torch(
            unnamed.state_dict(), ["w"], like=optim.Adam([optim.Parameter(jnp.ones(2))])
        )
    with pytest.raises(ValueError, match="'a' and 'b' are both 'embedding'"):
        interop.to_torch(opt.state_dict(), {"a": "embedding", "b": "embedding"})


def test_an_optimizer_without_names_takes_those_of_like() -> None:
    model = optim.parameters({"b": jnp.ones(2), "a": jnp.ones((2, 3))})
    opt = optim.SGD(model, momentum=0.9)
    for p in (model["a"], model["b"]):
        p.grad = jnp.ones(p.shape)
    opt.step()
    names = {"weight": "a", "bias": "b"}
    back = interop.to_torch(opt.state_dict(), names, [("weight", interop.linear)], like=opt)
    assert back["state"][0]["momentum_buffer"].shape == (3, 2)
    assert back["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_state_that_belongs_to_no_parameter_is_kept() -> None:
    saved = {
        "state": {0: {"exp_avg": torch.ones(2, 3)}, "note": {"x": torch.ones(4)}},
        "param_groups": [{"params": [0]}],
    }
    got = interop.from_torch(saved, ["w"], [("w", interop.linear)])
    assert got["state"][0]["exp_avg"].shape == (3, 2)
    assert got["state"]["note"]["x"].shape == (4,)
