"""Parts that users bring: files of theirs and installed packages, found, run and checked."""
