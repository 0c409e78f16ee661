"""Ports are kept for those who are told of them."""

import socket

import pytest

from tools.ports import held_ports


def test_a_server_listens_on_a_held_port():
    with held_ports(2) as ports:
        assert len({*ports}) == 2
        for port in ports:
            server = socket.create_server(("", port))  # with SO_REUSEADDR, on all addresses
            with server, socket.create_connection(("127.0.0.1", port)):
                server.accept()[0].close()


def test_nobody_else_is_given_it():
    with held_ports(1) as (port,), socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))


def test_it_is_free_afterwards():
    with held_ports(1) as (port,):
        pass
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
