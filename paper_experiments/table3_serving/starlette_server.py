"""The same model server as ``json_server.py`` on Starlette and uvicorn, run by an interpreter that has them.

It prints its port and serves until it is ended.
"""

from __future__ import annotations

import socket

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from paper_experiments.table3_serving.workload import evaluate, states_in

KEEP_ALIVE_S = 600
"""Longer than it takes until all other systems have had their turns."""


async def act(request: Request) -> JSONResponse:
    """Evaluate a batch."""
    fields = await request.json()
    return JSONResponse(await run_in_threadpool(evaluate, states_in(fields), fields["evaluation_s"]))


def main() -> None:
    """Serve on a free port."""
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    app = Starlette(routes=[Route("/act", act, methods=["POST"])])
    config = uvicorn.Config(app, log_level="error", timeout_keep_alive=KEEP_ALIVE_S)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
