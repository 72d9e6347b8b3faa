"""The load balancers of the deployment, in HAProxy's words.

A network load balancer passes connections on, and terminates TLS where it is told
to; a listener forwards to one target group, and another one takes over for new
connections alone. An application load balancer passes on each request by itself,
by the weights of its target groups.

Both check their targets by https, as `ELB-HealthChecker/2.0`, and differ in the
status codes that they take for healthy.
"""

NLB_MATCHER, ALB_MATCHER = "200-399", "200-499"

# HAProxy writes names of headers in lower case; these are to keep the client's
SPELLING = ["Host", "X-Id", "X-Mark", "Content-Length", "Transfer-Encoding",
            "User-Agent", "Accept", "Authorization", "X-Forwarded-For",
            "X-Forwarded-Proto", "Content-Type"]
EXTRA = "\n    ".join(f"h1-case-adjust {name.lower()} {name}" for name in SPELLING)

# what an ALB adds, at the end of the head
FORWARDED = b"X-Forwarded-Proto: https\r\nX-Forwarded-For: 127.0.0.1\r\n"

CHECK = """\
    option httpchk
    http-check send meth GET uri / ver HTTP/1.1 hdr Host 10.0.0.1 hdr User-Agent ELB-HealthChecker/2.0 hdr Connection close
    http-check expect status {matcher}
    default-server check {ssl} verify none {often}
"""

# A check may take as long as `inter`, and the machine may be busy; once one has
# failed, the next comes soon.
OFTEN = "inter 1s fastinter 100ms downinter 100ms fall 5 rise 2"


def listener(name, port, pem=None):
    """Of an NLB: TLS with `pem` (certificate and key), else passthrough. The
    target group that it forwards to is in the map `listeners`."""
    tls = f" ssl crt {pem}" if pem else ""
    return (f"frontend nlb-{name}\n    mode tcp\n    bind 127.0.0.1:{port}{tls}\n"
            f"    use_backend %[str({name}),map({{maps}}/listeners)]\n\n")


def target_group(name, port, tls=True, matcher=NLB_MATCHER, often=OFTEN):
    """Of an NLB. tls: its connections to the target are encrypted again, as those
    of a TLS listener must be; checks always are."""
    return (f"backend {name}\n    mode tcp\n"
            + CHECK.format(matcher=matcher, often=often,
                           ssl="ssl" if tls else "check-ssl")
            + f"    server target 127.0.0.1:{port}\n\n")


def application(name, port, pem, targets, matcher=ALB_MATCHER):
    """An ALB's listener with the weighted target groups {name: (port, weight)}."""
    return (f"frontend alb-{name}\n    mode http\n"
            f"    option h1-case-adjust-bogus-client\n"
            f"    bind 127.0.0.1:{port} ssl crt {pem} alpn http/1.1\n"
            f"    http-request set-header X-Forwarded-Proto https\n"
            f"    option forwardfor\n    default_backend {name}\n\n"
            f"backend {name}\n    mode http\n    balance roundrobin\n"
            f"    http-reuse always\n    option h1-case-adjust-bogus-server\n"
            + CHECK.format(matcher=matcher, often=OFTEN, ssl="ssl")
            + "".join(f"    server {target} 127.0.0.1:{at} weight {weight}\n"
                      for target, (at, weight) in targets.items()) + "\n")
