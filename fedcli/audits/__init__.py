"""Audits: attacks on the privacy of a finished run, which show what it reveals."""
