"""The life of the server: start, serve, stop.

Both ports answer from the beginning; `/ready` says how far the store is, or that it waits for another
process that has the directory open. SIGTERM and SIGINT end the process in order: not ready, no new
connections, requests under way finish, the store closes. A write-ahead log that failed ends it with an
error, because nothing may be acknowledged any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from omendb.errors import ClosedError, ConfigError, OmenError
from omendb.metrics import package_version
from omendb.server import tls
from omendb.server.admin_port import AdminPort
from omendb.server.app import Application
from omendb.server.embedding import HttpServer
from omendb.server.health import Health
from omendb.server.log import STANDARD_OUTPUT, ServerLog
from omendb.server.process import (
    call_on_signals,
    check_port_is_free,
    keep_freed_memory,
    leave,
    raise_file_limit,
    resolve,
    set_process_name,
    settle,
)
from omendb.storage.fs import DISK_FULL_ERRNOS

if TYPE_CHECKING:
    from collections.abc import Callable

    from omendb.engine import Engine

logger = logging.getLogger(__name__)

STOP_SECONDS = 10
"""How long requests under way may take to finish when the server stops; then the store is closed, all
within the 30 s after which Kubernetes kills."""

_FILES_SPARE = 500
"""Files that are open beside connections: segments, the log, libraries."""


def run(
    engine: Engine,
    host: str = "0.0.0.0",  # noqa: S104 # a server listens on all addresses unless told otherwise
    port: int = 3000,
    metrics_port: int = 9090,
    *,
    on_ready: Callable[[int, int], None] | None = None,
    log_descriptor: int = STANDARD_OUTPUT,
) -> int:
    """Serve `engine` until the process is told to stop.

    Parameters
    ----------
    engine : Engine
        Not started yet.
    host : str
        Name or IP address to listen on, for both ports.
    port, metrics_port : int
        0 for any free one.
    on_ready : callable, optional
        Called once with both ports, in a thread of its own, when the store is ready.
    log_descriptor : int
        File descriptor that the log is written to.

    Returns
    -------
    int
        The exit status: 0 when the process was told to stop and everything acknowledged is on stable
        storage; 1 when the store could not be opened or has failed, or when a port is taken.

    Notes
    -----
    Call it in the main thread: it handles signals. Threads of the HTTP server, and of what was given up at
    the end, may still run when it returns: end the process with `omendb.server.process.leave`.
    """
    set_process_name("omendb")
    log = ServerLog(engine, log_descriptor)
    log.start()
    try:
        status = _serve(engine, log, host, port, metrics_port, on_ready)
    except BaseException:
        logger.critical("the server failed", exc_info=True)
        log.close()
        raise
    log.close()
    return status


def _serve(
    engine: Engine,
    log: ServerLog,
    host: str,
    port: int,
    metrics_port: int,
    on_ready: Callable[[int, int], None] | None,
) -> int:
    started = time.monotonic()
    logger.info("start version=%s pid=%d", package_version(), os.getpid())
    keep_freed_memory()
    files = raise_file_limit()
    if files < engine.settings.max_connections + _FILES_SPARE:
        logger.warning(
            "only %d files may be open (ulimit -n): too few for max_connections=%d and the segments",
            files,
            engine.settings.max_connections,
        )
    health = Health(engine)
    try:
        secured = tls.from_settings(engine.settings)
    except ConfigError as error:
        logger.critical("cannot serve HTTPS: %s", error)
        return 1
    try:
        address = resolve(host)
        check_port_is_free(address, port)
        admin_port = AdminPort(address, metrics_port, engine.metrics, health)
    except OSError as error:
        logger.critical("cannot listen on %s, ports %d and %d: %s", host, port, metrics_port, error)
        return 1
    application = Application(engine, health=health, log=log.requests)
    server = HttpServer(application, address, port, STOP_SECONDS, secured)
    admin_port.start()

    def announce() -> None:
        url = _url(host, server.port, "http" if secured is None else "https")
        metrics_url = _url(host, admin_port.port)
        engine.metrics.watch_port(server.port)
        settle()
        seconds = time.monotonic() - started
        logger.info("ready http=%s metrics=%s/metrics duration_ms=%.0f", url, metrics_url, seconds * 1e3)
        if on_ready is not None:
            on_ready(server.port, admin_port.port)

    try:
        return asyncio.run(_Life(engine, health, server, log).run(announce))
    finally:
        admin_port.close()


class _Life:
    """One run of the server."""

    def __init__(self, engine: Engine, health: Health, server: HttpServer, log: ServerLog) -> None:
        self._log = log
        self._told_at = time.monotonic()
        self._engine = engine
        self._health = health
        self._server = server
        self._status = 0
        self._stop = asyncio.Event()

    async def run(self, announce: Callable[[], None]) -> int:
        loop = asyncio.get_running_loop()
        call_on_signals(loop, self._told_to_stop)
        serving = loop.create_task(self._server.serve())
        serving.add_done_callback(lambda _: self._stop.set())
        listening = asyncio.Event()
        loop.call_soon(listening.set)
        await listening.wait()  # granian has its socket once its task has run for the first time
        starting = _in_thread("omendb-start", lambda: self._start_engine(loop, announce))
        await self._stop.wait()
        if serving.done() and not serving.exception():
            self._status = 1
            logger.critical("the HTTP server has ended by itself")
        self._health.stopping = True
        await self._stop_serving(serving)
        await self._close_engine(loop, starting)
        return self._status

    def _told_to_stop(self, number: signal.Signals) -> None:
        if not self._stop.is_set():
            self._told_at = time.monotonic()
            logger.info("stopping signal=%s", number.name)
            self._stop.set()
        elif number == signal.SIGINT:
            logger.warning("stopping at once signal=%s", number.name)
            self._log.close()
            leave(1)
        else:
            # Supervisors repeat themselves, and more than one may want the end. SIGKILL is there for who
            # does not want to wait.
            logger.info("still stopping signal=%s", number.name)

    def _start_engine(self, loop: asyncio.AbstractEventLoop, announce: Callable[[], None]) -> None:
        try:
            self._engine.start(compile_kernels=True, wait_for_lock_seconds=None)
        except ClosedError:
            logger.info("the start was given up")
        except (OmenError, OSError) as error:
            logger.critical("the store cannot be opened: %s", error)
            self._fail(loop)
        except BaseException:
            logger.critical("the store cannot be opened", exc_info=True)
            self._fail(loop)
        else:
            _in_thread("omendb-watch", lambda: self._watch_engine(loop))
            if not self._stop.is_set():
                announce()

    def _watch_engine(self, loop: asyncio.AbstractEventLoop) -> None:
        self._engine.failed.wait()
        logger.critical("the store has failed: %s", self._engine.status.message)
        self._fail(loop)

    def _fail(self, loop: asyncio.AbstractEventLoop) -> None:
        self._status = 1
        loop.call_soon_threadsafe(self._stop.set)

    async def _stop_serving(self, serving: asyncio.Task[None]) -> None:
        self._server.stop()
        try:
            await serving
        except TimeoutError:
            logger.warning("requests did not finish within %d seconds, and are cut off", STOP_SECONDS)
        except Exception:
            self._status = 1
            logger.critical("the HTTP server failed", exc_info=True)

    async def _close_engine(self, loop: asyncio.AbstractEventLoop, starting: threading.Thread) -> None:
        try:
            await loop.run_in_executor(None, self._engine.close)
        except (OmenError, OSError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
                # Everything acknowledged was synced before the first byte that found no room.
                logger.warning("no space for a clean stop, the next start replays the log: %s", error)
            else:
                self._status = 1
                logger.critical("the store did not close cleanly: %s", error)
        await loop.run_in_executor(None, starting.join, STOP_SECONDS)
        self._log.requests.close()  # its last sums come before the last line
        if starting.is_alive():
            logger.warning("the store is still starting, and is left as it is: it recovers next time")
        elif not self._status:
            logger.info("stopped duration_ms=%.0f", (time.monotonic() - self._told_at) * 1e3)


def _in_thread(name: str, target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def _url(host: str, port: int, scheme: str = "http") -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
