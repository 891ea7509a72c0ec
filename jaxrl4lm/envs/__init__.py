"""Environments with the gymnax 1.0 interface."""
