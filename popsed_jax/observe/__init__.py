"""From a spectrum to what a survey records: filters, photometry, noise, selection."""
