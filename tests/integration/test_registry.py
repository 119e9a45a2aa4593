"""Confluent framing with a real schema registry and other clients of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.chaos import misbehaving
from tests.chaos.misbehaving import Trouble, open_misbehaving
from tests.services import RegistryAddress
from zimage_stream.errors import RegistryUnavailableError, SchemaMissingError, UnknownSchemaError
from zimage_stream.events.codec import Codec
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.registry import Registry
from zimage_stream.events.schemas import PROMPT_REQUEST, current, published
from zimage_stream.settings import RegistrySettings

REQUEST = PromptRequest(prompt="一座灯塔", tenant="studio", attributes={"sku": "A-1"})


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return f"topic-{request.node.name}"


@pytest.fixture
def codec_for() -> Iterator[Callable[..., Codec]]:
    """``codec_for(address)``: a codec with an empty cache, as in a separate process."""
    with ExitStack() as stack:

        def make(address: RegistryAddress, auto_register: bool = True) -> Codec:
            codec = Codec(Registry(RegistrySettings(url=address.url, auto_register=auto_register)))
            stack.callback(codec.close)
            return codec

        yield make


def test_a_request_is_written_and_read_with_its_schema_id(
    registry: RegistryAddress, topic: str, codec_for: Callable[..., Codec]
) -> None:
    data = codec_for(registry).encode_request(REQUEST, topic)
    assert data[0] == 0
    # Another process, with an empty cache.
    assert codec_for(registry).decode_request(data) == REQUEST


def test_confluents_serializer_and_ours_understand_each_other(
    registry: RegistryAddress, topic: str, codec_for: Callable[..., Codec]
) -> None:
    context = SerializationContext(topic, MessageField.VALUE)
    # The default strategy queries associations, which this registry lacks and may never answer.
    by_topic = {"subject.name.strategy": topic_subject_name_strategy}
    with SchemaRegistryClient({"url": registry.url, "timeout": 10}) as client:
        serialize: Any = AvroSerializer(client, current(PROMPT_REQUEST).text, conf=by_topic)
        theirs = serialize({"request_id": "a", "prompt": "a lighthouse", "width": 64}, context)
        assert codec_for(registry).decode_request(theirs) == PromptRequest(
            request_id="a", prompt="a lighthouse", width=64
        )
        deserialize: Any = AvroDeserializer(client, conf=by_topic)
        ours = deserialize(codec_for(registry).encode_request(REQUEST, topic), context)
        assert (ours["prompt"], ours["attributes"]) == ("一座灯塔", {"sku": "A-1"})


@pytest.mark.parametrize("name", sorted(published()))
def test_a_registry_takes_every_version_as_fully_compatible(
    registry: RegistryAddress, topic: str, name: str
) -> None:
    subject = f"{topic}-{name}-value"
    with SchemaRegistryClient({"url": registry.url, "timeout": 10}) as client:
        for number, schema in enumerate(published()[name]):
            client.register_schema(subject, Schema(schema.text, "AVRO"))
            if number == 0:
                client.set_compatibility(subject, "FULL_TRANSITIVE")
        assert len(client.get_versions(subject)) == len(published()[name])


def test_a_schema_that_is_not_registered_is_named(
    registry: RegistryAddress, topic: str, codec_for: Callable[..., Codec]
) -> None:
    with pytest.raises(SchemaMissingError, match=f"not registered under subject {topic}-value"):
        codec_for(registry, auto_register=False).encode_request(REQUEST, topic)


def test_an_unknown_id_is_reported_at_every_query(registry: RegistryAddress) -> None:
    clock = [0.0]
    asked = Registry(RegistrySettings(url=registry.url), clock=lambda: clock[0])
    for clock[0] in (0.0, 1.0, 60.0):
        with pytest.raises(UnknownSchemaError, match="987654321 is not in the registry"):
            asked.schema(987654321)
    asked.close()


def test_cached_schemas_need_no_registry(
    registry: RegistryAddress,
    topic: str,
    codec_for: Callable[..., Codec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = urlsplit(registry.url)
    monkeypatch.setattr(misbehaving, "HIT", 1.0)
    with open_misbehaving(real.netloc, "/refused/", random.Random(1)) as proxy:
        behind = RegistryAddress(real._replace(netloc=proxy.endpoint).geturl())
        warm, cold = codec_for(behind), codec_for(behind)
        data = warm.encode_request(REQUEST, topic)
        assert warm.decode_request(data) == REQUEST
        with proxy.playing(Trouble.RESET):
            assert warm.decode_request(data) == REQUEST
            assert warm.encode_request(REQUEST, topic) == data
            # There was no request at all.
            assert not proxy.played
            with pytest.raises(RegistryUnavailableError, match="does not answer"):
                cold.decode_request(data)
    # The proxy is closed: nothing listens there any more.
    with pytest.raises(RegistryUnavailableError, match="does not answer"):
        codec_for(behind).decode_request(data)
