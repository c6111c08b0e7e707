"""Stands in for ``watch``, which has no end: runs the command twice, as if Ctrl-C came then."""

from __future__ import annotations

import subprocess
import sys
import time


def main() -> int:
    option, seconds, command = sys.argv[1:]
    assert option == "-n"
    for turn in range(2):
        if turn:
            time.sleep(float(seconds))
        status = subprocess.call(command, shell=True)
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
