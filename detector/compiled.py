"""The forward pass compiled by TensorFlow for one padded size; the only runtime user of TensorFlow.

Measured on two cores, 4,096 rows, one thread: a plain `tf.function` of the folded network takes
about 1.5 times as long as its matrix products alone in NumPy; XLA is no faster and its last bits
depend on the batch size. Everything here is imported late: TensorFlow takes seconds to load.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from detector.network import Tensor, errors

TensorFlow: TypeAlias = Any
"""The `tensorflow` module, which carries no types."""

Float32 = npt.NDArray[np.float32]

ALIGNMENT: Final = 64
"""Bytes; TensorFlow copies host arrays that are aligned less."""

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
KEEP_BYTES: Final = 1 << 28


@cache
def load_tensorflow(threads: int = 1) -> TensorFlow:
    """Import TensorFlow with the settings that scores depend on, and return it.

    TF32 is off (it keeps 10 bits of the mantissa), GPUs grow their memory as needed instead of
    taking all of it, and CPU operations use `threads` threads: one by default, because features of
    the next micro-batch are computed on the other cores meanwhile and small products gain little.
    The settings are the process's; whoever initialised TensorFlow before keeps theirs.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _banners_held_back():
        import keras  # noqa: PLC0415
        import tensorflow as tf  # noqa: PLC0415

        gpus = tf.config.list_physical_devices("GPU")
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"KERAS_BACKEND is {keras.backend.backend()!r}; tapewatch scores and trains with "
            "'tensorflow': unset the variable or ~/.keras/keras.json"
        )
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        pass  # already initialised by the embedding program, whose choice stands
    _keep_freed_memory()
    return tf


@contextlib.contextmanager
def _banners_held_back() -> Iterator[None]:
    """Keep what TensorFlow's libraries print while they load out of terminals and logs.

    They write to the file descriptor before any log level applies: which instructions they use and
    that there is no GPU. It is let through when loading fails.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _keep_freed_memory() -> None:
    """Let malloc keep what a scoring call frees, for the next call.

    Every intermediate of a 4,096-row batch is about a megabyte. glibc gives blocks of that size
    back to the kernel at once and faults their pages in again for the next one: a quarter of the
    time of a call, measured.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)
            mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)


class CompiledForward:
    """Both stages for exactly `size` rows, with the input buffer they read from.

    Fill `buffer` `(size, F)` and call: the result is `(2, size)` float32 errors of stages 1 and 2,
    and, where asked for, the `(size, L)` latent.
    """

    def __init__(
        self, arrays: Mapping[str, Float32], features: int, size: int, threads: int
    ) -> None:
        tf = load_tensorflow(threads)
        from keras import ops  # noqa: PLC0415

        self.buffer = aligned_zeros(size, features)
        # The tensor is the buffer, not a copy of it: 4,096 rows less to copy on every call.
        self._input = _alias(tf, self.buffer)
        constants = {name: tf.constant(array) for name, array in arrays.items()}

        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            stage1, stage2, latent = errors(ops, constants, x)
            return ops.stack([stage1, stage2]), latent

        signature = tf.TensorSpec((size, features), tf.float32)
        compiled = tf.function(both, jit_compile=False, autograph=False)
        self._function = compiled.get_concrete_function(signature)

    def __call__(self, *, latent: bool = False) -> tuple[Float32, Float32 | None]:
        """Run on the buffer's present contents."""
        found, code = self._function(self._input)
        return found.numpy(), code.numpy() if latent else None


def aligned_zeros(rows: int, columns: int) -> Float32:
    """Return `(rows, columns)` float32 zeros that TensorFlow can read in place."""
    size = rows * columns * 4
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(np.float32).reshape(rows, columns)


def _alias(tf: TensorFlow, buffer: Float32) -> Tensor:
    """Return a host tensor over the buffer's own memory."""
    with tf.device("CPU:0"):
        tensor = tf.experimental.dlpack.from_dlpack(buffer.__dlpack__())
    buffer[-1, -1] = 1.0
    shared = tensor.numpy()[-1, -1] == 1.0
    buffer[-1, -1] = 0.0
    if not shared:
        raise RuntimeError("TensorFlow copied the input buffer instead of sharing it")
    return tensor
