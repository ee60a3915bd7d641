"""mlx-lm as `pip install mlx-lm` gives it on a CPU: MLX's own BLAS and the folder's number format.

Another process is needed, since a BLAS that was replaced stays replaced. Run as a module, it is that process:
`python -m russet.bench.as_installed FOLDER GENERATE` reads token ids as JSON and prints a measurement as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from russet.bench.base import Measurement
from russet.bench.peers import MlxLm
from russet.engine.errors import PeerError

PROMPT_TOKENS = 128
GENERATE = 16
"""Few, since this is some twenty times slower: a prompt of 512 tokens takes SmolLM2-135M a minute on two cores."""


def measure_as_installed(folder: Path, tokens: Sequence[int]) -> Measurement:
    """One run of `GENERATE` tokens in a fresh process; PeerError, with what it wrote last, where that fails."""
    done = subprocess.run(
        [sys.executable, "-m", "russet.bench.as_installed", str(folder), str(GENERATE)],
        input=json.dumps(list(tokens)),
        capture_output=True,
        text=True,
        env={**os.environ, "RUSSET_BLAS": "off"},
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PeerError(f"mlx-lm as installed failed on {folder} ({lines[-1]}); leave it out with --no-as-installed.")
    return Measurement.from_dict(json.loads(done.stdout))


def main() -> None:
    folder, generate = Path(sys.argv[1]), int(sys.argv[2])
    tokens = json.load(sys.stdin)
    contender = MlxLm(folder, level=False)
    contender.run(tokens[:8], 1)
    json.dump(contender.run(tokens, generate).to_dict(), sys.stdout)


if __name__ == "__main__":
    main()
