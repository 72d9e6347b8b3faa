"""A real search engine as the source, used by its own client library through
NGINX; the captured traffic makes the same documents in an empty second one."""

import os
import random
import shlex
import threading

import pytest

from refconsumer import http
from refconsumer.verify import verify_topic
from rig.engine import SearchEngine
from rig.process import Process
from rig.replay import replay
from rig.status import wait_until

from path.session import assert_balanced, lost, settled

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

THREADS = 4
WORDS = "amber basalt cedar delta ember fjord granite höhle iris jade".split()


@pytest.fixture
def engines(workdir):
    """(source, target), both empty."""
    pair = [SearchEngine(os.path.join(workdir, name))
            for name in ("source", "target")]
    try:
        for engine in pair:
            engine.start()
        yield pair
    finally:
        for engine in pair:
            engine.kill()


class Workload:
    """One user of the cluster: an index of its own, and a shared one in which
    its documents are its own, so that the users' order does not matter.
    `heads`: with HEAD requests."""

    def __init__(self, port, number, heads=True, **options):
        opensearchpy = pytest.importorskip("opensearchpy")
        self.client = opensearchpy.OpenSearch(
            [{"host": "127.0.0.1", "port": port}], timeout=60, **options)
        self.helpers = opensearchpy.helpers
        self.not_found = opensearchpy.exceptions.NotFoundError
        self.conflict = opensearchpy.exceptions.ConflictError
        self.random = random.Random(number)
        self.heads = heads
        self.number = number
        self.index = f"own-{number}"

    def run(self):
        self.create()
        self.single_documents()
        self.bulk()
        self.search()
        self.change_many()
        self.pipeline()
        self.refused()
        self.client.close()

    def document(self, i):
        return {"number": i, "word": self.random.choice(WORDS),
                "text": " ".join(self.random.choices(WORDS, k=20)),
                "nested": {"price": i * 1.5, "tags": self.random.sample(WORDS, 3)}}

    def create(self):
        self.client.indices.create(index=self.index, body={
            "settings": {"number_of_shards": 2, "number_of_replicas": 0},
            "mappings": {"properties": {"word": {"type": "keyword"},
                                        "number": {"type": "long"}}}})
        assert not self.heads or self.client.indices.exists(index=self.index)
        self.client.indices.put_alias(index=self.index, name=f"alias-{self.number}")
        self.client.indices.put_mapping(index=self.index, body={
            "properties": {"added": {"type": "date"}}})

    def single_documents(self):
        c = self.client
        for i in range(20):
            c.index(index=self.index, body=self.document(i), id=f"single {i}/ü")
        c.index(index=self.index, body=self.document(0), id="single 0/ü", refresh=True)
        for i in range(5, 10):
            c.update(index=self.index, id=f"single {i}/ü", body={"doc": {"updated": i}})
        c.update(index=self.index, id="single 9/ü", body={
            "script": {"source": "ctx._source.number += params.n",
                       "params": {"n": 100}}})
        c.update(index=self.index, id="upserted",
                 body={"doc": {"new": True}, "doc_as_upsert": True})
        for i in range(3):
            c.delete(index=self.index, id=f"single {i}/ü")
        c.create(index=self.index, id="created", body={"word": "created"})
        assert c.get(index=self.index, id="single 9/ü")["_source"]["number"] == 109
        assert not self.heads or not c.exists(index=self.index, id="single 1/ü")

    def bulk(self):
        def actions():
            for i in range(600):
                yield {"_index": self.index, "_id": f"b{i}",
                       "_source": self.document(i)}
                yield {"_index": "shared", "_id": f"{self.number}-{i}",
                       "_source": {"owner": self.number, **self.document(i)}}
            for i in range(0, 600, 7):
                yield {"_op_type": "delete", "_index": self.index, "_id": f"b{i}"}
            for i in range(1, 600, 70):
                yield {"_op_type": "update", "_index": self.index,
                       "_id": f"b{i}", "doc": {"bulk": "updated"}}
        done, errors = self.helpers.bulk(self.client, actions(), chunk_size=250,
                                         refresh="wait_for", stats_only=True)
        assert errors == 0 and done > 1200
        # larger than any buffer on its way, and than a record of Kafka's
        big = {"blob": "x" * 3_000_000, "number": -1}
        self.client.index(index=self.index, body=big, id="big", refresh=True)

    def search(self):
        c = self.client
        for word in WORDS:
            c.search(index=self.index, body={
                "query": {"term": {"word": word}}, "size": 50,
                "aggs": {"n": {"stats": {"field": "number"}}}})
        answers = c.msearch(body=[
            line for word in WORDS for line in (
                {"index": self.index}, {"query": {"match": {"text": word}}})])
        assert len(answers["responses"]) == len(WORDS)
        found = list(self.helpers.scan(self.client, index=self.index, size=100,
                                       query={"query": {"match_all": {}}}))
        assert len(found) == c.count(index=self.index)["count"]
        docs = c.mget(body={"ids": [f"b{i}" for i in range(20)]},
                      index=self.index)["docs"]
        assert [d["found"] for d in docs] == [i % 7 > 0 for i in range(20)]

    def change_many(self):
        c = self.client
        c.update_by_query(index=self.index, refresh=True, body={
            "script": {"source": "ctx._source.many = true"},
            "query": {"range": {"number": {"lt": 100}}}})
        c.delete_by_query(index=self.index, refresh=True, body={
            "query": {"term": {"word": "basalt"}}})
        c.reindex(body={"source": {"index": self.index, "_source": ["number", "word"]},
                        "dest": {"index": f"copy-{self.number}"}}, refresh=True)

    def pipeline(self):
        name = f"pipeline-{self.number}"
        self.client.ingest.put_pipeline(id=name, body={"processors": [
            {"uppercase": {"field": "word"}},
            {"set": {"field": "by", "value": name}}]})
        for i in range(10):
            self.client.index(index=self.index, body=self.document(i),
                              id=f"piped{i}", pipeline=name)

    def refused(self):
        """What the engine refuses changes nothing, there and here."""
        with pytest.raises(self.not_found):
            self.client.get(index=self.index, id="missing")
        with pytest.raises(self.conflict):
            self.client.create(index=self.index, id="created", body={"again": True})
        gone = f"gone-{self.number}"
        self.client.index(index=gone, body={"a": 1}, id="1")
        self.client.indices.delete(index=gone)


def run_users(port, heads=True):
    """Some users at once, each of another kind."""
    options = [{}, {"http_compress": True}, {"maxsize": 1}, {}]
    users = [Workload(port, i, heads, **options[i]) for i in range(THREADS)]
    failed = []

    def run(user):
        try:
            user.run()
        except BaseException as e:
            failed.append((user.number, e))
    threads = [threading.Thread(target=run, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def assert_same_documents(source, target):
    want, got = source.documents(), target.documents()
    assert set(got) == set(want)
    for index, documents in want.items():
        assert got[index].keys() == documents.keys(), index
        for key, document in documents.items():
            assert got[index][key] == document, (index, key)
    for target_path in ("/_mapping", "/_alias", "/_ingest/pipeline"):
        assert target.get(target_path) == source.get(target_path)
    return sum(map(len, want.values()))


def captured_from(stack, source, heads=True):
    """(Stack, exchanges) of what the users did, of which nothing is missing."""
    s = stack(source=source, workers=2, buffer="128m")
    run_users(s.port, heads)
    status = assert_balanced(s.wait_for_status(
        lambda st: st["total"]["pending"] == 0, timeout=60))
    assert lost(status) == 0
    assert settled(status["total"]["captured"])(status), "something is filtered"
    result = verify_topic(s.drain())
    result.assert_clean(all_closed=True)
    assert len(result.exchanges) == status["total"]["captured"]
    return s, result.exchanges


def test_captured_traffic_makes_the_same_documents_in_a_second_engine(
        stack, engines):
    source, target = engines
    _, exchanges = captured_from(stack, source)
    assert target.documents() == {}
    replayed = replay(exchanges, target.port)

    assert assert_same_documents(source, target) > 5000
    # ids of scrolls are the source's own: the target does not know them
    others = [r for r in replayed if not r.same_status
              and b"/_search/scroll" not in http.parse_request(
                  r.exchange.request).start_line]
    assert not others, [(r.exchange.request[:200], r.answer) for r in others]


@pytest.mark.skipif("CAPTURE_REPLAYER" not in os.environ,
                    reason="CAPTURE_REPLAYER is not given")
def test_a_replayer_makes_the_same_documents_in_a_second_engine(
        stack, engines, workdir):
    """CAPTURE_REPLAYER is the command that starts the Traffic Replayer, without
    its options. No HEAD: it waits for each of their bodies, until its timeout."""
    source, target = engines
    s, exchanges = captured_from(stack, source, heads=False)
    assert target.documents() == {}
    replayer = Process(
        [*shlex.split(os.environ["CAPTURE_REPLAYER"]),
         "--kafka-traffic-brokers", s.broker.bootstrap,
         "--kafka-traffic-topic", s.topic, "--kafka-traffic-group-id", s.topic,
         "--target-uri", f"http://127.0.0.1:{target.port}"],
        os.path.join(workdir, "replayer.log"), cwd=workdir)
    try:
        def documents(engine):
            return sum(map(len, engine.documents().values()))
        wait_until(lambda: documents(target) == documents(source), 300,
                   "the documents", replayer.dead)
        # what comes behind the last new document, too
        wait_until(lambda: target.documents() == source.documents(), 60,
                   "the same documents", replayer.dead)
        print(f"{len(exchanges)} exchanges, "
              f"{assert_same_documents(source, target)} documents")
    finally:
        replayer.kill()
