"""What many runs say together: settings compared over seeds and tasks, in tables, words and charts."""
