"""From parameters to the rest-frame spectrum of one galaxy."""
