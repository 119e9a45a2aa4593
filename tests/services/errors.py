"""What can go wrong with a service.

::

    ServiceError                  a service did not start, stop or answer; quotes its last log lines
    └── ServiceMissingError       it cannot be had on this machine: a tool or a package is missing
"""

from __future__ import annotations


class ServiceError(Exception):
    """A service did not do what was asked of it."""


class ServiceMissingError(ServiceError):
    """The service cannot be had on this machine; the message says what to install."""
