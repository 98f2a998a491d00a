"""Real servers of the two stores' protocols on loopback, as fixtures: `gs://lgm-bucket` and `s3://lgm-bucket`."""

import os
import socket
import threading
from http import HTTPStatus

import pytest

BUCKET = "lgm-bucket"


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _generations(monkeypatch):
    """The emulator tells no generation of what is read and heeds no condition of a write: as the store does, so that
    writers that meet are told, and neither one's words are lost."""
    from gcp_storage_emulator.handlers import objects

    upload, download, one_at_a_time = objects._media_upload, objects.download, threading.Lock()

    def generation(storage, name):
        try:
            return storage.get_file_obj(BUCKET, name)["generation"]
        except objects.NotFound:
            return "0"

    def conditional(request, response, storage):
        with one_at_a_time:
            wanted = request.query.get("ifGenerationMatch")
            if wanted and wanted[0] != generation(storage, request.query["name"][0]):
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
            upload(request, response, storage)

    def told(request, response, storage, *args, **kwargs):
        response["x-goog-generation"] = generation(storage, request.params["object_id"])
        return download(request, response, storage, *args, **kwargs)

    monkeypatch.setattr(objects, "_media_upload", conditional)
    monkeypatch.setattr(objects, "download", told)


def _gs(monkeypatch):
    from gcp_storage_emulator import server

    _generations(monkeypatch)
    port = _port()
    running = server.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    running.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")  # gcsfs
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{port}")  # Orbax's driver
    return running.stop


def _s3(monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer("127.0.0.1", _port(), verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in (("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "none"),
                        ("AWS_SECRET_ACCESS_KEY", "none"), ("AWS_DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    return running.stop


def forget(kind: str):
    """Drop the connections to a store's server that fsspec and epath keep for the whole process."""
    import fsspec
    from etils.epath.backend import fsspec_backend

    fsspec.get_filesystem_class(kind).clear_instance_cache()
    fsspec_backend._get_filesystem.cache_clear()


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request, tmp_path_factory):
    """The address of an empty bucket."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        stop = {"gs": _gs, "s3": _s3}[request.param](monkeypatch)
        forget(request.param)
        try:
            yield f"{request.param}://{BUCKET}"
        finally:
            forget(request.param)
            stop()
    assert "STORAGE_EMULATOR_HOST" not in os.environ
