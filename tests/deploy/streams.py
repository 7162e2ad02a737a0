"""Servers on the loopback that behave like cameras, good and bad."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator

import cv2

from tests.deploy.clips import numbered_frame


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port where nobody listens, and which no other test is given meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextlib.contextmanager
def mjpeg_camera(*, frames: int, then: str) -> Iterator[int]:
    """Send numbered frames as an HTTP camera does, then ``close`` or ``stall``."""
    ended = threading.Event()

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                for index in range(frames):
                    _, jpeg = cv2.imencode(".jpg", numbered_frame(index % 60))
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {jpeg.size}"
                    self.wfile.write(head.encode() + b"\r\n\r\n" + jpeg.tobytes() + b"\r\n")
                if then == "stall":
                    ended.wait(30)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with _serving(Camera, ended) as port:
        yield port


@contextlib.contextmanager
def forbidden_playlist() -> Iterator[int]:
    """A playlist whose segments may not be read: FFmpeg then prints their addresses."""

    class Playlist(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "m3u8" not in self.path:
                self.send_error(403)
                return
            body = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nseg.ts?token=s3cret\n"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + len(b"#EXT-X-ENDLIST\n")))
            self.end_headers()
            self.wfile.write(body + b"#EXT-X-ENDLIST\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with _serving(Playlist, threading.Event()) as port:
        yield port


@contextlib.contextmanager
def _serving(
    handler: type[http.server.BaseHTTPRequestHandler], ended: threading.Event
) -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            ended.set()
            server.shutdown()
            thread.join()
