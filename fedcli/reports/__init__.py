"""Reports on runs: tables, HTML pages, plots, comparisons."""
