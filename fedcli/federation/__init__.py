"""What a config stands for, opened: data, model, learning process, cohorts, evaluated clients."""
