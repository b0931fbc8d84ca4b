"""Monitoring of a session: measured by its processes, reported to users, supervisors and Prometheus."""
