"""Repairs of a detected gap."""
