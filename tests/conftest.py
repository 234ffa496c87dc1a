"""One configuration for the whole run: CPU with 8 devices, strict promotion of dtypes and ranks.

More than half of the time goes into XLA's compilation of small programs. The default run, of the
fast tests, skips most of its optimizations; every other run (`-m ""`, say) compiles as users do.
"""

from __future__ import annotations

import os

# Before jax is imported, for it reads these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

from collections.abc import Iterator  # after the environment is set

import hypothesis
import jax
import pytest

FAST_RUN = "not slow"  # what pyproject.toml selects
QUICK_COMPILATION = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):  # XLA ends a process that gives it a flag it no longer has
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"

pytest.register_assert_rewrite("tests.support.parity", "tests.support.problems")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run: a red run is then the fault of the change at hand.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Chooses how XLA compiles. It reads its flags when the first array is made, which is later."""
    if config.option.markexpr == FAST_RUN:
        os.environ["XLA_FLAGS"] = f"{QUICK_COMPILATION} {os.environ['XLA_FLAGS']}"


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 is available inside the test."""
    with jax.enable_x64(True):
        yield
