"""python -m refconsumer FILE... : exported records in, exchanges and violations out.

Each FILE is a topic of its own; `-` is standard input. Exit status 1 when a
record contract is violated, 2 when a file is no export.
"""

import sys

from .lines import LineError, records_of_lines
from .verify import verify_topic


def main(paths) -> int:
    if not paths:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    violations = 0
    for path in paths:
        try:
            result = verify_topic(records_of_lines(_read(path)))
        except (LineError, OSError, UnicodeDecodeError) as error:
            print(f"% {path}: {error}", file=sys.stderr)
            return 2
        print(f"== {path}")
        _print_result(result)
        violations += len(result.violations)
    return 1 if violations else 0


def _read(path):
    if path == "-":
        return sys.stdin.readlines()
    with open(path, encoding="ascii") as file:
        return file.readlines()


def _print_result(result):
    for exchange in result.exchanges:
        print(
            f"exchange {exchange.connection_id}.{exchange.index} {exchange.status}"
            f" request[{len(exchange.request)}] {_start_line(exchange.request)}"
            f" response[{len(exchange.response)}] {_start_line(exchange.response)}"
        )
    for connection in result.connections.values():
        print(
            f"connection {connection.node_id} {connection.connection_id}"
            f" records={connection.records} exchanges={connection.exchanges}"
            f" forgotten={len(connection.forgotten)} closed={connection.closed}"
            f" exceptions={connection.exceptions}"
        )
    for violation in result.violations:
        print(f"violation {violation}")


def _start_line(message: bytes) -> str:
    line = message.lstrip(b"\r\n").split(b"\n", 1)[0].rstrip(b"\r")
    return repr(line[:80].decode("latin-1"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
