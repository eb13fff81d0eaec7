"""TCP's own watch over a connection whose other end may vanish without a word: a laptop that is shut, a host that dies.

An idle connection is probed, and given up after 30 + 3 x 10 seconds of silence. Bytes that nobody acknowledges, and a
window that stays shut, end it after TCP_USER_TIMEOUT. https://man7.org/linux/man-pages/man7/tcp.7.html
"""

import socket

SocketOption = tuple[int, int, int]

PROBES: list[SocketOption] = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


def unacknowledged_for(seconds: float) -> SocketOption:
    return (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1e3 * seconds))
