"""Query a model over HTTP on this machine: `http://127.0.0.1:8000/predict`.

It exposes scores or labels, as its entry says (`access = "scores"` or "labels"). Protocol: POST
with a NumPy array file as body (.npy, application/octet-stream), float32 images in [0, 1] of shape
(n, c, h, w). The response, with status 200, is JSON (application/json) with n lists of scores or n
class indices, or an array file of the same. Scores are logits; a service that has probabilities may
send their logarithms. Other machines need `anywhere = true` in the params. Proxies and redirects
are not followed.
"""

import io
import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from bench.core.errors import ContractError, SuiteError

MAX_BYTES = 256 * 2**20
"""Longest response; scores of 256 images and 1000 classes take 5 MB in JSON."""
CHUNK = 2**16


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Rejects redirects."""

    def redirect_request(self, *_: Any) -> None:
        return None


def adapt(rest: str) -> Callable[..., Callable[[Tensor], Any]]:
    """Return the factory of the model at a URL.

    Args:
        rest: The URL after "http:".

    Returns:
        The factory, whose params are `timeout` in seconds and `anywhere`.
    """
    url = f"http:{rest}"

    def build(timeout: float = 30.0, anywhere: bool = False) -> Callable[[Tensor], Any]:
        _check_host(url, anywhere)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        return lambda x: _query(opener, url, x, timeout)

    return build


def _check_host(url: str, anywhere: bool) -> None:
    """Raise SuiteError for another machine's address unless `anywhere`."""
    host = urllib.parse.urlsplit(url).hostname
    if not host:
        raise SuiteError(f"model '{url}': expected http://HOST:PORT/PATH")
    try:
        own = ipaddress.ip_address(host).is_loopback
    except ValueError:
        own = host == "localhost"
    if not own and not anywhere:
        raise SuiteError(
            f"model '{url}': expected this machine (localhost, 127.0.0.1), got {host}; images are "
            "sent elsewhere only with anywhere = true among the model's params"
        )


def _query(opener: urllib.request.OpenerDirector, url: str, x: Tensor, timeout: float) -> Any:
    """Return the response to images x; raise ContractError without one in time."""
    body = io.BytesIO()
    np.save(body, x.numpy())
    kind = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, body.getvalue(), kind, method="POST")
    until = time.monotonic() + timeout
    try:
        with opener.open(request, timeout=timeout) as response:
            kind_of = response.headers.get_content_type()
            data = b""
            while part := response.read1(CHUNK):
                data += part
                if len(data) > MAX_BYTES:
                    raise ContractError(f"{url}: expected at most {MAX_BYTES} bytes in an answer")
                if time.monotonic() > until:
                    raise TimeoutError
    except TimeoutError as error:
        raise ContractError(f"{url}: no answer to {len(x)} images in {timeout:g} s") from error
    except urllib.error.HTTPError as error:
        error.close()
        raise ContractError(f"{url}: answered {error.code} {error.reason}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise ContractError(f"{url}: no answer to {len(x)} images in {timeout:g} s") from error
        raise ContractError(f"{url}: could not be asked: {reason}") from error
    try:
        if kind_of == "application/json":
            return np.asarray(json.loads(data))
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ContractError(f"{url}: expected JSON or an array file, got neither") from error
