"""Records torch's runs of L-BFGS: `python tests/golden/record_lbfgs.py`. Needs torch.

Writes tests/golden/lbfgs.npz: for each case a row per update, as tests/tables/lbfgs.py lays it out.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from tests.tables.lbfgs import CASES, RECORDED, torch_rows  # path set above


def main() -> None:
    np.savez_compressed(RECORDED, **{case.name: torch_rows(case)[0] for case in CASES})
    print(f"{RECORDED.name}: {len(CASES)} runs, {RECORDED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
