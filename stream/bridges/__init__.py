"""Bridges: predictions for programs that speak WebSocket, OSC, LSL or MQTT instead of ZeroMQ.

A bridge is one more subscriber. It never holds anything up: what its peer cannot take is dropped and counted.
"""
