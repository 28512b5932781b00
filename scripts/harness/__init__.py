"""Drives a real `dormouse serve` from outside: what the demo, the bench and the end-to-end tests share."""
