"""What a run says of itself while it goes on: structured logs and metrics in Prometheus' format."""
