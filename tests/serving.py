"""An index served on a free port of this machine, and a client."""

import contextlib
import http.client
import threading
import time
from types import SimpleNamespace
from urllib.parse import urlencode

import uvicorn

from cacenet_jax.serve.app import build
from cacenet_jax.serve.run import listen

SCRIPT = "<script>alert(1)<!--.png"
BOUNDARY = "ba4c27"


@contextlib.contextmanager
def served(index, hosts=("localhost",)):
    """Serve an index, and yield the port."""
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(build(index, hosts), log_level="error", lifespan="off"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def multipart(files, fields=()):
    """Body and headers of a form with files [(name, content)]."""
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'.encode() for n, v in fields]
    for name, content in files:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    body = b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
    return body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


class Client:
    """Requests to a port of this machine."""

    def __init__(self, port):
        self.port = port

    def ask(self, method, path, body=None, headers=()):
        """Status, headers and text of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return SimpleNamespace(status=answer.status, headers=answer.headers, content=answer.read())
        finally:
            connection.close()

    def get(self, path, headers=(), **values):
        """GET with a query."""
        return self.ask("GET", path + ("?" + urlencode(values) if values else ""), headers=headers)

    def post(self, path, headers=(), **values):
        """POST a form."""
        kind = {"Content-Type": "application/x-www-form-urlencoded", **dict(headers)}
        return self.ask("POST", path, urlencode(values), kind)

    def upload(self, files, headers=(), **fields):
        """POST files to /search."""
        body, kind = multipart(files, fields.items())
        return self.ask("POST", "/search", body, {**kind, **dict(headers)})
