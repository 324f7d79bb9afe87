"""What `orch serve` may be told, checked before anything is opened."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ByteSize, ConfigDict, Field, SecretStr, ValidationError

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

LOOPBACK = "127.0.0.1"
TOKEN_VARIABLE = "ORCH_SERVE_TOKEN"
MIN_TOKEN = 16


class Options(BaseModel):
    """Where a model is served, to whom, and what one request may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(LOOPBACK, min_length=1, description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    allow_hosts: tuple[str, ...] = Field(
        (), description="further names that requests may be sent to, in their Host header"
    )
    token: SecretStr = Field(SecretStr(""), description="what a request must bring; none where empty")
    watch: float = Field(10.0, ge=0, description="seconds between two looks at where the alias points; 0 never looks")
    max_body: ByteSize = Field(ByteSize(10_000_000), ge=1, description="bytes of a request's body")
    max_pixels: int = Field(25_000_000, ge=1, description="pixels of all the pictures of a request together")
    max_batch: int = Field(32, ge=1, le=1024, description="pictures or rows of a request, and of a batch of requests")
    timeout: float = Field(30.0, gt=0, description="seconds for a request, with reading it")
    queue: int = Field(128, ge=1, description="requests that may be under way")
    threads: int = Field(0, ge=0, description="threads that compute; 0 takes one for a small model, else one a core")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def make(token_file: Path | None, **told: Any) -> Options:
    """Options as typed; the token is the first line of `token_file`, or what `ORCH_SERVE_TOKEN` holds.

    Raises:
        UsageError: one of them cannot be, or a server that others reach would have no token.
    """
    try:
        options = Options(**told, token=SecretStr(_token(token_file)))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--{str(first['loc'][0]).replace('_', '-')} {first['input']}: {first['msg']}") from error
    if not options.is_loopback and not options.token.get_secret_value():
        raise UsageError(
            f"--host {options.host} is reached from other machines, so a token is needed: "
            f"set {TOKEN_VARIABLE}, or pass --token-file FILE"
        )
    return options


def _token(file: Path | None) -> str:
    if file is None:
        where, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            return ""
    else:
        try:
            where, token = str(file), file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--token-file {file} cannot be read: {error}") from error
    if len(token) < MIN_TOKEN or not token.isascii() or any(letter.isspace() for letter in token):
        raise UsageError(f"the token of {where} must be {MIN_TOKEN} or more ASCII characters without a space")
    return token
