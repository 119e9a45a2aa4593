"""What a worker reports, as its supervisor reads it."""

from __future__ import annotations

import os

from zimage_consumers.image_worker.host.report import Report, Reporter


def test_a_report_follows_the_worker_from_start_to_loaded() -> None:
    report, descriptor = Report.open()
    reporter = Reporter(descriptor)
    report.update()
    assert (report.port, report.loaded) == (None, False)
    reporter.listening(8080)
    report.update()
    assert (report.port, report.loaded) == (8080, False)
    reporter.loaded()
    os.close(descriptor)
    report.update()
    assert (report.port, report.loaded) == (8080, True)
    report.update()
    report.close()


def test_a_line_that_arrives_in_pieces_counts_once_it_is_complete() -> None:
    report, descriptor = Report.open()
    ports = []
    for piece in (b"80", b"80", b"\nload"):
        os.write(descriptor, piece)
        report.update()
        ports.append(report.port)
    assert ports == [None, None, 8080]
    os.write(descriptor, b"ed\n")
    report.update()
    assert report.loaded
    report.close()
    os.close(descriptor)


def test_reporting_without_a_supervisor_has_no_effect() -> None:
    report, descriptor = Report.open()
    report.close()
    Reporter(descriptor).loaded()
    os.close(descriptor)
    Reporter(None).listening(8080)
