"""The page's own HTTP server: one page, to whoever asks for it by an address of this machine.

A browser runs the scripts of every site that somebody visits, and a site may point its own name at this
machine and then read what is served here, the user's own models and prices (DNS rebinding). So a request is
answered only where its Host is no such name: an address, `localhost`, or the name that the server was given.
"""

import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from lichen.atlas.page import policy
from lichen.errors import LichenError

MOST_CONNECTIONS = 64
LONGEST_CONNECTION = 10.0
"""Seconds; a page takes milliseconds."""


class PageServer(ThreadingHTTPServer):
    """Serves `page` at /, and nothing else; bound when it is made, runs in `serve_forever`.

    A connection ends after LONGEST_CONNECTION seconds, and when MOST_CONNECTIONS are open the oldest gives
    way to a new one: requests that are never sent to their end keep nobody out. Raises LichenError if it
    cannot listen on `host` and `port` (0: any free one).
    """

    request_queue_size = MOST_CONNECTIONS

    def __init__(self, page: str, host: str, port: int) -> None:
        self.content = page.encode()
        self.policy = f"{policy()}; frame-ancestors 'none'"
        self.host = host
        self._open: dict[socket.socket, float] = {}  # since when, the oldest first
        try:
            self.address_family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            super().__init__((str(address[0]), port), _Handler)
        except (OSError, UnicodeError) as error:  # UnicodeError: no host can have such a name
            why = (getattr(error, "strerror", None) or "there is no such host").lower()
            raise LichenError(
                f"cannot listen on {host}, port {port}: {why}; --host and --port choose another address"
            ) from None

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the network for this machine's full name.
        TCPServer.server_bind(self)
        self.server_port = self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.server_port}/"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return ip_address(str(self.server_address[0])).is_loopback

    def answers_to(self, host: str) -> bool:
        """Whether a request with this Host means this server: no name that somebody else may have pointed
        here. The port is not looked at: it differs where the page is seen through a tunnel."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in ("localhost", self.host.lower()):
                return True
            return ip_address(name).is_loopback or not self.is_local
        except ValueError:  # neither an address nor a name that is known
            return False

    # What socketserver calls: before and after every connection, and a few times a second.

    def process_request(self, request: Any, client_address: Any) -> None:
        self._end(lambda since: len(self._open) >= MOST_CONNECTIONS)
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        self._end(lambda since: time.monotonic() - since > LONGEST_CONNECTION)

    def _end(self, is_over: Callable[[float], bool]) -> None:
        """End connections, the oldest first, as long as `is_over` says so of when they began."""
        for request, since in list(self._open.items()):
            if not is_over(since):
                break
            self._open.pop(request, None)
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a browser that has left is nobody's fault
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "Lichen", ""

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.answers_to(hosts[0]):
            self.send_error(421, "the atlas answers to addresses, to localhost, and to the name after --host")
        elif self.path.partition("?")[0] != "/":
            self.send_error(404, "the atlas is at /")
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(self.server.content)

    do_HEAD = do_GET

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass
