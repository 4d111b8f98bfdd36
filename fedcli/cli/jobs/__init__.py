"""Running long work under a command: threads, signals, progress bars."""
