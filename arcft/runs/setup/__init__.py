"""From a config to objects: tasks, models, formats."""
