"""Learn q(theta): reference, objective, schedules, training, ensemble and files."""
