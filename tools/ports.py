"""Free ports that stay free until a server listens on them."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Ports of loopback that the system gives to nobody else within the context.

    They are bound and not listened on: a server that sets SO_REUSEADDR, as servers do, may listen on them.
    Looked up and closed again, each could become the other end of any connection before its server starts.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        yield [each.getsockname()[1] for each in sockets]
