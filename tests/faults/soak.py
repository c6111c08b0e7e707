"""The long form of the fault tests: ``make soak``, or ``python -m tests.faults.soak --help``.

Prints its seed first; the same seed makes the same run.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
import time

from tests.faults.crash import Run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=30, help="steps of one run")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(f"seed {arguments.seed}", flush=True)
    started = reported = time.monotonic()
    images = points = runs = 0
    while time.monotonic() - started < 60 * arguments.minutes:
        run = Run(arguments.seed + runs, random_images=40, steps=arguments.steps, nested=0.03).run()
        runs, points, images = runs + 1, points + run.points, images + run.images
        if time.monotonic() - reported > 10:
            reported = time.monotonic()
            print(f"{runs} runs, {points} crash points, {images} images, nothing lost", flush=True)
    print(f"{runs} runs, {points} crash points, {images} images, nothing lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
