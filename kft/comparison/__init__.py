"""Backends side by side: each in a process of its own, since keras has one backend a process."""
