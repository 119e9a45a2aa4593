"""Secrets are recognized by their name, or by their place in a URL."""

from __future__ import annotations

import logging

import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from zimage_stream.masking import is_secret, masked

SECRETS = [
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.ca.pem",
    "ssl.keystore.password",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.oauthbearer.assertion.private.key.file",
]
OTHERS = [
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.oauthbearer.client.id",
    "sasl.kerberos.keytab",
    "client.id",
]


@pytest.mark.parametrize("name", SECRETS + OTHERS)
def test_options_that_librdkafka_redacts_are_secret(name: str) -> None:
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger = logging.Logger("librdkafka")
    logger.addHandler(Keep())
    producer = Producer(
        {"bootstrap.servers": "127.0.0.1:1", "debug": "conf", name: "shown", "logger": logger}
    )
    producer.poll(0.1)
    (line,) = [line for line in said if f" {name} = " in line]
    assert is_secret(name) == line.endswith("[redacted]") == (name in SECRETS)


@pytest.mark.parametrize(
    "name", ["sasl.jaas.config", "SASL_PASSWORD", "secret_key", "access_key", "sasl.kerberos.kinit.cmd"]
)
def test_common_names_of_secrets_are_recognized(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["ssl.key.location", "ssl_keystore_location", "fetch.min.bytes", "bucket"])
def test_locations_and_sizes_are_not_secret(name: str) -> None:
    assert not is_secret(name)


signs = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=8).map(lambda text: f"S{text}E")


@given(signs.filter(lambda text: "://" not in text))
def test_any_password_in_a_url_is_masked(password: str) -> None:
    text = masked(f"the registry at http://me:{password}@host:80/path does not answer")
    assert text == "the registry at http://********@host:80/path does not answer"


def test_every_url_with_credentials_is_masked_and_other_text_is_kept() -> None:
    assert masked("http://u:p@a,http://v:q@b and c@d") == "http://********@a,http://********@b and c@d"
    assert masked("http://a:1/b?c=d e@f") == "http://a:1/b?c=d e@f"
