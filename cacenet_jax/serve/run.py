"""--mode=serve: the page of an index, on this machine unless told otherwise."""

import ipaddress
import socket

import numpy as np
from ml_collections import ConfigDict

from cacenet_jax import retriever
from cacenet_jax.errors import UserError, print_line
from cacenet_jax.find.flags import need
from cacenet_jax.index.opening import open_index

try:
    import python_multipart  # noqa: F401  # needed by starlette for uploads
    import uvicorn

    from cacenet_jax.serve.app import build
except ModuleNotFoundError as error:
    if (error.name or "").startswith("cacenet_jax"):
        raise
    raise UserError(
        f"--mode=serve needs the package {error.name}, found none; pip install 'cacenet_jax[app]'"
    ) from error

_CONNECTIONS = 64


def serve(config: ConfigDict | None, workdir: str, place: str | None, host: str, port: int) -> None:
    """Serve the page of an index until the process is stopped.

    Args:
        config: config of the run in the workdir; None for an export or a published checkpoint.
        workdir: workdir, export folder or published checkpoint.
        place: folder of the index.
        host: address to listen on.
        port: port; 0 for a free one.

    Raises:
        UserError: a flag is missing, there is no such index, or the address cannot be used.
    """
    need("serve", index=place)
    if not 0 <= port < 65536:
        raise UserError(f"--port: found {port}, expected 0 to 65535; correct it")
    listening = listen(host, port)
    reid = retriever.load(workdir, config=config)
    index = open_index(reid, str(place))
    index.search(np.zeros((8, 4, 3), np.uint8), 1)  # compiles
    if not is_local(host):
        print_line(f"--host={host}: everyone who reaches this address sees the photographs; there is no password")
    name, number = listening.getsockname()[:2]
    shown = f"[{name}]" if ":" in name else name
    print(f"{len(index):,} photographs: http://{shown}:{number}/ (Ctrl-C ends it)", flush=True)
    own = socket.gethostname()
    app = build(index, ("localhost",) if is_local(host) else ("localhost", host, own, f"{own}.local"))
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, limit_concurrency=_CONNECTIONS, server_header=False, lifespan="off"
    )
    uvicorn.Server(settings).run(sockets=[listening])


def is_local(host: str) -> bool:
    """Return True if only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        UserError: the address is unknown or in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_CONNECTIONS)  # requests wait for the network from now on
        return listening
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host={host} --port={port}: cannot be used ({reason}), expected a free port of this machine; choose "
            "another one"
        ) from error
