"""Parts of arcft.runs.speed: what is studied, the process that measures, the study around it, its files."""
