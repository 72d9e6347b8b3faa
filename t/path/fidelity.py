"""Rows of docs/fidelity.md, told where they are tested.

    @row("name", captured="...", replayed="...", limits="...")
    def test_x(stack): ...

script/gen-docs reads them out of the tests' sources, calls of `row`, `case` and
`abort` alike, so that their words must be plain strings there. A page's section is
the module's FIDELITY. This file imports nothing, for its sake.
"""

# of the page, in its order
SECTIONS = (
    "HTTP/1",
    "HTTP/2",
    "HTTP/3",
    "gRPC, streams, early responses",
    "What NGINX does with a request",
    "Clients and sources that go away",
    "Times",
    "Not captured, or not wholly",
)

# what an exchange ends as -> (what is captured, what is replayed)
ENDS = {
    "captured": ("all of it", "the request, against the whole response"),
    "truncated": ("the request, and what came of the response",
                  "the request; its response is named as cut"),
    "client_abort": ("nothing: filtered(client_abort)", "nothing"),
    "unread_body": ("nothing: filtered(unread_body)", "nothing"),
    "not_forwarded": ("nothing: filtered(not_forwarded)", "nothing"),
    "bad_request": ("nothing: filtered(bad_request)", "nothing"),
    "unreplayable": ("nothing: filtered(unreplayable)", "nothing"),
    "upgrade": ("nothing: filtered(upgrade)", "nothing"),
    "unsupported": ("nothing: filtered(unsupported)", "nothing"),
    "unseen": ("nothing, and it is not counted: there is no request yet",
               "nothing"),
}


def row(name, captured="", replayed="", limits="", ends="", section=""):
    """A test that is a row; `ends` instead of captured and replayed. `section`:
    another than the module's."""
    assert ends in ENDS if ends else captured and replayed, name
    return lambda function: function
