"""The table of algorithms: a row per file, collected here. The suites run over it.

A new algorithm is a new file with a `ROW`; one that torch has too is recorded once, by
`python tests/golden/record.py NAME`.
"""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from tests.tables.algorithm import Algorithm


def _row(module: str) -> Algorithm:
    row: Algorithm = importlib.import_module(f"{__name__}.{module}").ROW
    assert row.name == module, f"the row of {row.name} belongs in {row.name}.py"
    return row


TABLE = tuple(_row(module.name) for module in pkgutil.iter_modules(__path__))
OF_TORCH = tuple(row for row in TABLE if row.torch_class is not None)

over_table = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
over_torch = pytest.mark.parametrize("row", OF_TORCH, ids=lambda row: row.name)
