#!/bin/sh
# Lays the kernels that were compiled with the image where Numba can use them, then becomes the
# command. Numba takes a cache only from a folder it can write to, which the image's own is not
# where the root file system is read-only; with none it refuses to import the kernels at all.
set -eu
if [ -d "$NUMBA_BUILT_CACHE" ]; then
  mkdir -p "$NUMBA_CACHE_DIR" && cp -R "$NUMBA_BUILT_CACHE/." "$NUMBA_CACHE_DIR" || {
    echo "entrypoint: NUMBA_CACHE_DIR=$NUMBA_CACHE_DIR cannot be written to; mount a tmpfs of" \
      "64 MiB or more at /tmp" >&2
    exit 1
  }
fi
exec "$@"
