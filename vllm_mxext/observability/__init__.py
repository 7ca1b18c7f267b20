"""What the system tells about itself: figures for Prometheus."""
