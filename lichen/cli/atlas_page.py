"""`lichen atlas build` and `lichen atlas serve`: the atlas as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lichen.cli.options import AsOf

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer


def build(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it.")] = Path("atlas.html"),
    as_of: AsOf = None,
) -> None:
    """Write the atlas as one HTML file that needs no network and no server."""
    from lichen.atlas.page import build as build_page
    from lichen.errors import LichenError
    from lichen.facts.record import parse_as_of
    from lichen.files.atomic import write_text

    if out.is_dir():
        raise LichenError(f"--out {out} is a folder: name a file in it, like {out / 'atlas.html'}")
    page = build_page(parse_as_of(as_of))
    write_text(out, page)
    print(f"{out}: {len(page.encode()) / 1000:,.0f} kB; open it in a browser")


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8642,
    as_of: AsOf = None,
) -> None:
    """Serve the same page until Ctrl-C."""
    from lichen.atlas.page import build as build_page
    from lichen.facts.record import parse_as_of

    server = page_server(build_page(parse_as_of(as_of)), host, port)
    try:
        with server:
            print(f"The atlas is at http://{host}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        print()


def page_server(page: str, host: str, port: int) -> ThreadingHTTPServer:
    """A server of `page`, and of nothing else, bound but not yet running.

    Raises LichenError if it cannot listen on `host` and `port`.
    """
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from lichen.errors import LichenError

    content = page.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/":
                self.send_error(404, "the atlas is at /")
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise LichenError(
            f"cannot listen on {host}, port {port}: {str(error.strerror).lower()}; "
            "--host and --port choose another address"
        ) from None
