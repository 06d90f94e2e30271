"""Running pages for the browser tests, and their pictures."""
