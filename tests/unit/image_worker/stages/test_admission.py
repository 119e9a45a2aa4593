"""Fetched records become requests or fail, and none holds up another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from tests.fleet.workers import until
from tests.unit.events.registries import AnyRegistry
from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.stages import admission as module
from zimage_consumers.image_worker.stages.admission import Admission
from zimage_consumers.image_worker.stages.intake import Intake
from zimage_consumers.image_worker.window.jobs import Failed, Job
from zimage_stream.errors import WireError
from zimage_stream.events.codec import Codec
from zimage_stream.events.registry import Registry
from zimage_stream.events.rules import Limits
from zimage_stream.settings import RegistrySettings
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics


@pytest.fixture
def health() -> Health:
    return Health()


def admission_with(codec: Codec, health: Health) -> Admission:
    intake = Intake(codec, Limits(), lambda prompt: 1)
    return Admission(intake, health, Metrics(CollectorRegistry()))


def readable() -> Job:
    good = job()
    good.record = replace(good.record, value=Codec().encode_request(good.decoded, "requests"))
    return good


def test_the_registry_counts_as_up_only_once_a_record_was_decoded(health: Health) -> None:
    admission = admission_with(Codec(), health)
    health.down("registry", "the id of the results schema is unavailable")
    assert admission.admit(outage_known=False) == []
    assert not health.is_up("registry")
    # The bytes are not a request, and no registry had to be queried.
    garbage = job()
    admission.add(garbage)
    (failed,) = admission.admit(outage_known=False)
    assert isinstance(failed, Failed)
    assert failed.job is garbage
    assert isinstance(failed.error, WireError)
    assert not health.is_up("registry")
    for outage_known in (True, False):
        good = readable()
        admission.add(good)
        assert admission.admit(outage_known) == [good]
        assert health.is_up("registry") is not outage_known


def test_a_record_whose_schema_is_unavailable_holds_up_no_other(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.0)
    waits, good = job(), readable()
    waits.record = replace(waits.record, value=b"\x00\x00\x00\x00\x07")
    with AnyRegistry() as server:
        server.fail(7)
        registry = Registry(RegistrySettings(url=server.url))
        admission = admission_with(Codec(registry), health)
        admission.add(waits)
        admission.add(good)
        assert admission.admit(outage_known=False) == [good]
        assert health.is_up("registry")
        # It is still waiting, and its schema is requested again.
        assert admission.admit(outage_known=False) == []
    registry.close()
    admission.add(later := readable())
    assert admission.admit(outage_known=False) == [later]


def test_a_pending_answer_does_not_change_the_registrys_health(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PENDING_AGAIN_S", 0.0)
    waits, good = job(), readable()
    waits.record = replace(waits.record, value=b"\x00\x00\x00\x00\x07")
    with AnyRegistry() as server:
        server.put(7, "{")
        goes_on = server.hold(7)
        registry = Registry(RegistrySettings(url=server.url), patience_s=0.001)
        admission = admission_with(Codec(registry), health)
        admission.add(waits)
        for is_up in (True, False):
            if not is_up:
                health.down("registry", "as another caller was told")
            admission.add(good)
            assert admission.admit(outage_known=False) == [good]
            assert health.is_up("registry") is is_up
        goes_on.set()
        (failed,) = until(lambda: admission.admit(outage_known=False), 30, "it is decoded")
        assert isinstance(failed, Failed)
        assert failed.job is waits
        registry.close()
