"""The long form of the fault tests: ``make soak``, or ``python -m tests.faults.soak --help``.

Every part is seeded: the seed is printed first, and the same seed makes the same choices. A part that finds
something ends the run with its message, which says how to replay it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import secrets
import sys
import time

PARTS = ("crash", "killing", "syscalls", "power", "damage", "backups", "history", "fuzz", "hostile")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--minutes", type=float, default=10.0, help="of all parts together")
    options = parser.parse_args()
    parts = options.parts or PARTS
    for name in set(parts) - set(PARTS):
        parser.error(f"{name} is none of {', '.join(PARTS)}")
    # Not shown, but made: some parts read what the engine says.
    logger = logging.getLogger("omendb")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    print(f"seed {options.seed}", flush=True)
    for name in parts:
        started = time.monotonic()
        part = importlib.import_module(f"tests.faults.{name}")
        logging.disable(logging.NOTSET)  # a part before may have switched it off for its own sake
        counts = part.soak(options.seed, 60 * options.minutes / len(parts))
        print(f"{name}: {time.monotonic() - started:.0f} s, {json.dumps(counts)}", flush=True)
    print("nothing lost, nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
