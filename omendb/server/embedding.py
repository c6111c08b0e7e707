"""granian inside this process, with requests begun in its own thread.

granian hands a request over in a thread that holds the GIL, and means it to be a task of the event loop:
a coroutine, a task, a wake-up, and two threads that take the GIL from each other for every request. Here
the request is begun right there (`omendb.server.rsgi`). Measured on two cores with `wrk -c64` on a quiet
machine (granian 2.8.7, Python 3.11):

====================================================  ===========  ============
hand-over                                             GET a second  POST a second
====================================================  ===========  ============
a 4.5 KB answer and a 44-byte body, nothing else
granian, `TaskImpl.asyncio`                                68,600        47,800
granian, `TaskImpl.rust`                                   83,300        49,700 (p99 55 ms)
requests gathered for the event loop                       95,200        87,000
in granian's thread                                       116,600        91,400
OmenDB: 100 rows of 1 M; one durable point
requests gathered for the event loop                       18,200        22,400
in granian's thread, inserts answered in the loop          26,600        30,400
in granian's thread, inserts answered by the committer     26,600        34,200
====================================================  ===========  ============

The network has one thread, of tokio's runtime for many: the runtime for one is woken by a system call for
every answer, this one only when it sleeps. It runs as batch work
(`omendb.server.process.starting_batch_threads`). A second thread that begins requests makes everything
slower, because both need the GIL.

`Server.serve` takes the function that starts its worker, and `RSGIWorker` and `CallbackScheduler` are what
its own functions use; they may change with a minor version, which is why the package pins granian's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from granian import _granian  # pyright: ignore[reportPrivateUsage]
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from omendb.server.process import be_interactive, starting_batch_threads
from omendb.server.rsgi import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from omendb.server.app import Application, Bound
    from omendb.server.tls import Tls

BACKLOG = 8_192
CONNECTIONS_MAX = 65_535
"""granian's `backpressure` counts connections, idle ones too, and leaves those beyond it waiting without a
word. `omendb.server.connections` refuses them instead; what is bounded besides is the work
(`omendb.server.work`) and what bodies hold (`omendb.server.body`)."""

# granian's stub of its native module leaves these out, or describes them otherwise.
_Worker: Any = _granian.RSGIWorker
_Scheduler: Any = _granian.CallbackScheduler

# What granian logs of its own life is not for users; its errors go to the same place as ours.
_LOGGING = {
    "formatters": {},
    "handlers": {},
    "loggers": {"_granian": {"handlers": [], "level": "ERROR", "propagate": True}},
}


class HttpServer:
    """The HTTP port of an application.

    Parameters
    ----------
    application : Application
    address : str
        An IP address.
    port : int
        0 for any free one.
    stop_seconds : int
        How long requests under way may take to finish when the server stops.
    tls : Tls, optional
        HTTPS instead of HTTP.
    """

    def __init__(
        self, application: Application, address: str, port: int, stop_seconds: int, tls: Tls | None = None
    ) -> None:
        # Of the settings at the start: granian takes it once, for the head of a request and for the pause
        # between two.
        idle_seconds = application.engine.settings.session_timeout_seconds
        self._server = Server(
            application,
            address=address,
            port=port,
            interface=Interfaces.RSGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=CONNECTIONS_MAX,
            http1_settings=HTTP1Settings(header_read_timeout=idle_seconds * 1000),
            ssl_cert=tls and tls.certificate,
            ssl_key=tls and tls.key,
            ssl_protocol_min=SSLProtocols.tls12,
            log_level=LogLevels.error,
            log_dictconfig=_LOGGING,
            log_access=False,
        )
        self._server.workers_kill_timeout = stop_seconds
        self._application = application
        self._port = port
        self._is_tls = tls is not None

    async def serve(self) -> None:
        """Answer requests until `stop` is called and those under way are finished.

        Raises
        ------
        OSError
            When the address cannot be used.
        TimeoutError
            When requests under way did not finish in time.
        """
        await self._server.serve(spawn_target=self._work)  # pyright: ignore[reportArgumentType]

    def stop(self) -> None:
        """Take no more connections, and end when the requests under way are answered."""
        self._server.stop()

    @property
    def port(self) -> int:
        """The port that is listened on, also when any free one was asked for."""
        listener: Any = self._server._ssp  # pyright: ignore[reportPrivateUsage]
        if listener is None:
            return self._port
        _, port, _ = listener.__getstate__()
        return int(port)

    async def _work(
        self,
        worker_id: int,
        stop_signal: Any,  # noqa: ANN401
        application: Application,
        socket: Any,  # noqa: ANN401
        *options: Any,  # noqa: ANN401
    ) -> None:
        """Run granian's worker: `Server._spawn_rsgi_worker` with another hand-over."""
        # In the order in which `Server._spawn_worker` gives them.
        threads, runtime_blocking_threads, blocking_threads, idle_timeout, backpressure = options[:5]
        _task_impl, http_mode, http1, http2, websockets, static_files, _log, tls, _scope = options[5:]
        loop = asyncio.get_running_loop()
        stopped = loop.create_future()
        stop_signal.add_cb(lambda: loop.call_soon_threadsafe(stopped.set_result, None))
        bound = application.bind(loop)
        application.__rsgi_init__(loop)
        connections = application.entrance.connections
        connections.watch(self.port, can_tell=not self._is_tls)
        worker = _Worker(
            worker_id,
            socket,
            None,
            threads,
            runtime_blocking_threads,
            blocking_threads,
            idle_timeout,
            backpressure,
            http_mode,
            http1,
            http2,
            websockets,
            static_files,
            *tls,
            (None, None),
        )
        with starting_batch_threads():
            worker.serve_mtr(_scheduler(bound), _Callbacks(loop), stop_signal)
        try:
            await stopped
        finally:
            connections.close()
        application.__rsgi_del__(loop)


def _scheduler(bound: Bound) -> Any:  # noqa: ANN401
    """Return what granian calls, in a thread of its own, with each request."""
    is_new = True

    def begin(watcher: Any) -> None:  # noqa: ANN401
        nonlocal is_new
        if is_new:  # this thread was started as batch work, too
            is_new = False
            be_interactive()
        Exchange(bound, watcher.scope, watcher.proto).begin()

    scheduler = _Scheduler(bound.loop, None, None, None, None)
    scheduler._schedule_fn = begin
    return scheduler


class _Callbacks:
    """The part of an event loop that granian's futures use: to call back when a body was read."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def call_soon_threadsafe(
        self,
        callback: Callable[[Any], object],
        argument: object,
        *,
        context: object = None,
    ) -> None:
        """Call back at once, in granian's thread: nothing else is under way there."""
        callback(argument)

    def call_soon(
        self,
        callback: Callable[[Any], object],
        argument: object,
        *,
        context: object = None,
    ) -> None:
        """Call back later: somebody asked a future that is done already, and expects to return first."""
        self._loop.call_soon_threadsafe(callback, argument)
