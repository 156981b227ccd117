"""`python -m benchmarks`: run rows, print them, write `docs/benchmarks.md` and `results.json`."""

from __future__ import annotations

import os

# Before NumPy is imported anywhere: one thread for both sides of a comparison, and no setting of
# the machine that keeps OpenBLAS from the kernel made for this processor.
for _name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_name, None)
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.run import app  # noqa: E402

if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
