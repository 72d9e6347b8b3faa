"""A real search engine as the source or the target: one OpenSearch node."""

import glob
import json
import os
import urllib.request

from .process import TOP, Process, free_port
from .status import wait_until

JARS = os.path.join(TOP, "build", "search-engine", "*.jar")
LAUNCHER = os.path.join(TOP, "t", "rig", "SearchEngine.java")
JAVA = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]


class SearchEngine:
    """A node with its own data directory. As far as Stack is concerned it is a
    source: something with a port."""

    def __init__(self, directory):
        self.directory = str(directory)
        self.port = free_port()
        self.process = None
        if not glob.glob(JARS):
            raise RuntimeError("no search engine: run script/bootstrap --long")
        os.makedirs(self.directory, exist_ok=True)

    def start(self, timeout=120):
        """Starts it and waits until its cluster can be written to."""
        self.process = Process(
            [*JAVA, "-cp", os.path.dirname(JARS) + "/*", LAUNCHER,
             str(self.port), str(free_port()),
             os.path.join(self.directory, "node")],
            os.path.join(self.directory, "engine.log"), cwd=self.directory)
        wait_until(lambda: self.get("/_cluster/health")["status"] == "green",
                   timeout, "the search engine", self.process.dead)

    def kill(self):
        """Nobody needs its data any more."""
        if self.process:
            self.process.kill()

    def get(self, target, body=None):
        """The answer to a GET, as Python objects; for the test's own looks."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{target}", method="GET",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def documents(self):
        """{index: {id: (version, source)}} of all that a search finds."""
        indices = [row["index"] for row in self.get("/_cat/indices?format=json")]
        return {index: self._documents_of(index) for index in indices}

    def _documents_of(self, index):
        self.get(f"/{index}/_refresh")
        hits = self.get(f"/{index}/_search", {
            "size": 10000, "version": True, "track_total_hits": True})["hits"]
        assert hits["total"]["value"] == len(hits["hits"]), f"more in {index}"
        return {hit["_id"]: (hit["_version"], hit["_source"])
                for hit in hits["hits"]}
