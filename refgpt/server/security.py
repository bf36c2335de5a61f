"""Access control: checks of the Host and Origin headers and of API keys, before all other processing."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import ip_address

from refgpt.server.errors import ApiError
from refgpt.server.settings import ServerSettings

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
#: Paths that need no key, since they reveal nothing about requests.
OPEN_PATHS = ("/health", "/version")
#: Content security policy of the page: only its own files and this server, no inline scripts or styles.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HOST = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<name>[^\[\]:/@\s]+))(?::\d{1,5})?")


class Guard:
    """Checks requests against the settings of a server."""

    def __init__(self, settings: ServerSettings) -> None:
        named = settings.host not in ("", "0.0.0.0", "::")
        self._hosts = {*LOOPBACK_NAMES, *map(str.lower, settings.allowed_hosts), *([settings.host.lower()] * named)}
        self._origins = set(settings.allowed_origins)
        self._keys = [sha256(key.encode()).digest() for key in settings.api_keys]
        # A name can be made to mean another address; an address cannot. Who serves a network may be asked by address.
        self._addresses = not is_loopback(settings.host)

    def check(self, method: str, path: str, headers: Mapping[bytes, bytes], is_page: bool) -> None:
        """Refuse a request with an ApiError.

        Parameters
        ----------
        is_page : bool
            Whether it is for one of the page's own files, which need no key.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        self._check_host(host)
        self._check_origin(method, host, headers)
        if self._keys and not is_page and path not in OPEN_PATHS:
            self._check_key(headers)

    def allowed_origin(self, headers: Mapping[bytes, bytes]) -> str | None:
        """The origin of a request, if pages from there may read answers."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        return origin if origin and (origin in self._origins or "*" in self._origins) else None

    def _check_host(self, host: str) -> None:
        found = HOST.fullmatch(host)
        name = (found["v6"] or found["name"]).lower().rstrip(".") if found else ""
        if "*" in self._hosts or (found and (name in self._hosts or self._is_address(name))):
            return
        raise ApiError(
            421,
            f"requests for the host {host[:200]!a} are not taken; start the server with --allowed-host to take them",
            code="host_not_allowed",
        )

    def _is_address(self, name: str) -> bool:
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return self._addresses or address.is_loopback

    def _check_origin(self, method: str, host: str, headers: Mapping[bytes, bytes]) -> None:
        """Refuse what a page of another site sends: a browser would send it with this machine's access."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        site = headers.get(b"sec-fetch-site", b"").decode("latin-1")
        if self.allowed_origin(headers):
            return
        same = origin.partition("://")[2].lower() == host.lower()
        if (origin and not same) or (site == "cross-site" and method not in ("GET", "HEAD")):
            raise ApiError(
                403,
                f"pages of {(origin or 'another site')[:200]!a} may not ask this server; --allowed-origin lets them",
                code="origin_not_allowed",
            )

    def _check_key(self, headers: Mapping[bytes, bytes]) -> None:
        scheme, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        key = given.strip() if scheme.lower() == "bearer" else headers.get(b"x-api-key", b"").decode("latin-1")
        digest = sha256(key.encode("latin-1")).digest()
        # Every key is compared, in constant time, so that timing reveals nothing about the keys.
        if not sum([hmac.compare_digest(digest, known) for known in self._keys]):
            raise ApiError(
                401,
                "a key is needed: Authorization: Bearer KEY",
                "authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is one of this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
