"""`omendb warmup`: compile the kernels ahead of the first start."""

from __future__ import annotations

import click


@click.command("warmup", short_help="Compile all kernels ahead of the first start.")
def warmup_command() -> None:
    """Compile all kernels and keep them on disk, so that the next start is quick.

    They are kept in NUMBA_CACHE_DIR when that is set, else in the user's cache directory. An image does
    this while it is built.
    """
    from omendb.jit.warmup import Warmed, warm_up

    def show(done: Warmed) -> None:
        click.echo(
            f"[{done.position}/{done.modules}] {done.module}: {done.kernels} kernels, "
            f"{done.compiled} compiled, {done.seconds:.2f} s"
        )

    warmed = warm_up(show)
    click.echo(
        f"{sum(done.kernels for done in warmed)} kernels ready, "
        f"{sum(done.compiled for done in warmed)} compiled, "
        f"{sum(done.seconds for done in warmed):.2f} s"
    )
