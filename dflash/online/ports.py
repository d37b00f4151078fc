"""TCP ports of this machine: which one is free, and whether a given one is."""

import socket


def free_port() -> int:
    """A port on which nothing listens right now; another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def why_unusable(host: str, port: int) -> str | None:
    """Why nothing can listen there, None where it can. Port 0 is any: its reason tells of the host alone."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger are no obstacle
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
        except UnicodeError:  # "a..b", say, is no name to look up
            return "Name not valid"
    return None


def answers(address: str, timeout: float = 1.0) -> bool:
    """Whether something accepts connections at "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout).close()
    except OSError:
        return False
    return True
