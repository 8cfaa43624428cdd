"""Serving the page: to whom, what of it, and nothing else."""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import uvicorn

from rwm_fast.app.page import style_sheet, theme
from rwm_fast.errors import UserError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What the page asks for; of gradio's other addresses none is served.
_SERVED = re.compile(
    r"/|/(config|theme\.css|manifest\.json|favicon\.ico)|/(assets|static)/.*"
    r"|/gradio_api/(upload|upload_progress|queue/join|queue/data|cancel|reset|startup-events"
    r"|heartbeat/\w+)"
)
_FILE = "/gradio_api/file="
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:; frame-ancestors "
    "'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """Lets through what the page needs: its own addresses, files of `folder`, and, where only this
    machine is served, requests that call it by its own name and come from no page elsewhere. Its
    answers tell browsers to ask no other address."""

    def __init__(self, app: App, folder: Path, local: bool) -> None:
        self.app, self.files, self.local = app, f"{_FILE}{folder.as_posix()}/", local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http" or not self.admits(scope):
            return await _refuse(scope, send)

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self.app(scope, receive, answer)

    def admits(self, scope: Scope) -> bool:
        """Whether the request is for the page."""
        path, headers = scope["path"], dict(scope["headers"])
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if self.local:
            elsewhere = re.sub(r":\d+$", "", host).strip("[]") not in LOOPBACK
            if elsewhere or (origin and origin.rpartition("//")[2] != host):
                return False
        return bool(_SERVED.fullmatch(path)) or path.startswith(self.files)


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close"})
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"not served"})


def listening(host: str, port: int) -> socket.socket:
    """A socket on which the page is served; port 0 takes a free one."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}") from None
    return found


def application(
    page: gr.Blocks, regions: int, max_bytes: int, folder: Path, local: bool
) -> fastapi.FastAPI:
    """The page as an ASGI application; files come from `folder` alone."""
    app = fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    # Gradio compares the paths that a client names with its folder of uploads only once `launch`
    # has said so, which mounting does not.
    page.has_launched = True
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        allowed_paths=[],
        max_file_size=max_bytes,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=style_sheet(regions),
    )
    app.add_middleware(Guard, folder=folder, local=local)
    return app


def serve(app: fastapi.FastAPI, on: socket.socket) -> None:
    """Until Ctrl-C."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    uvicorn.Server(config).run(sockets=[on])
