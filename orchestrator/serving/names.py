"""Which names of a server are its own: as `dashboards.loopback_only`, for one that others may reach as well."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.serving.options import Options


class Names:
    """The names by which requests may call a server that listens on `port`."""

    def __init__(self, options: Options, port: int) -> None:
        self._is_loopback = options.is_loopback
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]", options.host)}
        self._hosts |= {name.lower() for name in options.allow_hosts}

    def are_in(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request was sent to one of them, and if a page sent it, by a page of this server."""
        origin = headers.get(b"origin")
        is_own_page = origin is None or self._is_one(urlsplit(origin.decode("latin-1")).netloc)
        return is_own_page and self._is_one(headers.get(b"host", b"").decode("latin-1"))

    def _is_one(self, host: str) -> bool:
        """Whether it is; to those that others reach a number is, since no other name can be one (DNS rebinding)."""
        host = host.lower()
        if host in self._hosts or host.rpartition(":")[0] in self._hosts:
            return True
        if self._is_loopback:
            return False
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(urlsplit(f"//{host}").hostname or ""))
        return False
