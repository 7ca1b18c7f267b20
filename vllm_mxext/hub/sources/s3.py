"""`S3Source`: objects of S3 and of servers that speak its protocol, as MinIO does."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

from vllm_mxext.errors import ConfigError, DownloadError, HubCause, HubError, MissingDependencyError, TransferError
from vllm_mxext.hub.network import CONNECT_TIMEOUT_S, Network
from vllm_mxext.hub.retrying import retrying
from vllm_mxext.hub.sources.answers import Advice
from vllm_mxext.hub.sources.endpoints import endpoint_of
from vllm_mxext.hub.sources.http_range import open_http_range
from vllm_mxext.hub.sources.interface import Listing, Range, RemoteFile
from vllm_mxext.hub.sources.listing import make_listing
from vllm_mxext.hub.sources.parallel import in_parallel
from vllm_mxext.redaction import guard_logs, redact

if TYPE_CHECKING:
    import httpx
    import minio

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL", "MINIO_ENDPOINT")
_ACCESS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "MINIO_ACCESS_KEY")
_SECRET_KEYS = ("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "MINIO_SECRET_KEY")
_PASSING_CODES = frozenset({"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"})
_WRONG_KEYS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})

_SIGNED_FOR = timedelta(hours=1)

T = TypeVar("T")


class S3Source:
    """The objects below a prefix of a bucket; see `Source`.

    The client lists and signs; bytes come through the same connections as those of other sources. A SHA-256 is known if
    the object was stored with that checksum of its whole content.

    Args:
        uri: `s3://BUCKET[/PREFIX]`.
        revision: one that `list_files()` has given before; others mean nothing here.
        network: connections, and the variables with endpoint, region and credentials.

    Raises:
        ConfigError: the URI has another form, or credentials in it.
        MissingDependencyError: `minio` is not installed.
    """

    def __init__(self, uri: str, revision: str | None, network: Network) -> None:
        self._bucket, self._prefix = parse_bucket(uri)
        self.uri = uri
        self._revision = revision
        self._network = network
        self._environ = network.config.environ
        endpoint = endpoint_of(self._environ, _ENDPOINTS, "")
        self._endpoint = endpoint or "https://s3.amazonaws.com"
        self._client = self._make_client()
        self._advice = Advice(
            what=f"What is at {uri} ({urlsplit(self._endpoint).hostname})",
            unauthorized="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to keys that may read it.",
            not_found="check bucket and prefix, and AWS_ENDPOINT_URL if the server is not Amazon's.",
            explain=self._explain,
        )

    def list_files(self) -> Listing:
        """Lists the objects."""
        self._network.refuse_if_offline(self._advice.what)
        objects = self._retrying(lambda: list(self._client.list_objects(self._bucket, self._prefix, recursive=True)))
        if not objects and self._prefix.endswith("/"):  # the URI may be that of one object
            objects = self._retrying(
                lambda: list(self._client.list_objects(self._bucket, self._prefix.rstrip("/"), recursive=True))
            )
            objects = [entry for entry in objects if entry.object_name == self._prefix.rstrip("/")]
        found = [entry for entry in objects if entry.object_name and not entry.object_name.endswith("/")]
        marked = in_parallel(self._marked, found, self._network.config.num_connections)
        return make_listing(self._advice.what, marked, name="files", asked_revision=self._revision)

    def open_range(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> Range:
        """Asks for bytes of an object, in the version that was listed if the bucket keeps versions."""
        self._network.refuse_if_offline(self._advice.what)
        key, _, query = file.locator.partition("?")
        version = parse_qs(query).get("versionId", [None])[0]
        url = self._once(
            lambda: self._client.get_presigned_url(
                "GET", self._bucket, unquote(key), expires=_SIGNED_FOR, version_id=version
            )
        )
        return open_http_range(self._network, url, file, (start, end), validator, self._advice)

    def close(self) -> None:
        """Leaves the network's connections open for others."""

    def _marked(self, entry: Any) -> tuple[RemoteFile, str]:
        key = str(entry.object_name)
        known = self._retrying(
            lambda: self._client.stat_object(self._bucket, key, extra_headers={"x-amz-checksum-mode": "ENABLED"})
        )
        headers = {name.lower(): value for name, value in (known.metadata or {}).items()}
        path = key.removeprefix(self._prefix) if key.startswith(self._prefix) else key.rpartition("/")[2]
        version = known.version_id if known.version_id not in (None, "", "null") else None
        locator = quote(key) + (f"?versionId={quote(version)}" if version else "")
        return RemoteFile(path, known.size, _sha256(headers), locator), f"{known.etag}"

    def _make_client(self) -> minio.Minio:
        try:
            import minio  # noqa: PLC0415 - an optional package
            import urllib3  # noqa: PLC0415 - comes with it
        except ImportError as error:
            raise MissingDependencyError("s3:// needs a further package: pip install 'vllm_mxext[s3]'.") from error
        guard_logs()
        split = urlsplit(self._endpoint)
        settings: dict[str, Any] = {
            "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=self._network.config.stall_s or None),
            "retries": False,
        }
        if split.scheme == "https":
            settings["ssl_context"] = self._network.tls()
        proxy = self._network.proxy(split.scheme, split.hostname or "", split.port)
        if proxy and proxy.startswith("socks"):
            raise ConfigError(
                f"s3:// takes no SOCKS proxy; set HTTPS_PROXY to one of http, or put {split.hostname} into NO_PROXY."
            )
        if proxy and (login := urlsplit(proxy)).username:
            name, word = unquote(login.username or ""), unquote(login.password or "")
            settings["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=f"{name}:{word}")
        pool = urllib3.ProxyManager(proxy, **settings) if proxy else urllib3.PoolManager(**settings)
        return minio.Minio(
            split.netloc,
            secure=split.scheme == "https",
            region=self._environ.get("AWS_REGION") or self._environ.get("AWS_DEFAULT_REGION") or None,
            credentials=_credentials(self._environ),
            http_client=pool,
        )

    def _retrying(self, work: Callable[[], T]) -> T:
        return retrying(lambda: self._once(work))

    def _once(self, work: Callable[[], T]) -> T:
        """Returns what the client does, with errors of this project."""
        import minio.error  # noqa: PLC0415 - an optional package
        import urllib3.exceptions  # noqa: PLC0415 - comes with it

        try:
            return work()
        except minio.error.S3Error as error:
            raise self._error(error.code or "", error.response.status) from error
        except minio.error.ServerError as error:
            raise TransferError(f"{self._host} is in trouble (status {error.status_code}); try again later.") from error
        except minio.error.InvalidResponseError as error:
            raise TransferError(
                f"{self._host} does not answer as S3 does; check AWS_ENDPOINT_URL, and proxies in between."
            ) from error
        except urllib3.exceptions.HTTPError as error:
            raise TransferError(
                f"{self._host} cannot be reached ({redact(str(error)).rstrip('.')}); check the network, "
                "AWS_ENDPOINT_URL and "
                "HTTPS_PROXY."
            ) from error
        except ValueError as error:  # names of buckets and objects, and files of credentials
            raise ConfigError(f"{self.uri} cannot be used: {redact(str(error)).rstrip('.')}; correct it.") from error

    @property
    def _host(self) -> str:
        return str(urlsplit(self._endpoint).hostname)

    def _error(self, code: str, status: int) -> HubError:  # noqa: PLR0911 - a table of cases
        what = self._advice.what
        if code in _PASSING_CODES or status in (429, 500, 502, 503, 504):
            return TransferError(f"{self._host} is in trouble ({code or status}); try again later.")
        if code in _WRONG_KEYS:
            return DownloadError(
                f"{self._host} does not take the keys for {self.uri} ({code}); check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or the profile.",
                cause=HubCause.UNAUTHORIZED,
            )
        if code == "RequestTimeTooSkewed":
            return DownloadError(
                f"This machine's clock is not that of {self._host}; set it right.", cause=HubCause.FAILED
            )
        if code in ("AuthorizationHeaderMalformed", "PermanentRedirect"):
            return DownloadError(f"{what} is in another region; set AWS_REGION to that of the bucket.")
        if code.startswith("NoSuch") or status == 404:
            return DownloadError(f"{what} does not exist ({code}): {self._advice.not_found}", cause=HubCause.NOT_FOUND)
        if status in (401, 403):
            return DownloadError(
                f"{what} may not be read ({code or status}): {self._advice.unauthorized}", cause=HubCause.UNAUTHORIZED
            )
        return DownloadError(f"{what} cannot be had: {self._host} says {redact(code) or status}; check the address.")

    def _explain(self, response: httpx.Response, body: bytes) -> HubError | None:
        match = re.search(rb"<Code>(\w+)</Code>", body[:4096])
        return self._error(match[1].decode(), response.status_code) if match else None


def parse_bucket(uri: str) -> tuple[str, str]:
    """Returns bucket and prefix of `SCHEME://BUCKET[/PREFIX]`; the prefix is empty or ends with `/`.

    Raises:
        ConfigError: the URI has another form, or credentials in it.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            f"'{redact(uri)}' must not have keys in it, where others can read them; use the environment or a profile."
        )
    if not bucket or "?" in uri or "#" in uri:
        raise ConfigError(f"'{redact(uri)}' must have the form {scheme}://BUCKET/PREFIX.")
    prefix = prefix.strip("/")
    return bucket, f"{prefix}/" if prefix else ""


def _credentials(environ: Mapping[str, str]) -> Any:
    """Returns keys of the environment, else of the profile in the shared file; None = anonymous."""
    from minio.credentials import providers  # noqa: PLC0415 - an optional package

    access, secret = (_first(environ, names) for names in (_ACCESS_KEYS, _SECRET_KEYS))
    if access and secret:
        return providers.StaticProvider(access, secret, environ.get("AWS_SESSION_TOKEN") or None)
    home = Path(environ.get("HOME") or "/nonexistent")
    file = Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials")
    if file.is_file():
        return providers.AWSConfigProvider(str(file), environ.get("AWS_PROFILE") or "default")
    if environ.get("AWS_PROFILE"):
        raise ConfigError(f"AWS_PROFILE is set but '{file}' is not there; make it with `aws configure`, or unset it.")
    if environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") or environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return providers.IamAwsProvider()  # a role of the container: its service is named by the variables themselves
    return None


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)


def _sha256(headers: Mapping[str, str]) -> str | None:
    """Returns the checksum of the whole object; that of an object in parts is one of checksums."""
    text = headers.get("x-amz-checksum-sha256", "")
    if headers.get("x-amz-checksum-type", "FULL_OBJECT").upper() != "FULL_OBJECT":
        return None
    try:
        digest = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return digest.hex() if len(digest) == 32 else None
