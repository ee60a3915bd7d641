"""`mlx_lm generate ARGS` with the BLAS and the weights that Russet uses.

Run as `python -m russet.bench.level_mlx_lm DTYPE ARGS`, DTYPE empty for the one that suits the device. For cold
starts on a CPU, where mlx-lm as installed would mostly measure MLX's own BLAS.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from russet.bench.peers import level_weights
from russet.engine.blas import use_fast_blas


def main() -> None:
    dtype = sys.argv.pop(1) or None
    use_fast_blas()
    # By name, since a function `mlx_lm.generate` hides the module from an import statement.
    program: Any = import_module("mlx_lm.generate")
    load = program.load

    def load_level(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        level_weights(loaded[0], dtype)
        return loaded

    program.load = load_level
    program.main()


if __name__ == "__main__":
    main()
