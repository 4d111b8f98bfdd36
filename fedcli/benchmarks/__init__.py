"""Speed of this machine on jobs that everyone can repeat, beside its own limits and other programs.

Nothing here reads a clock: what does gets one from the command. Numbers are measured, never judged.
"""
