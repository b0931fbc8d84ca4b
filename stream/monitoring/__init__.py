"""How a session is: measured by its processes, told to people, supervisors and Prometheus."""
