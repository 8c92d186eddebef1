"""Whether a cluster may be at an address, found out before anything is done that takes time. Without Ray."""

import socket

from detector.errors import UserError

CONNECT_TIMEOUT_S = 10.0


def check_address(address: str) -> None:
    """Ray tries an address where nothing listens for a quarter of an hour. Raises UserError at once."""
    if address.startswith("ray://"):
        raise UserError(f"--address {address}: give the cluster's own address (host:6379 or auto), run there")
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no Ray cluster can be joined there ({error})") from error
