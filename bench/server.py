"""The NGINXes: the source, and a proxy before it for each case."""

import os
import signal
import time

from rig.process import BUILD, Process, accepts, free_port
from rig.status import capture_status, wait_until

NGINX = os.environ.get("NGINX_BIN", "/usr/sbin/nginx")
MODULE = os.path.join(BUILD, "ngx_http_capture_module.so")

COMMON = """\
{load_module}
{user}
daemon off;
master_process {master};
worker_processes 1;
pid nginx.pid;
error_log error.log warn;
events {{
    worker_connections 1024;
}}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_buffer_size 128k;
    keepalive_requests 1000000000;
    client_body_temp_path temp/client;
    proxy_temp_path temp/proxy;
    fastcgi_temp_path temp/fastcgi;
    uwsgi_temp_path temp/uwsgi;
    scgi_temp_path temp/scgi;
    {http}
}}
"""

# `return` answers a POST before its body has come, which no real source does.
# So /post reads the body first: `mirror` makes it do so. Its content handler
# takes no POST, and the error page is the answer.
SOURCE = """
    sendfile on;
    tcp_nopush on;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        location = /post {{
            mirror /read;
            alias {root}/1k;
            error_page 405 =200 /answer;
        }}
        location = /sink {{
            mirror /read;
            alias {root}/0;
            error_page 405 =200 /answer;
        }}
        location = /read {{
            internal;
            return 204;
        }}
        location = /answer {{
            return 200 '{{"took":1,"errors":false}}';
        }}
    }}
"""

PROXY = """
    {http}
    upstream source {{
        server 127.0.0.1:{source};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    server {{
        listen 127.0.0.1:{port};
        {server}
        location / {{
            {location}
            proxy_pass http://source;
        }}
    }}
    {servers}
"""

CAPTURE = {
    "http": "capture_sidecar unix:{socket}; capture on; capture_wait off;",
    "servers": "server {{ listen 127.0.0.1:{status}; capture off; location / {{"
               " capture_status; }} }}",
}

WAIT = {**CAPTURE, "http": "capture_sidecar unix:{socket}; capture on;"
                           " capture_wait mutating;"}

# {case: snippets of PROXY, "module": whether it is loaded}
CASES = {
    "plain": {},
    "off": {"module": True, "http": "capture off;"},
    "drain": {"module": True, **CAPTURE},
    "mock": {"module": True, **CAPTURE},
    "kafka": {"module": True, **CAPTURE},
    "notwait": {"module": True, **CAPTURE},
    "wait": {"module": True, **WAIT},
    "disk": {"module": True, **WAIT},
    "mirror": {
        "location": "mirror /mirror;",
        "server": "location = /mirror {{ internal;"
                  " proxy_pass http://sink/sink; }}",
        "http": "upstream sink {{ server 127.0.0.1:{sink}; keepalive 64;"
                " keepalive_requests 1000000000; }}",
    },
}


class Nginx:
    """One NGINX with one worker in `directory`. master: False for callgrind,
    whose worker must be the process that was started."""

    def __init__(self, directory, http, module=None, master=True, prefix=()):
        self.directory = directory
        self.master = master
        self.prefix = list(prefix)
        self.process = None
        os.makedirs(os.path.join(directory, "temp"), exist_ok=True)
        with open(os.path.join(directory, "nginx.conf"), "w") as f:
            f.write(COMMON.format(
                load_module=f"load_module {module};" if module else "",
                user="user root;" if os.geteuid() == 0 else "",
                master="on" if master else "off", http=http))

    def start(self, port, timeout=30):
        self.process = Process(
            self.prefix + [NGINX, "-p", self.directory, "-c", "nginx.conf",
                           "-e", os.path.join(self.directory, "error.log")],
            os.path.join(self.directory, "nginx.out"))
        wait_until(lambda: accepts(port), timeout, "NGINX's port",
                   self.process.dead)

    @property
    def worker(self):
        """The worker's pid."""
        pid = self.process.pid
        if not self.master:
            return pid
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            return int(f.read().split()[0])

    def stop(self):
        if self.process and self.process.running():
            self.process.stop(signal.SIGTERM, timeout=30)


class Source(Nginx):
    """Answers GET /1k, GET /1m (files, from the page cache) and POST /post;
    as a sink, anything to /sink."""

    def __init__(self, directory, prefix=()):
        self.port = free_port()
        os.makedirs(directory, exist_ok=True)
        for name, size in ("0", 0), ("1k", 1 << 10), ("1m", 1 << 20):
            with open(os.path.join(directory, name), "wb") as f:
                f.write(os.urandom(size // 2).hex().encode())
        super().__init__(directory, SOURCE.format(port=self.port,
                                                  root=directory), prefix=prefix)

    def start(self):
        super().start(self.port)


class Proxy(Nginx):
    """What is measured: a case's NGINX before the source. module: its file."""

    def __init__(self, case, directory, source, module, socket=None, sink=None,
                 **options):
        self.case = case
        self.port = free_port()
        self.status_port = free_port()
        self.captures = socket is not None
        names = {"socket": socket, "sink": sink and sink.port,
                 "status": self.status_port}
        snippets = {"http": "", "server": "", "location": "", "servers": ""}
        snippets = {k: CASES[case].get(k, "").format(**names) for k in snippets}
        super().__init__(
            directory, PROXY.format(port=self.port, source=source.port,
                                    **snippets),
            module=module if "module" in CASES[case] else None, **options)

    def start(self, timeout=30):
        super().start(self.port, timeout)
        if self.captures:
            wait_until(lambda: self.status()["workers"][0]["linked"], timeout,
                       "the link to the sidecar", self.process.dead)

    def status(self):
        return capture_status(self.status_port)

    def settle(self, timeout):
        """Waits until nothing is pending, or nothing has changed for two
        seconds, at most `timeout` seconds; the status then."""
        end = time.monotonic() + timeout
        status, changed = self.status()["total"], time.monotonic()
        while status["pending"] and time.monotonic() < min(end, changed + 2):
            time.sleep(0.02)
            before, status = status, self.status()["total"]
            if status["pending"] != before["pending"]:
                changed = time.monotonic()
        return status
