"""A Kafka broker for output.py, run by the tests' Python environment:

    broker.py DIRECTORY TOPIC

Prints ["HOST:PORT", PID], and ends when its standard input does. The topic
keeps little, so that a run does not fill the disk.
"""

import json
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "t"))

from rig.kafka import KafkaBroker  # noqa: E402


def main():
    directory, topic = sys.argv[1:]
    broker = KafkaBroker(directory, properties={
        "log.retention.check.interval.ms": "1000",
        "log.initial.task.delay.ms": "1000",
        "log.segment.delete.delay.ms": "0",
    })
    try:
        broker.start()
        broker.create_topic(topic, 4, {
            "retention.bytes": "67108864", "segment.bytes": "67108864"})
        print(json.dumps([broker.bootstrap, broker.process.pid]), flush=True)
        sys.stdin.read()
    finally:
        broker.stop()
        shutil.rmtree(directory, ignore_errors=True)


main()
