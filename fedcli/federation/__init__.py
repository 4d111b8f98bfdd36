"""Opens what a run's config names: data, cohorts, class weights, and the clients to evaluate."""
