"""Whether the Hugging Face hub is within reach: its client goes on retrying a dead network for most of a minute."""

import functools
import socket
import urllib.request
from urllib.parse import urlsplit

from huggingface_hub import constants


@functools.cache
def hub_is_reachable(timeout_s: float = 3.0) -> bool:
    """Whether a connection to the hub opens, asked once per process; True behind a proxy, which alone can tell."""
    return not constants.HF_HUB_OFFLINE and endpoint_is_reachable(constants.ENDPOINT, timeout_s)


def endpoint_is_reachable(url: str, timeout_s: float = 3.0) -> bool:
    """Whether a connection to the server of a URL opens; True behind a proxy, which alone can tell."""
    if urllib.request.getproxies():
        return True
    endpoint = urlsplit(url)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True
