"""Errors of services.

::

    ServiceError                  a service did not start, stop or respond; quotes its last log lines
    └── ServiceMissingError       it is unavailable on this machine: a tool or a package is missing
"""

from __future__ import annotations


class ServiceError(Exception):
    """A service failed to do what was requested."""


class ServiceMissingError(ServiceError):
    """The service is unavailable on this machine; the message names what to install."""
