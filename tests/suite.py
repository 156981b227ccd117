"""All tests, in three parts at once: `make test`. Arguments make it a plain run of pytest.

Two parts are what takes longest with a real Kafka or Prometheus, and mostly waits; the third is the
rest, which takes longest. That one prints as it goes, the others at the end, so that their lines do
not mix.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from typing import Final

DELIVERY: Final = "tests/faults/test_delivery.py"
APART: Final = (
    ("tests/integration", DELIVERY),
    ("tests/faults", f"--ignore={DELIVERY}"),
)


def main(arguments: list[str]) -> int:
    """Run the tests; 0 where all passed."""
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        return subprocess.run([*pytest, *arguments], check=False).returncode
    rest = [*pytest, *(f"--ignore={part[0]}" for part in APART)]
    with ExitStack() as open_:
        said, running = [], []
        for number, part in enumerate(APART):
            output = open_.enter_context(tempfile.TemporaryFile())
            command = [*pytest, *part, "-o", f"cache_dir=.pytest_cache/apart{number}"]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            said.append(output)
            running.append(open_.enter_context(process))
        print("Some now, others shown at the end:", *(part[0] for part in APART))
        sys.stdout.flush()
        try:
            code = subprocess.run(rest, check=False).returncode
            for process in running:
                code = process.wait() or code
        except KeyboardInterrupt:
            for process in running:
                process.send_signal(signal.SIGINT)
                process.wait()
            code = 130
        for output in said:
            output.seek(0)
            sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
