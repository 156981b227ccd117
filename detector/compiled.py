"""Both stages and the tails compiled by TensorFlow, for GPUs; the only runtime user of TensorFlow.

On the CPU the fused kernel of `forward` is faster, most of all for small micro-batches: a call of
the smallest `tf.function` took 0.2 to 0.5 ms there, more than the kernel needs for 256 rows.
Everything here is imported late: TensorFlow takes seconds to load.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from detector.model import TwoStageModel, ZScores
from detector.network import Folded, Tensor, measures

TensorFlow: TypeAlias = Any
"""The `tensorflow` module, which carries no types."""

Float32 = npt.NDArray[np.float32]

BATCH_SIZES: Final = (64, 256, 1024, 4096)

ALIGNMENT: Final = 64
"""Bytes; TensorFlow copies host arrays that are aligned less."""

_GPU_NODES: Final = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
KEEP_BYTES: Final = 1 << 28


@cache
def load_tensorflow() -> TensorFlow:
    """Import TensorFlow with the settings that scores depend on, and return it.

    TF32 is off (it keeps 10 bits of the mantissa), GPUs grow their memory as needed instead of
    taking all of it, and CPU operations use one thread: small products gain little from more.
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
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        pass  # already initialised by the embedding program, whose choice stands
    _keep_freed_memory()
    return tf


def gpu_visible() -> bool:
    """Whether TensorFlow sees a GPU; imports TensorFlow only where there is a device to look for.

    TensorFlow's GPU builds are for Linux, and find nothing without NVIDIA's device nodes (or that
    of a Linux guest under Windows).
    """
    if sys.platform != "linux" or not any(Path(node).exists() for node in _GPU_NODES):
        return False
    return bool(load_tensorflow().config.list_physical_devices("GPU"))


def gpu_memory_bytes() -> dict[str, int]:
    """Return what TensorFlow's allocator holds on the first GPU, in bytes: `current` and `peak`."""
    found: dict[str, int] = load_tensorflow().config.experimental.get_memory_info("GPU:0")
    return found


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
    """Both stages by TensorFlow in a few padded sizes, on the GPU where there is one.

    One thread at a time computes: the padded input buffers are shared.

    Parameters
    ----------
    model
        Normaliser, tails and combination.
    folded
        The network, its scales folded into its weights.
    sizes
        Padded sizes to compile, ascending; longer inputs are cut into the largest.

    Raises
    ------
    ValueError
        Sizes that do not ascend from at least one.
    """

    def __init__(
        self, model: TwoStageModel, folded: Folded, sizes: Sequence[int] = BATCH_SIZES
    ) -> None:
        if not sizes or sizes[0] < 1 or sorted(set(sizes)) != list(sizes):
            raise ValueError(f"sizes is {tuple(sizes)}; give ascending sizes of at least 1")
        self._normalise = ZScores(model.normaliser)
        self._model = model
        self._folded = folded
        self._sizes = tuple(sizes)
        self._compiled: dict[int, _Compiled] = {}
        self._one_at_a_time = threading.Lock()

    def __call__(
        self,
        values: npt.NDArray[np.floating[Any]],
        keys: npt.NDArray[np.int64],
        ready: npt.NDArray[np.bool_],
        errors: npt.NDArray[np.float64],
        tail: npt.NDArray[np.float64],
        rows: npt.NDArray[np.int32],
        latent: Float32 | None = None,
    ) -> None:
        """Score rows, see `forward.Forward`."""
        n = len(values)
        with self._one_at_a_time:
            for start in range(0, n, self._sizes[-1]):
                part = slice(start, min(start + self._sizes[-1], n))
                count = part.stop - part.start
                compiled = self._compiled_for(count)
                self._normalise(values[part], keys[part], ready[part], compiled.buffer, rows[part])
                compiled.rows[:count] = rows[part]
                found, code = compiled(latent=latent is not None)
                errors[:, part] = found[:2, :count]
                tail[part] = found[2, :count]
                if latent is not None and code is not None:
                    latent[part] = code[:count]
        errors[:, ~ready] = np.nan
        tail[~ready] = np.nan

    def warm(self) -> None:
        """Trace, compile and run every size."""
        features = len(self._folded.gain)
        for size in self._sizes:
            out = np.empty((2, size)), np.empty(size), np.empty(size, np.int32)
            values = np.zeros((size, features), np.float32)
            self(values, np.zeros(size, np.int64), np.ones(size, np.bool_), *out)

    def _compiled_for(self, rows: int) -> _Compiled:
        size = next(size for size in self._sizes if size >= rows)
        if size not in self._compiled:
            self._compiled[size] = _Compiled(self._model, self._folded, size)
        return self._compiled[size]


class _Compiled:
    """Both stages for exactly `size` rows, with the input buffers they read from.

    Fill `buffer` `(size, F)` with z-scores and `rows` `(size,)` with table rows, and call: the
    result is `(3, size)` float32, the errors of stages 1 and 2 and the tail decades, and, where
    asked for, the `(size, M L)` latents.
    """

    def __init__(self, model: TwoStageModel, folded: Folded, size: int) -> None:
        tf = load_tensorflow()
        from keras import ops  # noqa: PLC0415

        features, tails = len(folded.gain), model.tails
        self.buffer = aligned_zeros(size, features)
        self.rows = np.zeros(size, np.int32)
        # The tensor is the buffer, not a copy of it: 4,096 rows less to copy on every call.
        self._input = _alias(tf, self.buffer)
        arrays = {**folded.arrays, "gain": folded.gain, "groups": tails.memberships().T}
        constants = {name: tf.constant(array) for name, array in arrays.items()}
        table = tf.constant(tails.table())
        clip, cap, share = model.normaliser.clip, model.combination.cap, tails.share

        def all_of_it(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            mine = ops.take(table, rows, axis=0)
            *found, latents = measures(ops, constants, clip, cap, share, z, mine)
            return ops.stack(found), latents

        compiled = tf.function(all_of_it, jit_compile=False, autograph=False)
        self._function = compiled.get_concrete_function(
            tf.TensorSpec((size, features), tf.float32), tf.TensorSpec((size,), tf.int32)
        )
        self._tensor = tf.constant

    def __call__(self, *, latent: bool = False) -> tuple[Float32, Float32 | None]:
        """Run on the buffers' present contents."""
        found, code = self._function(self._input, self._tensor(self.rows))
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
