"""A module's fixture whose value opens a socket when it is first used, and closes it; and a test that forgets one."""

import socket

import pytest

kept = []


class Client:
    """Connects when it is first used."""

    def __init__(self):
        self.socket = None

    def use(self):
        self.socket = self.socket or socket.socket()


@pytest.fixture(scope="module")
def client():
    client = Client()
    yield client
    client.socket.close()


def test_uses_the_client(client):
    client.use()


def test_forgets_a_socket(client):
    kept.append(socket.socket())
