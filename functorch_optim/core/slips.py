"""What people write who know optax, keras or torch, and what it is called here.

Used once an error is certain: nothing here decides whether something is one.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax

_SEE = "see docs/coming_from_optax"

# Argument elsewhere -> arguments here: the first that a factory has is meant.
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "learning_rate": ("lr", "max_lr", "base_lr"),
    "init_value": ("lr", "base_lr"),
    "peak_value": ("max_lr", "lr"),
    "value": ("lr",),
    "start_value": ("lr",),
    "step_size": ("lr", "factor"),
    "epsilon": ("eps",),
    "weight_decay_rate": ("weight_decay",),
    "l2": ("weight_decay",),
    "wd": ("weight_decay",),
    "decay": ("alpha", "rho", "weight_decay"),
    "beta": ("momentum", "betas"),
    "rho": ("alpha",),
    "alpha": ("eta_min",),
    "end_value": ("eta_min", "end_factor"),
    "decay_rate": ("gamma", "beta2_decay"),
    "decay_steps": ("T_max", "total_iters", "step_size"),
    "transition_steps": ("total_iters", "step_size", "total_steps"),
    "warmup_steps": ("steps", "total_iters"),
    "pct_final": ("pct_start",),
    "boundaries": ("milestones",),
    "boundaries_and_scales": ("milestones",),
    "clipping_threshold": ("d",),
    "threshold": ("max_norm", "max_value"),
    "max_delta": ("max_value",),
    "clip_value": ("max_value",),
    "norm": ("max_norm",),
    "clip_norm": ("max_norm",),
    "clipnorm": ("max_norm",),
    "every_k_schedule": ("every_k",),
    "use_grad_mean": ("average",),
    "max_consecutive_errors": ("max_consecutive",),
    "accumulator_dtype": ("state_dtype",),
    "momentum_dtype": ("state_dtype",),
    "param_labels": ("labels",),
    "inner": ("tx",),
    "opt": ("tx",),
    "optimizer": ("tx",),
    "inner_optimizer": ("tx",),
    "base_optimizer": ("tx",),
    "inner_factory": ("factory",),
    "step_size_fn": ("schedule",),
    "initial_scale": ("initial_accumulator_value",),
    "estim_lr0": ("d0",),
    "estim_lr_coef": ("d_coef",),
    "ns_coeffs": ("ns_coefficients",),
    "memory_size": ("history_size",),
    "seed": ("key",),
    "axis": ("unit_axis",),
    "T_mul": ("T_mult",),
    "milestone": ("milestones",),
}

# Arguments that are something else here.
_ELSEWHERE: Mapping[str, str] = {
    "mask": "write masked(pair, mask), or partition for a weight decay of some leaves only",
    "weight_decay_mask": "use partition: one pair with weight decay and one without",
    "exclude_from_weight_decay": "use partition: one pair with weight decay and one without",
    "mu_dtype": "write float32_state(pair) for a state in float32",
    "accumulator_dtype": "write float32_state(pair) for a state in float32",
    "momentum_dtype": "write float32_state(pair) for a state in float32",
    "eps_root": "eps is added outside of the root, as in torch; there is none inside: leave it out",
    "eps_in_sqrt": "eps is added outside of the root, as in torch: leave it out",
    "nesterov": "Adam with Nesterov's momentum is nadam; sgd, lars and muon have the flag",
    "momentum": "only sgd, rmsprop, lars and muon have a momentum; trace(decay) is one in a chain",
    "bias_correction": "this algorithm has no such choice: leave it out",
    "fast_optimizer": "write chain(pair, lookahead(sync_period, slow_step_size))",
    "foreach": "XLA always fuses: leave it out",
    "fused": "XLA always fuses: leave it out",
    "capturable": "every pair compiles: leave it out",
    "differentiable": "every pair is differentiable: leave it out",
    "params": "a pair takes no parameters: write state = tx.init(params)",
    "parameters": "a pair takes no parameters: write state = tx.init(params)",
    "clipnorm": "write chain(clip_by_leaf_norm(max_norm), pair)",
    "global_clipnorm": "write chain(clip_by_global_norm(max_norm), pair)",
    "clipvalue": "write chain(clip_by_value(max_value), pair)",
    "clip_norm": "write chain(clip_by_global_norm(max_norm), pair)",
    "grad_clip_norm": "write chain(clip_by_global_norm(max_norm), pair)",
    "gradient_accumulation_steps": "write accumulate(pair, every_k)",
    "use_ema": "averages of weights are pairs of their own: ema_average(decay)",
    "ema_momentum": "averages of weights are pairs of their own: ema_average(decay)",
    "last_epoch": "a schedule is a function of the step count, and starts where that does",
    "verbose": "leave it out: plot_schedule(schedule, steps) shows the values",
}

# optax's coefficients of running averages, keras's and other spellings, by their number.
_COEFFICIENTS = {
    **{f"b{i}": i for i in (1, 2, 3)},
    **{f"beta{i}": i for i in (1, 2, 3)},
    **{f"beta_{i}": i for i in (1, 2, 3)},
}

# Functions and classes elsewhere -> what does it here.
NAMES: Mapping[str, str] = {
    "MultiSteps": "accumulate(tx, every_k)",
    "apply_every": "accumulate(tx, every_k)",
    "multi_transform": "partition(transforms, labels)",
    "set_to_zero": "freeze()",
    "identity": "chain()",
    "apply_if_finite": "skip_nonfinite(tx, max_consecutive)",
    "skip_not_finite": "skip_nonfinite(tx, max_consecutive)",
    "conditionally_mask": "skip_nonfinite(tx), or lax.cond around tx.update",
    "clip": "clip_by_value(max_value)",
    "adaptive_gradient_clip": "adaptive_grad_clip(clipping)",
    "clip_by_block_rms": "clip_by_leaf_norm(max_norm), of the norm instead of its mean",
    "per_example_global_norm_clip": "clip_by_global_norm under jax.vmap",
    "clip_grad_norm": "clip_by_global_norm(max_norm), or functorch_optim.stateful.clip_grad_norm_",
    "clip_grad_norm_": "clip_by_global_norm(max_norm), or functorch_optim.stateful.clip_grad_norm_",
    "clip_grad_value_": "clip_by_value(max_value), or functorch_optim.stateful.clip_grad_value_",
    "scale_by_learning_rate": "scale(-lr), or scale_by_schedule(lambda step: -schedule(step))",
    "scale_by_trust_ratio": "trust_ratio(coefficient)",
    "scale_by_sign": "sign()",
    "reduce_on_plateau": "scale_by_plateau(), or reduce_lr_on_plateau(lr)",
    "centralize_gradients": "centralize()",
    "adamaxw": "adamax(lr, weight_decay=...), whose decay is coupled",
    "nadamw": "nadam(decoupled_weight_decay=True)",
    "radamw": "radam(decoupled_weight_decay=True)",
    "amsgrad": "adam(amsgrad=True)",
    "sign_sgd": "chain(sign(), sgd(lr))",
    "signum": "chain(trace(decay), sign(), scale(-lr))",
    "momentum": "sgd(lr, momentum)",
    "incremental_update": "ema_average(decay)",
    "EMA": "ema_average(decay), or ema(decay) for updates",
    "AveragedModel": "swa_average(), or functorch_optim.stateful.swa_utils.AveragedModel",
    "noisy_sgd": "chain(add_noise(eta, gamma, key), sgd(lr))",
    "stateless": "GradientTransformation(init, update)",
    "GradientTransformationExtraArgs": "GradientTransformation: each update takes extra arguments",
    "inject_stateful_hyperparams": "inject_hyperparams(factory)",
    "InjectHyperparamsState": "InjectState",
    "join_schedules": "sequential_lr(schedules, milestones)",
    "constant_schedule": "the number itself, or constant_lr(lr, factor, total_iters)",
    "linear_schedule": "linear_lr(lr, start_factor, end_factor, total_iters)",
    "polynomial_schedule": "polynomial_lr(lr, total_iters, power)",
    "exponential_decay": "exponential_lr(lr, gamma), or step_lr(lr, step_size, gamma) for stairs",
    "cosine_decay_schedule": "cosine_annealing_lr(lr, T_max, eta_min)",
    "CosineDecay": "cosine_annealing_lr(lr, T_max, eta_min)",
    "warmup_cosine_decay_schedule": "warmup(cosine_annealing_lr(lr, decay_steps - steps), steps)",
    "warmup_constant_schedule": "warmup(constant_lr(lr, 1.0), steps)",
    "warmup_exponential_decay_schedule": "warmup(exponential_lr(lr, gamma), steps)",
    "piecewise_constant_schedule": "multi_step_lr(lr, milestones, gamma)",
    "piecewise_interpolate_schedule": "sequential_lr(schedules, milestones)",
    "cosine_onecycle_schedule": "one_cycle_lr(max_lr, total_steps)",
    "linear_onecycle_schedule": 'one_cycle_lr(max_lr, total_steps, anneal_strategy="linear")',
    "sgdr_schedule": "cosine_annealing_warm_restarts(lr, T_0, T_mult)",
    "lr_scheduler": "functorch_optim.stateful.lr_scheduler; schedules are functions here",
    "swa_utils": "functorch_optim.stateful.swa_utils; swa_average() and ema_average() are pairs",
    "Parameter": "functorch_optim.stateful.Parameter",
    "parameters": "functorch_optim.stateful.parameters(tree)",
    "backward": "functorch_optim.stateful.backward(loss_fn, model)",
    "Optimizer": "functorch_optim.stateful.Optimizer; pairs are built by adam(...), sgd(...)",
    "value_and_grad_from_state": "lbfgs, whose update takes value_and_grad_fn",
    "tree_utils": "optax's own functions, which take these states",
    "contrib": "the package itself: muon, prodigy, adopt and schedule_free are here",
}


def bound_arguments(
    name: str, signature: inspect.Signature, args: Any, kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """The arguments of a call by their names.

    Raises:
      TypeError: they do not fit. The function is named, and for an argument that is called
        otherwise elsewhere what to write.
    """
    if args and hasattr(args[0], "param_groups"):
        raise TypeError(
            f"{name}() takes no optimizer, but got a {type(args[0]).__name__}. Schedules and pairs "
            "are functions; torch's schedulers, StepLR(optimizer, ...) and the others, are in "
            "functorch_optim.stateful.lr_scheduler"
        )
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}() {_first_problem(signature, kwargs, error)}") from None


def _first_problem(
    signature: inspect.Signature, kwargs: Mapping[str, Any], error: TypeError
) -> str:
    """What is wrong with a call; a word that the function has not comes before one it misses."""
    parameters = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for given in kwargs:
            if given not in parameters:
                words = advice(given, signature, kwargs)
                text = f"got an unexpected keyword argument {given!r}"
                return f"{text}: {words}" if words else text
    return str(error)


def advice(given: str, signature: inspect.Signature, kwargs: Mapping[str, Any]) -> str:
    """What to write in the place of an argument that a function has not; "" if nothing is known."""
    known = signature.parameters
    if given in _COEFFICIENTS:
        if "betas" in known:
            return f"write betas={_betas(known['betas'].default, kwargs)} ({_SEE})"
        for candidate in ("momentum", "beta", "alpha"):
            if candidate in known and _COEFFICIENTS[given] == 1:
                return f"write {candidate} ({_SEE})"
    for candidate in _ARGUMENTS.get(given, ()):
        if candidate in known:
            return f"write {candidate} ({_SEE})"
    if given in _ELSEWHERE:
        return f"{_ELSEWHERE[given]} ({_SEE})"
    close = difflib.get_close_matches(given.lower(), known, n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else ""


def _betas(default: Any, kwargs: Mapping[str, Any]) -> str:
    """The tuple that was meant: what was given of it, the defaults for the rest."""
    betas = [*default] if isinstance(default, tuple) else []
    for word, number in _COEFFICIENTS.items():
        if word in kwargs and number <= len(betas):
            betas[number - 1] = kwargs[word]
    return f"({', '.join(map(_short, betas))})"


def check_first(
    name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Raises TypeError for parameters in the place of the first argument, a number."""
    first = next(iter(signature.parameters), "")
    check_no_parameters(name, first, args[0] if args else kwargs.get(first))


def check_no_parameters(name: str, argument: str, given: Any) -> None:
    """Raises TypeError for parameters in the place of a number: in torch they come first."""
    if _is_tree(given):
        raise TypeError(
            f"{name}() takes no parameters, but its first argument, {argument}, is of type "
            f"{type(given).__name__}. Write tx = {name}({argument}=...); state = tx.init(params). "
            "torch's optimizers, which hold their parameters, are in functorch_optim.stateful"
        )


def _is_tree(x: Any) -> bool:
    """Whether x may be parameters: a tree of arrays, or what torch's `parameters()` returns."""
    if x is None or callable(x) or jax.tree_util.all_leaves([x]):
        return isinstance(x, Iterator)
    return isinstance(x, Mapping) or any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(x))


def check_coefficients(name: str, signature: inspect.Signature, args: tuple[Any, ...]) -> None:
    """Raises TypeError for the numbers of a tuple that are given one by one: `adam(lr, 0.9, 0.98)`.

    An argument is a tuple if its default is one.
    """
    for index, (argument, given) in enumerate(zip(signature.parameters, args, strict=False)):
        default = signature.parameters[argument].default
        if not isinstance(default, tuple) or not isinstance(given, int | float):
            continue
        row = [*default]
        numbers = [x for x in args[index : index + len(row)] if isinstance(x, int | float)]
        row[: len(numbers)] = numbers
        meant = ", ".join(map(_short, row))
        raise TypeError(
            f"{name}(): {argument} should be a tuple of {len(row)} values, but got {given!r} of "
            f"type {type(given).__name__}. Write {argument}=({meant}) ({_SEE})"
        )


def _short(x: Any) -> str:
    return repr(x) if x is None or isinstance(x, int | float) else "..."


def absent(
    module: str,
    known: Sequence[str],
    elsewhere: Callable[[], Mapping[str, str]],
    foreign: Mapping[str, str],
) -> Callable[[str], NoReturn]:
    """A module's `__getattr__`: the error for a name that it has not, with the one that is meant.

    Args:
      module: its name.
      known: its public names.
      elsewhere: gives public names of other modules, and what is to be said of each.
      foreign: what is said of names of other libraries.
    """

    def __getattr__(name: str) -> NoReturn:
        text = f"module {module!r} has no attribute {name!r}"
        raise AttributeError(text if name.startswith("_") else text + _meant(name))

    def _meant(name: str) -> str:
        if importlib.util.find_spec(f"{module}.{name}") is not None:
            return f": it is a module, import {module}.{name} first"
        if name in foreign:
            return f": write {foreign[name]} ({_SEE})"
        by_bare = {_bare(x): x for x in reversed(known)}
        found = [f"{module}.{x}" for x in known if _bare(x) == _bare(name)]
        found += [words for x, words in elsewhere().items() if _bare(x) == _bare(name)]
        part = by_bare.get(_bare(name).removeprefix("scaleby"))
        if not found and part is not None:
            if name.islower():  # without the learning rate, and not yet a descent
                return f": write chain({part}(lr=1.0), scale(-1.0)) ({_SEE})"
            found = [f"{module}.{part}"]
        for x, words in foreign.items():
            if not found and _bare(x) == _bare(name):
                return f": write {words} ({_SEE})"
        if not found and hasattr(sys.modules.get("optax"), name):
            return f": write optax.{name}, which goes together with what is here ({_SEE})"
        if not found:
            close = difflib.get_close_matches(_bare(name), by_bare, n=2, cutoff=0.75)
            found = [f"{module}.{by_bare[x]}" for x in close]
        return f": did you mean {' or '.join(found)}?" if found else ""

    return __getattr__


def _bare(name: str) -> str:
    return name.lower().replace("_", "")
