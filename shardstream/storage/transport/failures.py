"""The failure of a request: whether to try again, and what to say, without a word of the store's package.

The texts of other packages' exceptions contain URLs, signatures and headers: only types, status and error
codes are taken from them.
"""

from __future__ import annotations

import email.utils
import errno
import re
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Failure", "failure_of", "is_unreachable", "of_status"]

_TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 509}
_SLOW_DOWN = {
    "SlowDown",
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "ServerBusy",
    "BandwidthLimitExceeded",
}
_TRANSIENT_CODES = {"InternalError", "ServiceUnavailable", "RequestTimeout", "OperationTimedOut"} | _SLOW_DOWN
_ERRNOS = {
    errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EAGAIN, errno.EREMOTEIO,
}  # fmt: skip
# Of aiohttp, botocore, urllib3 and requests, by name: none of them needs to be installed.
_LOST = {
    "ClientPayloadError", "ServerDisconnectedError", "ClientOSError", "ClientConnectorError",
    "HTTPClientError",
    "IncompleteRead", "IncompleteReadError", "ConnectionError", "ProtocolError", "ChunkedEncodingError",
    "ServiceRequestError", "ServiceResponseError", "TransportError", "TransferEncodingError",
}  # fmt: skip
_LATE = {"TimeoutError", "FSTimeoutError", "ReadTimeoutError", "ConnectTimeoutError", "Timeout"}
_NO_CREDENTIALS = (
    "no credentials were found: set them in the environment or in storage_options as the store's SDK takes "
    'them, or give storage_options={"anon": True} for public data'
)
_EXPIRED = "the credentials have expired: get new ones"
_WRONG = "the credentials are refused: check the key and the secret, and that they belong to this endpoint"
_REGION = "the bucket is in another region or at another endpoint: set it in storage_options or AWS_REGION"
_HINTS = {
    "NoSuchBucket": "there is no such bucket: check its name and the endpoint",
    "ContainerNotFound": "there is no such container: check its name and the account",
    "InvalidBucketName": "this cannot be the name of a bucket",
    "AccountIsDisabled": "the account is disabled",
    "ExpiredToken": _EXPIRED, "ExpiredTokenException": _EXPIRED, "TokenRefreshRequired": _EXPIRED,
    "RequestExpired": _EXPIRED, "InvalidToken": _EXPIRED,
    "InvalidAccessKeyId": _WRONG, "SignatureDoesNotMatch": _WRONG, "AuthenticationFailed": _WRONG,
    "InvalidClientTokenId": _WRONG, "UnrecognizedClientException": _WRONG,
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "AccessDenied": "access is denied: these credentials do not allow it",
    "PermanentRedirect": _REGION, "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
}  # fmt: skip
_CREDENTIALS = {
    "NoCredentialsError": _NO_CREDENTIALS, "PartialCredentialsError": "the credentials are incomplete",
    "CredentialRetrievalError": "the credentials cannot be fetched", "TokenRetrievalError": _EXPIRED,
    "UnauthorizedSSOTokenError": _EXPIRED, "SSOTokenLoadError": _EXPIRED, "RefreshError": _EXPIRED,
    "ProfileNotFound": "there is no such profile: check AWS_PROFILE",
    "DefaultCredentialsError": _NO_CREDENTIALS, "ClientAuthenticationError": _WRONG,
    "UnauthenticatedError": _WRONG,
    "PermissionDeniedError": "access is denied: these credentials do not allow it",
}  # fmt: skip
_MISSING = {"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "BlobNotFound", "ContainerNotFound", "404"}


class Failure(Exception):  # noqa: N818 - of an attempt; users meet it as StorageError
    """One request that failed. Its text is safe to show.

    kind: the built-in error that it is like.  status: of HTTP, or 0.
    """

    def __init__(
        self,
        reason: str,
        transient: bool = False,
        kind: type[OSError] = OSError,
        status: int = 0,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.transient, self.kind = reason, transient, kind
        self.status, self.retry_after = status, retry_after
        self.attempts, self.seconds = 1, 0.0

    @property
    def slow_down(self) -> bool:
        """Whether the store has too much to do."""
        return self.status in (429, 503)

    def __str__(self) -> str:
        if self.attempts == 1 and not self.transient:
            return self.reason
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        return f"{self.reason} (tried {times} in {self.seconds:.1f} s)"


def is_unreachable(error: BaseException) -> bool:
    """Whether the cause is that nobody answered, or that the store failed; not that it refused."""
    return isinstance(error.__cause__, (ConnectionError, TimeoutError))


def of_status(status: int, code: str = "", headers: Mapping[str, Any] | None = None) -> Failure:
    """The failure that the status of an answer stands for."""
    code = "" if code.isdigit() or not re.fullmatch(r"\w{1,60}", code) else code
    transient = status in _TRANSIENT or code in _TRANSIENT_CODES
    known = f"{status} {code}".strip() if status else code
    kind: type[OSError] = OSError
    if code in _MISSING or (status in (404, 410) and not code):
        kind, text = FileNotFoundError, "not found"
    elif status in (401, 403):
        kind, text = PermissionError, "access is denied: these credentials, or none, do not allow it"
    elif status == 412 or code == "PreconditionFailed":
        kind, text = FileExistsError, "it exists already"
    elif transient:
        kind = ConnectionError if status == 408 or status >= 500 or code in _TRANSIENT_CODES else OSError
        text = "the store is overloaded" if status in (429, 503) else "the store failed"
    elif status in (301, 302, 307, 308):
        text = _REGION
    else:
        text = "the store refuses the request; is this the right endpoint?"
    if code in _SLOW_DOWN:
        status = 503
    text = _HINTS.get(code, text)
    return Failure(f"{text} ({known})" if known else text, transient, kind, status, _seconds(headers))


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception of any store stands for."""
    if isinstance(error, Failure):
        return error
    chain = list(_chain(error))
    for each in chain:
        found = _answered(each)
        if found is not None:
            return found
    for each in chain:
        names = {kind.__name__ for kind in type(each).__mro__}
        for name in names & _CREDENTIALS.keys():
            return Failure(f"{_CREDENTIALS[name]} ({name})", kind=PermissionError)
    for each in chain:
        found = _of_type(each)
        if found is not None:
            return found
    return Failure(type(error).__name__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    for _ in range(8):
        if each is None:
            return
        yield each
        # Not __context__: an error that a timeout interrupted is no cause.
        each = each.__cause__


def _answered(error: BaseException) -> Failure | None:
    """The failure in a server's answer, which is in an attribute of the error or in its text."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        meta, told = response.get("ResponseMetadata", {}), response.get("Error", {})
        answered = int(meta.get("HTTPStatusCode", 0))
        return of_status(answered, str(told.get("Code", "")), meta.get("HTTPHeaders"))
    # aiohttp, azure, gcsfs. aiohttp's parser makes up a `code` of its own.
    for name in ("status", "status_code", "code" if type(error).__name__ == "HttpError" else "status"):
        status: Any = getattr(error, name, None)
        if isinstance(status, (int, str)) and str(status).isdigit() and 300 <= int(status) < 600:
            return of_status(
                int(status), str(getattr(error, "error_code", "") or ""), getattr(error, "headers", None)
            )
    if type(error).__module__.startswith("obstore") or "object at location" in str(error).lower():
        return _of_text(str(error))
    return None


def _of_text(text: str) -> Failure | None:
    """The failure that an error of obstore tells, which is in its text alone."""
    provider = re.search(r"credential provider: RuntimeError: (\w+) (transient|permanent)", text)
    if provider:  # of credentials.py
        name, transient = provider[1], provider[2] == "transient"
        reason = _CREDENTIALS.get(name, "the credentials cannot be fetched")
        return Failure(f"{reason} ({name})", transient, PermissionError)
    code = re.search(r"<Code>(\w+)</Code>", text)
    status = re.search(
        r"\b(?:status|error|redirect(?:ion)?)\s*(?:code)?:?\s*\(?(\d{3})\b", text, re.IGNORECASE
    )
    number = int(status[1]) if status else 0
    if code or 300 <= number < 600:
        if not number and code and code[1] in _MISSING:
            number = 404
        return of_status(number, code[1] if code else "")
    if re.search(r"Invalid\w+Response", text):  # damaged on its way, or not of such a store
        reason = "the store's answer cannot be read; is this the right endpoint?"
        return Failure(reason, transient=True, kind=ConnectionError)
    if re.search(r"dns error|lookup address", text, re.IGNORECASE):
        return Failure("the host is not known: check the endpoint", kind=ConnectionError)
    if re.search(r"timed ?out", text, re.IGNORECASE):
        return Failure("no answer in time", transient=True, kind=TimeoutError)
    if re.search(r"connect|reset|closed|hyper|body|decod|IncompleteMessage", text, re.IGNORECASE):
        refused = re.search(r"connection refused|os error 111", text, re.IGNORECASE)
        reason = "the connection was lost, or none was possible"
        if refused:
            reason = "the connection was refused: check the endpoint"
        return Failure(reason, transient=True, kind=ConnectionError)
    return None


def _of_type(error: BaseException) -> Failure | None:
    names = {kind.__name__ for kind in type(error).__mro__}
    unknown = isinstance(error, socket.gaierror) and error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
    if isinstance(error, socket.gaierror) or "ClientConnectorDNSError" in names:
        return Failure(
            "the host is not known: check the endpoint", transient=not unknown, kind=ConnectionError
        )
    if names & {"ClientSSLError", "SSLError", "SSLCertVerificationError"}:
        return Failure(f"no secure connection is possible ({type(error).__name__})", kind=ConnectionError)
    if names & _LATE:
        return Failure("no answer in time", transient=True, kind=TimeoutError)
    if isinstance(error, FileNotFoundError):
        return Failure("not found", kind=FileNotFoundError)
    if isinstance(error, (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)):
        return Failure(_words(error), kind=type(error) if type(error).__module__ == "builtins" else OSError)
    if names & _LOST or (isinstance(error, OSError) and error.errno in _ERRNOS):
        refused = getattr(error, "errno", 0) == errno.ECONNREFUSED
        text = "refused: check the endpoint" if refused else "lost"
        return Failure(
            f"the connection was {text} ({type(error).__name__})", transient=True, kind=ConnectionError
        )
    if "ResponseParserError" in names:
        return Failure("no answer of such a store; is this the right endpoint?", transient=True)
    if isinstance(error, OSError) and error.errno:
        return Failure(_words(error))
    return None


def _words(error: OSError) -> str:
    # Not `strerror`, since stores put their own texts there.
    return errno.errorcode.get(error.errno or 0, "") or type(error).__name__


def _seconds(headers: Mapping[str, Any] | None) -> float | None:
    """Retry-After, as seconds or as a date."""
    found = [str(value) for name, value in (headers or {}).items() if name.lower() == "retry-after"]
    value = found[0] if found else ""
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except (ValueError, OverflowError):
        return None
