"""What the suites in this folder share.  They are copied elsewhere and run by pytest there."""

import threading

held = threading.Event()


def pytest_sessionfinish():
    held.set()
