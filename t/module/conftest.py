"""Fixtures for the module alone: NGINX, a source, and a sidecar in Python."""

import os

import pytest

from capture_rig import Rig


@pytest.fixture
def rig(source, workdir):
    """A factory of Rig (capture_rig.py): a source, NGINX with the module, and a
    FakeSidecar. At the end error.log has no [alert], no sanitizer has reported,
    and the fake sidecar has found nothing against the rules of wire/*.h."""
    rigs = []

    def make(**options):
        rig = Rig(os.path.join(workdir, f"r{len(rigs)}"), source, **options)
        rigs.append(rig)
        rig.start()
        return rig
    yield make
    errors = []
    for rig in rigs:
        try:
            rig.close()
        except AssertionError as e:
            errors.append(e)
    if errors:
        raise errors[0]
