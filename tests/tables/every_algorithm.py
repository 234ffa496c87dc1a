"""All algorithms, torch's and the others: what the contract suite runs over."""

import pytest

from tests.tables.algorithms import TABLE as OF_TORCH
from tests.tables.algorithms_beyond_torch import TABLE_BEYOND_TORCH

TABLE = (*OF_TORCH, *TABLE_BEYOND_TORCH)

over_table = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
