"""Opens what a run's config names: data, cohorts, and the clients to evaluate."""
