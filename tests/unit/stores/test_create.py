from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from zimage_stream.errors import SettingsError, StoreMisconfiguredError
from zimage_stream.settings import StoreSettings
from zimage_stream.stores import create_store
from zimage_stream.stores.directory import DirectoryStore
from zimage_stream.stores.minio import MinioStore

KEYS = {"access_key": "key", "secret_key": SecretStr("secret")}


def test_the_settings_choose_the_store(tmp_path: Path) -> None:
    assert isinstance(create_store(StoreSettings(kind="directory", path=tmp_path)), DirectoryStore)
    assert isinstance(create_store(StoreSettings(kind="minio")), MinioStore)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"endpoint": "localhost:9000/images"}, "ZIMAGE_STORE__ENDPOINT"),
        ({"bucket": "No Such Name"}, "ZIMAGE_STORE__BUCKET"),
        ({"bucket": "a"}, "ZIMAGE_STORE__BUCKET"),
        ({"prefix": "../elsewhere"}, "ZIMAGE_STORE__PREFIX"),
        ({"ssl_ca_location": Path("no-such-file.pem")}, "ZIMAGE_STORE__SSL_CA_LOCATION"),
        ({"secret_key": None}, "ZIMAGE_STORE__SECRET_KEY"),
        ({"secret_key": SecretStr("")}, "ZIMAGE_STORE__SECRET_KEY"),
        ({"access_key": None}, "ZIMAGE_STORE__ACCESS_KEY"),
    ],
)
def test_an_invalid_setting_is_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        create_store(StoreSettings(**{**KEYS, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["", "/"])
def test_a_uri_contains_the_bucket(prefix: str) -> None:
    store = create_store(StoreSettings(bucket="pictures", prefix=prefix))
    assert (store.bucket, store.uri("t/a.png")) == ("pictures", "s3://pictures/t/a.png")


@pytest.mark.parametrize("prefix", ["year/2026", "/year/2026/"])
def test_a_prefix_is_part_of_the_uri(prefix: str) -> None:
    assert create_store(StoreSettings(bucket="pictures", prefix=prefix)).uri("t/a.png") == (
        "s3://pictures/year/2026/t/a.png"
    )


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_line_break_in_a_key_from_the_environment_is_reported(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv(name, "hunter2\n")
    store = create_store(StoreSettings(endpoint="127.0.0.1:1", region="us-east-1"))
    with pytest.raises(StoreMisconfiguredError, match=r"AWS_.*begins or ends with white space") as caught:
        store.stat("a/b.png")
    assert "hunter2" not in str(caught.value)
