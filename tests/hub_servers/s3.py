"""`s3_server()`: an S3 server (moto's) in a thread, with a bucket and its objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

S3_KEYS = {"AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test-account"}


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        url: where.
        client: boto3's, for setting things up.
    """

    url: str
    client: Any

    @property
    def environ(self) -> dict[str, str]:
        """Variables that let a client find it."""
        return {**S3_KEYS, "AWS_ENDPOINT_URL": self.url, "AWS_REGION": "us-east-1"}

    def upload(self, bucket: str, folder: Path, prefix: str = "") -> None:
        """Puts a folder's files into a bucket, which is made if it is not there."""
        self.client.create_bucket(Bucket=bucket)
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.client.put_object(
                    Bucket=bucket,
                    Key=prefix + file.relative_to(folder).as_posix(),
                    Body=file.read_bytes(),
                    ChecksumAlgorithm="SHA256",
                )


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Runs the server."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        keys = {
            "aws_access_key_id": S3_KEYS["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": S3_KEYS["AWS_SECRET_ACCESS_KEY"],
        }
        yield S3Server(url, boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys))
    finally:
        server.stop()
