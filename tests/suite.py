"""All tests, in two halves at once: `make test`. Arguments make it a plain run of pytest.

One half is what takes longest with a real Kafka or Prometheus, and mostly waits; the other is the
rest, which takes about as long. The second prints as it goes, the first at its end, so that their
lines do not mix.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from typing import Final

WITH_SERVERS: Final = ("tests/integration", "tests/faults/test_delivery.py")


def main(arguments: list[str]) -> int:
    """Run the tests; 0 where all passed."""
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        return subprocess.run([*pytest, *arguments], check=False).returncode
    apart = [*pytest, *WITH_SERVERS, "-o", "cache_dir=.pytest_cache/with_servers"]
    rest = [*pytest, *(f"--ignore={place}" for place in WITH_SERVERS)]
    with tempfile.TemporaryFile() as said:
        print(f"In two halves: {', '.join(WITH_SERVERS)}, shown at the end; and all others, now.")
        with subprocess.Popen(apart, stdout=said, stderr=subprocess.STDOUT) as servers:
            try:
                code = subprocess.run(rest, check=False).returncode
                code = servers.wait() or code
            except KeyboardInterrupt:
                servers.send_signal(signal.SIGINT)
                servers.wait()
                code = 130
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
