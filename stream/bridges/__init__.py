"""Bridges: predictions for programs that speak WebSocket, OSC, LSL or MQTT instead of ZeroMQ.

A bridge is one more subscriber. It never blocks the pipeline: what its peer cannot keep up with is dropped and counted.
"""
