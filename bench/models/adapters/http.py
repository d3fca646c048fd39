"""A model that answers on this machine over HTTP: `http://127.0.0.1:8000/predict`.

It shows scores or labels alone, and its entry says which: `access = "scores"` or "labels". The
protocol: POST with the body a NumPy array file (.npy, application/octet-stream), float32 images in
[0, 1] of shape (n, c, h, w); the answer, with status 200, is either JSON (application/json), n
lists of scores or n class indices, or an array file of the same. Scores are logits: of
probabilities the service may send the logarithm. Only this machine is asked unless
`anywhere = true` is among the params; neither proxies nor redirects are followed.
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
"""No answer is longer: 256 images of 1000 scores in JSON take 5 MB."""
CHUNK = 2**16


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def adapt(rest: str) -> Callable[..., Callable[[Tensor], Any]]:
    """The factory of the model at `http:{rest}`."""
    url = f"http:{rest}"

    def build(timeout: float = 30.0, anywhere: bool = False) -> Callable[[Tensor], Any]:
        """`timeout`: most seconds for one batch."""
        _check(url, anywhere)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())
        return lambda x: _asked(opener, url, x, timeout)

    return build


def _check(url: str, anywhere: bool) -> None:
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


def _asked(opener: urllib.request.OpenerDirector, url: str, x: Tensor, timeout: float) -> Any:
    """The service's answer to images x; raises ContractError if it gives none in time."""
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
        told = getattr(error, "reason", error)
        if isinstance(told, TimeoutError):
            raise ContractError(f"{url}: no answer to {len(x)} images in {timeout:g} s") from error
        raise ContractError(f"{url}: could not be asked: {told}") from error
    try:
        if kind_of == "application/json":
            return np.asarray(json.loads(data))
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ContractError(f"{url}: expected JSON or an array file, got neither") from error
