"""Attacks that replace the updates of hostile clients, and the stage that makes them."""
