"""The application object: one set of handlers, reached through RSGI and through ASGI.

RSGI is what `omendb serve` uses, because it costs half of ASGI a request; `rsgi.py` holds it. ASGI is for
other servers and for tests; `asgi.py` holds it.

Thread safety: requests may be begun in any thread; there is one event loop at a time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

from omendb.errors import OmenError
from omendb.server import asgi, problems, rsgi
from omendb.server.body import Bodies
from omendb.server.entrance import Entrance
from omendb.server.handlers import Handlers
from omendb.server.health import Health
from omendb.server.routes import api_routes
from omendb.server.work import Work

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Awaitable, Callable, Coroutine, MutableMapping

    from omendb.engine import Engine
    from omendb.server.query_log import QueryLog
    from omendb.server.request import Request, Response
    from omendb.server.routes import Route, Routes

logger = logging.getLogger(__name__)


class Application:
    """The HTTP API of an engine, as an RSGI and ASGI application.

    Parameters
    ----------
    engine : Engine
    owns_engine : bool
        Start the engine with the server and close it at its end: for servers other than `omendb serve`.
    health : Health, optional
        Shared with the metrics port.
    log : QueryLog, optional
        Gets a line a query, and what is worth a line of other requests.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        owns_engine: bool = False,
        health: Health | None = None,
        log: QueryLog | None = None,
    ) -> None:
        self.engine = engine
        self._log = log
        self.health = health or Health(engine)
        self.entrance = Entrance(engine)
        self._owns_engine = owns_engine
        self._bound: Bound | None = None

    def bind(self, loop: AbstractEventLoop) -> Bound:
        """Return what belongs to a loop; make it when the application was not used in this loop yet."""
        if self._bound is None or self._bound.loop is not loop:
            self._bound = Bound(self.engine, self.health, self.entrance, loop, self._log)
        return self._bound

    def __rsgi_init__(self, loop: AbstractEventLoop) -> None:
        """Begin: RSGI's first call."""
        self.bind(loop)
        self._start_engine()

    def __rsgi_del__(self, loop: AbstractEventLoop) -> None:
        """End: RSGI's last call."""
        self._close_engine()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:  # noqa: ANN401
        """Answer one request of an RSGI server."""
        loop = asyncio.get_running_loop()
        finished = loop.create_future()
        rsgi.Exchange(self.bind(loop), scope, protocol, finished).begin()
        await finished

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one request of an ASGI server, or follow its life."""
        bound = self.bind(asyncio.get_running_loop())
        if scope["type"] == "http":
            await asgi.answer(bound, scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _live(
        self,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._start_engine()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await asyncio.get_running_loop().run_in_executor(None, self._close_engine)
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _start_engine(self) -> None:
        """Start in a thread: the server answers `/ready` with the progress meanwhile."""
        if self._owns_engine and self.engine.status.phase == "new":
            threading.Thread(target=self._start, name="omendb-start", daemon=True).start()

    def _start(self) -> None:
        try:
            self.engine.start(compile_kernels=True)
        except (OmenError, OSError) as error:
            logger.critical("the store cannot be opened: %s", error)

    def _close_engine(self) -> None:
        self.health.stopping = True
        if self._bound is not None:
            self._bound.work.close()
        if self._owns_engine:
            self.engine.close()


class Bound:
    """The parts of the application that belong to one event loop.

    Attributes
    ----------
    loop : asyncio.AbstractEventLoop
    bodies : Bodies
    entrance : Entrance
    routes : Routes
    work : Work
    """

    def __init__(
        self,
        engine: Engine,
        health: Health,
        entrance: Entrance,
        loop: AbstractEventLoop,
        log: QueryLog | None = None,
    ) -> None:
        self.loop = loop
        self.entrance = entrance
        self.bodies = Bodies(loop, lambda: engine.settings)
        self.work = Work()
        self._metrics = engine.metrics
        self._log = log
        handlers = Handlers(engine, health, self.work, log)
        self.routes: Routes = api_routes(handlers, engine.metrics)
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine in the loop by itself; from any thread."""
        self.loop.call_soon_threadsafe(self._spawn, coroutine)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)  # the loop holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    def failed(
        self, route: Route | None, error: Exception, method: str, path: str, request: Request | None
    ) -> Response:
        """Count and log an error, and make its answer.

        Parameters
        ----------
        route : Route or None
            None when the path or the method is not served.
        error : Exception
        method, path : str
            As they came.
        request : Request or None
            None when it was refused before it was made.
        """
        if route is not None and route.failures is not None:
            # In the unit of what they are compared with: the rows of an insert, as far as they are known.
            route.failures.inc(max(request.rows, 1) if request is not None else 1)
        response = problems.to_response(error)
        self._metrics.request_errors_total.inc(str(response.status), problems.code_of(error))
        if self._log is not None:
            self._log.failed(method, path, request if route is not None else None, response.status, error)
        return response
