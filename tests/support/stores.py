"""Places where a run may be: a folder, and an S3 server on loopback."""

import pytest

from bora_sweep.runs.storage import folder_at

BUCKET = "s3://runs"


class Store:
    """An S3 server of this test's own on loopback, which can go away and come back."""

    bucket = BUCKET

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self.make = ThreadedMotoServer
        self.port = 0
        self.start()

    def start(self) -> None:
        self.server = self.make(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()
        self.port = self.server.get_host_and_port()[1]

    def stop(self) -> None:
        self.server.stop()


@pytest.fixture(scope="module")
def store():
    pytest.importorskip("moto", reason="the S3 server of these tests is not installed: pip install 'bora-sweep[dev]'")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'bora-sweep[s3]'")
    s3fs.S3FileSystem.clear_instance_cache()  # a client of another module's server, which is gone
    with pytest.MonkeyPatch.context() as patch:
        made = Store()
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        folder_at(BUCKET).fs.makedirs("runs", exist_ok=True)  # the server keeps what another module wrote  # type: ignore
        yield made
        made.stop()


@pytest.fixture(params=["disk", "s3"])
def storage_folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "runs"
    request.getfixturevalue("store")
    return folder_at(f"{BUCKET}/{tmp_path.name}")
