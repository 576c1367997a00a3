"""From text to token ids: chat turns, labels, padding."""
