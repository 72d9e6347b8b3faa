"""Source, NGINX and sidecar wired up: the whole path of one test."""

import os

from . import status
from .client import Client
from .keeper import Keeper
from .nginx import Nginx
from .sidecar import Sidecar

HTTP = """
    capture_sidecar unix:{socket};
    capture_buffer {buffer};
    upstream source {{
        server 127.0.0.1:{source};
        keepalive 64;
    }}
    {http}
"""

SERVER = """
        capture {capture};
        capture_wait {wait};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        keepalive_requests 100000;
        location = /capture_status {{
            capture off;
            capture_status;
        }}
        location / {{
            {location}
            proxy_pass http://source;
        }}
        {server}
"""


class Stack:
    """One NGINX and one sidecar in `directory`, between a Source and a topic of
    a KafkaBroker.

    http, server, location, main   further snippets of configuration
    capture, wait, buffer          `capture`, `capture_wait`, `capture_buffer`
    workers                        worker_processes
    sidecar_conf                   further keys of the sidecar's configuration
    start_sidecar                  False: the test starts stack.sidecar itself
    log_level, daemon              NGINX's (rig/nginx.py)
    env                            added to NGINX's environment
    keeper                         True: a Keeper keeps the sidecar's descriptors
    """

    def __init__(self, directory, source, broker, topic, http="", server="",
                 location="", main="", capture="on", wait="off", buffer="64m",
                 workers=1, sidecar_conf=None, start_sidecar=True,
                 log_level="info", daemon=False, env=None, keeper=False):
        self.directory = directory
        self.source = source
        self.broker = broker
        self.topic = topic
        self.start_sidecar = start_sidecar
        os.makedirs(directory, exist_ok=True)
        self.socket = os.path.join(directory, "sock")
        self.sidecar = Sidecar(directory, {
            "listen": f"unix:{self.socket}",
            "topic": topic,
            "kafka.bootstrap.servers": broker.bootstrap,
            **(sidecar_conf or {})})
        if keeper:
            self.sidecar.keeper = Keeper(directory)
        self.nginx = Nginx(
            directory, log_level, workers=workers, main=main, daemon=daemon,
            http=HTTP.format(socket=self.socket, buffer=buffer,
                             source=source.port, http=http),
            server=SERVER.format(capture=capture, wait=wait, location=location,
                                 server=server))
        self.nginx.env |= env or {}

    @property
    def port(self):
        return self.nginx.port

    def start(self):
        if self.start_sidecar:
            self.sidecar.start()
        self.nginx.start()
        if self.start_sidecar:
            self.wait_linked()

    def wait_linked(self):
        """Waits until every worker has its link to the sidecar: what comes
        before is not captured."""
        self.wait_for_status(
            lambda s: len(s["workers"]) >= self.nginx.snippets["workers"]
            and all(w["linked"] for w in s["workers"]), what="the links")

    def client(self, **options):
        """A new connection to NGINX; it is for the test to close it."""
        return Client(self.port, **options)

    def status(self):
        """What capture_status says."""
        return status.capture_status(self.port)

    def wait_for_status(self, cond, timeout=15, what=None):
        """Waits until cond(status) is true; returns that status."""
        last = {}

        def good():
            last.update(now=self.status())
            return cond(last["now"])
        try:
            status.wait_until(good, timeout, what or "capture_status")
        except AssertionError as e:
            raise AssertionError(f"{e}\ncapture_status: {last.get('now')}") \
                from None
        return last["now"]

    def records(self):
        """All records of the topic."""
        return self.broker.read_topic(self.topic)

    def drain(self):
        """Ends NGINX, so that every connection is closed, then the sidecar,
        which writes what it has; returns the topic's records."""
        if self.nginx.running():
            self._check_balance()
            assert self.nginx.stop(graceful=True) == 0
        if self.sidecar.running():
            assert self.sidecar.stop() == 0, self.sidecar.log_text()
            self.sidecar.check_totals()
        return self.records()

    def close(self):
        """Ends all of it. Every test's last check: the counters balance."""
        try:
            self._check_balance()
            self.nginx.close()
        finally:
            try:
                self.sidecar.close()
            finally:
                if self.sidecar.keeper:
                    self.sidecar.keeper.close()

    def _check_balance(self):
        """Of a moment; other workers' rows may be of another one."""
        if self.nginx.running() and self.nginx.answers():
            self.wait_for_status(lambda s: not status.unbalanced(s),
                                 what="counters that balance")
