"""Settings are read once and checked at startup, with clear messages for what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pydantic
import pytest

from zimage_stream.errors import SettingsError
from zimage_stream.kafka.clients import common_config
from zimage_stream.settings import KafkaSettings, RegistrySettings, Settings, environment_of, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("ZIMAGE_"):
            monkeypatch.delenv(name)


def test_the_environment_overrides_the_file_and_arguments_override_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "zimage.toml"
    file.write_text('[kafka]\nbootstrap_servers = "file:1"\n[store]\nbucket = "file"\nendpoint = "file:2"\n')
    monkeypatch.setenv("ZIMAGE_STORE__BUCKET", "environment")
    settings = load_settings(file, {"store": {"endpoint": "argument:3"}})
    assert settings.kafka.bootstrap_servers == "file:1"
    assert settings.store.bucket == "environment"
    assert settings.store.endpoint == "argument:3"
    assert settings.topics.requests == "zimage.requests"


def test_the_file_may_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "zimage.toml"
    file.write_text("[worker]\nmax_attempts = 5\n")
    monkeypatch.setenv("ZIMAGE_CONFIG", str(file))
    assert load_settings().worker.max_attempts == 5
    with pytest.raises(SettingsError, match="the file does not exist"):
        load_settings(tmp_path / "elsewhere.toml")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WORKER__MAX_ATTEMPTS", "none", "got 'none'; input should be a valid integer"),
        ("WORKER__MAX_ATTEMPTS", "0", "got '0'; input should be greater than or equal to 1"),
        ("WORKER__MAX_ATTEMPTS", "15", "got '15'; input should be less than or equal to 14"),
        ("WORKER__GUARANTEE", "maybe", "got 'maybe'; input should be 'exactly_once' or 'at_least_once'"),
        ("ENGINE__MAX_BATCH", "65", "got '65'; input should be less than or equal to 64"),
        ("STORE__KIND", "ftp", "got 'ftp'; input should be 'minio' or 'directory'"),
        ("TELEMETRY__PORT", "70000", "got '70000'; input should be less than or equal to 65535"),
        ("STORE__BUCKETT", "x", "there is no such setting"),
    ],
)
def test_an_invalid_value_is_reported_with_its_variable_and_the_valid_ones(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(f"ZIMAGE_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"ZIMAGE_{name}: ")
    assert words in str(caught.value)


def test_every_problem_is_reported_on_its_own_line() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides={"worker": {"window": 0}, "store": {"kind": "ftp"}})
    assert len(str(caught.value).splitlines()) == 2


def test_secrets_are_not_shown_but_reach_a_child_process() -> None:
    settings = load_settings(overrides={"store": {"access_key": "key", "secret_key": "hush"}})
    assert "hush" not in repr(settings)
    assert environment_of(settings)["ZIMAGE_STORE__SECRET_KEY"] == "hush"


def test_a_child_process_gets_exactly_these_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(
        overrides={"kafka": {"extra": {"linger.ms": "1"}}, "scheduler": {"tenant_weights": {"gold": 3}}}
    )
    monkeypatch.setenv("ZIMAGE_REGISTRY__URL", "http://not.these")
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ZIMAGE_REGISTRY__URL")
    assert load_settings().model_dump() == settings.model_dump()


def test_settings_are_immutable() -> None:
    settings = Settings()
    with pytest.raises(pydantic.ValidationError):
        settings.kafka.bootstrap_servers = "elsewhere"


def test_nothing_is_read_at_import() -> None:
    code = "import os; os.environ['ZIMAGE_WORKER__WINDOW'] = 'wrong'; import zimage_stream.settings"
    subprocess.run([sys.executable, "-c", code], check=True)


SECRET = "hunter2"
PEM = f"-----BEGIN {SECRET}-----\nMII\n-----END-----\n"


class TestSecretsAreNotShown:
    @pytest.mark.parametrize(
        "toml",
        [
            "[store]\naccess_key = 'k'\nsecret_key = 1234567",
            "[store]\nsecret_key = ['1234567']",
            "[store]\nsecret_key = {a = '1234567'}",
            "[store]\nsecret_key = 1234567.5",
            "[store]\naccess_key = 1234567",
            "[kafka]\nsasl_password = 1234567\nsasl_mechanism = 'nosuch'",
            "[kafka]\nssl_key_password = true\nsasl_password = '1234567\\n'",
            "[kafka]\nextra = '1234567'",
            "[kafka.extra]\n'ssl.key.password' = 1234567",
            "[kafka.extra]\n'sasl.oauthbearer.assertion.private.key.passphrase' = [1234567]",
            "[kafka.extra]\n'sasl.password' = ' 1234567'",
            "kafka = '1234567'",
            "registry = ['http://u:1234567@r']",
            "[kafka]\nsecurity_protocol = 'SASL_SSL'\nsasl_password = '1234567'",
            "[registry]\npassword = 1234567\nurl = 'http://u:1234567@r'",
            "[registry]\nurl = ['http://u:1234567@r']",
            "[registry]\nurl = 'http://u:1234567@r:port'",
            "[registry]\nurl = 'http://u:1234567/8@r'",
            "[registry]\nurl = 'ftp://u:1234567@r'",
            "[registry]\nurl = 'u:1234567@r'",
            "[registry]\nurl = 'http://u:1234567@r'\nusername = 'v'",
            "[registry]\nurl = 'http://u:1234567@r,http://v:1234567@s'",
            "[store]\nendpoint = 'http://u:1234567@minio:9000'",
            "[store]\nendpoint = 'u:1234567@minio:9000'",
            "[store]\nkind = 'https://u:1234567@minio'",
            "[store]\nsecret_key = '1234567",
        ],
    )
    def test_in_an_error(self, tmp_path: Path, toml: str) -> None:
        file = tmp_path / "zimage.toml"
        file.write_text(toml, encoding="utf-8")
        with pytest.raises(SettingsError) as caught:
            load_settings(file)
        assert "1234567" not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize(
        "value", ['{"sasl_password": "1234567",}', '"1234567"', '["1234567"]', "1234567"]
    )
    @pytest.mark.parametrize("name", ["ZIMAGE_KAFKA", "ZIMAGE_KAFKA__EXTRA"])
    def test_of_a_whole_group(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        monkeypatch.setenv(name, value)
        with pytest.raises(SettingsError) as caught:
            load_settings()
        assert "1234567" not in "".join(traceback.format_exception(caught.value))

    def test_in_their_representation(self) -> None:
        extra = {"ssl.key.pem": PEM, "sasl.oauthbearer.client.secret": SECRET}
        settings = load_settings(
            overrides={
                "kafka": {"extra": extra, "sasl_password": SECRET},
                "registry": {"url": f"http://me:{SECRET}@registry"},
            }
        )
        for text in (repr(settings), str(settings), f"{settings.kafka}", repr(settings.registry)):
            assert SECRET not in text
        assert settings.kafka.extra == extra


class TestRegistryUrl:
    def test_its_user_and_password_become_settings_of_their_own(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ZIMAGE_REGISTRY__URL", "https://me%40home:p%2Fw%3A@registry:8081/api")
        registry = load_settings().registry
        assert registry.url == "https://registry:8081/api"
        assert registry.username == "me@home"
        assert registry.password is not None
        assert registry.password.get_secret_value() == "p/w:"
        for name, value in environment_of(load_settings()).items():
            monkeypatch.setenv(name, value)
        assert load_settings().registry == registry

    def test_may_be_a_list(self) -> None:
        registry = RegistrySettings(url="http://u:p@a:1, http://b:2")
        assert (registry.url, registry.username) == ("http://a:1,http://b:2", "u")

    def test_is_unchanged_without_credentials(self) -> None:
        for url in ("http://a:1/x/", "http://a,https://b", "http://[::1]:8081"):
            registry = RegistrySettings(url=url)
            assert (registry.url, registry.username, registry.password) == (url, None, None)


class TestMisleadingValues:
    @pytest.mark.parametrize("value", ["hunter2\n", " hunter2", "hunter2\r\n", "hun\nter2", "hunter2\u00a0"])
    @pytest.mark.parametrize(
        "name", ["STORE__SECRET_KEY", "STORE__ACCESS_KEY", "KAFKA__SASL_PASSWORD", "REGISTRY__PASSWORD"]
    )
    def test_white_space_in_a_secret_is_reported_without_showing_the_secret(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        monkeypatch.setenv(f"ZIMAGE_{name}", value)
        with pytest.raises(SettingsError, match=rf"^ZIMAGE_{name}: it (begins or ends|contains)") as caught:
            load_settings()
        assert "hun" not in str(caught.value)
        assert "line break" in str(caught.value)

    def test_white_space_around_a_name_is_reported_and_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ZIMAGE_STORE__BUCKET", "pictures\n")
        with pytest.raises(
            SettingsError, match=r"ZIMAGE_STORE__BUCKET: got 'pictures\\n'; it begins or ends"
        ):
            load_settings()

    def test_secret_librdkafka_options_are_checked_too_but_a_pem_may_have_lines(self) -> None:
        assert KafkaSettings(extra={"ssl.key.pem": PEM}).extra == {"ssl.key.pem": PEM}
        with pytest.raises(SettingsError, match=r"ZIMAGE_KAFKA__EXTRA: ssl.key.password: it begins or ends"):
            load_settings(overrides={"kafka": {"extra": {"ssl.key.password": "a\n"}}})

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ("http://minio:9000", "store.endpoint to 'minio:9000' and store.secure to false"),
            ("HTTPS://minio:9000/", "store.endpoint to 'minio:9000' and store.secure to true"),
            ("https://k:s@minio", "'minio' and store.secure to true; set the keys as store.access_key"),
        ],
    )
    def test_a_scheme_in_the_store_endpoint_is_reported_with_the_remedy(self, given: str, says: str) -> None:
        with pytest.raises(SettingsError) as caught:
            load_settings(overrides={"store": {"endpoint": given}})
        assert str(caught.value).startswith("ZIMAGE_STORE__ENDPOINT: got ")
        assert "HOST:PORT without a scheme" in str(caught.value)
        assert says in str(caught.value)

    def test_a_byte_order_mark_is_ignored(self, tmp_path: Path) -> None:
        file = tmp_path / "zimage.toml"
        file.write_bytes(b"\xef\xbb\xbf[worker]\r\nmax_attempts = 5\r\n")
        assert load_settings(file).worker.max_attempts == 5

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            ("[worker]".encode("utf-16"), "it is not UTF-8 (byte 0xff at 0); save it as UTF-8"),
            (b"[worker]\nmodel = '\xe9'", "it is not UTF-8 (byte 0xe9 at 18)"),
            (b"[worker", "it is not valid TOML: "),
        ],
    )
    def test_an_unreadable_file_is_reported_with_the_reason(
        self, tmp_path: Path, data: bytes, says: str
    ) -> None:
        file = tmp_path / "zimage.toml"
        file.write_bytes(data)
        with pytest.raises(SettingsError) as caught:
            load_settings(file)
        assert says in str(caught.value)
        with pytest.raises(SettingsError, match="directory"):
            load_settings(tmp_path)


class TestLibrdkafkaOptions:
    @pytest.mark.parametrize(
        ("name", "value", "why"),
        [
            ("group.protocol", "consumer", "classic protocol"),
            ("isolation.level", "read_uncommitted", "aborted transactions"),
            ("acks", "1", "all replicas"),
            ("group.id", "mine", "worker.group_id"),
            ("enable.auto.commit", "true", "committed together with the results"),
        ],
    )
    def test_those_the_guarantees_depend_on_are_refused(self, name: str, value: str, why: str) -> None:
        with pytest.raises(SettingsError, match=rf"ZIMAGE_KAFKA__EXTRA.*{name} cannot be set here.*{why}"):
            load_settings(overrides={"kafka": {"extra": {name: value}}})

    @pytest.mark.parametrize(("name", "value"), [("no.such.option", "1"), ("session.timeout.ms", "soon")])
    def test_unknown_ones_are_named(self, name: str, value: str) -> None:
        settings = load_settings(overrides={"kafka": {"extra": {name: value}}})
        with pytest.raises(SettingsError, match=rf"ZIMAGE_KAFKA__EXTRA: .*{name}"):
            common_config(settings.kafka)

    def test_those_of_producers_and_consumers_are_accepted(self) -> None:
        extra = {"linger.ms": "5", "session.timeout.ms": "9000", "socket.timeout.ms": "1000"}
        assert common_config(KafkaSettings(extra=extra))["client.id"] == "zimage"
