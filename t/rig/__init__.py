"""Real parts for the tests: Kafka, NGINX, the sidecar, a source, a client."""
